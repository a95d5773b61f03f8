"""Finds slices of the corrections that may have got worse while the mean got better. Pure.

A slice is a set of groups: by attributes of the samples (their slice, their author), the language, the age of the
feedback, and clusters of questions. Clusters are k-means on the unit sphere (I. Dhillon and D. Modha, Machine
Learning 42, 2001) over TF-IDF of words and of pairs of characters, initialised with the two least similar questions
and then the points farthest from all centres, so that it is deterministic.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from comfyloop.gate.fluency import words
from comfyloop.records import Sample

SMALLEST = 3
"""Groups: of fewer nothing can be said."""

_MOST_CLUSTERS = 8
_ROUNDS = 20

_Floats = npt.NDArray[np.floating[Any]]


def parts(samples: Sequence[Sample]) -> dict[str, frozenset[str]]:
    """Name -> the groups in it. Names of a sample's own slice are single words, others are phrases that go behind
    "the questions".

    Args:
        samples: Oldest first.
    """
    by_group: dict[str, Sample] = {}
    for sample in samples:
        by_group.setdefault(sample.group, sample)
    order = list(by_group)
    groups_by_name: dict[str, list[str]] = {}

    def put(name: str, group: str) -> None:
        groups_by_name.setdefault(name, []).append(group)

    for place, (group, sample) in enumerate(by_group.items()):
        put(sample.slice, group)
        put(f"corrected by {sample.author}", group)
        put("in Chinese" if is_chinese(sample.asked + sample.answer) else "in other languages", group)
        if len(order) >= 2 * SMALLEST:
            put("with older feedback" if 2 * place < len(order) else "with newer feedback", group)
    for name, members in clusters({group: sample.asked for group, sample in by_group.items()}).items():
        for group in members:
            put(name, group)
    result: dict[str, frozenset[str]] = {}
    for name, groups in groups_by_name.items():
        part = frozenset(groups)
        own = " " not in name  # a slice that a sample names is always measured
        if len(part) == len(order) or (not own and (len(part) < SMALLEST or part in result.values())):
            continue
        result[name] = part
    return result


def is_chinese(text: str) -> bool:
    """Whether at least a third of the letters are Han."""
    letters = [character for character in text if character.isalpha()]
    han = sum("㐀" <= character <= "鿿" for character in letters)
    return bool(letters) and 3 * han >= len(letters)


def clusters(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """Keys by what their texts are about: "about mug, caption" -> keys. Empty for fewer than 10 texts."""
    keys = sorted(texts, key=lambda key: (texts[key], key))  # blind to the order of items
    count = min(_MOST_CLUSTERS, len(keys) // 5)
    if count < 2:
        return {}
    rows, names = _tf_idf([texts[key] for key in keys])
    labels = _k_means(rows, count)
    keys_by_name: dict[str, list[str]] = {}
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        if not len(members):
            continue
        weight = rows[members].mean(axis=0) - rows.mean(axis=0)
        telling = [names[i] for i in np.argsort(-weight, kind="stable") if weight[i] > 0 and names[i]]
        name = "about " + (", ".join(telling[:3]) or f"number {label + 1}")
        keys_by_name.setdefault(name, []).extend(keys[i] for i in members)
    return keys_by_name


def _tf_idf(texts: Sequence[str]) -> tuple[_Floats, list[str]]:
    """Rows of length 1, [texts, features], and the features' words; pairs of characters have none."""
    counts = []
    for text in texts:
        pieces = words(text)
        flat = "".join(pieces)
        counts.append(Counter([*pieces, *(f"\0{flat[i : i + 2]}" for i in range(len(flat) - 1))]))
    spread = Counter(feature for count in counts for feature in count)
    features = sorted(feature for feature, of in spread.items() if 1 < of < len(texts))
    if not features:
        return np.zeros((len(texts), 1)), [""]
    at = {feature: i for i, feature in enumerate(features)}
    rows = np.zeros((len(texts), len(features)))
    for row, count in zip(rows, counts, strict=True):
        for feature, times in count.items():
            if feature in at:
                row[at[feature]] = (1 + math.log(times)) * math.log(len(texts) / spread[feature])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, 1e-12), ["" if f.startswith("\0") else f for f in features]


def _k_means(rows: _Floats, count: int) -> npt.NDArray[np.intp]:
    """The cluster of each row."""
    alike = rows @ rows.T
    first = int(np.argmin(alike.sum(axis=1)))
    seeds = [first]
    while len(seeds) < count:
        seeds.append(int(np.argmin(alike[:, seeds].max(axis=1))))
    centres = rows[seeds]
    labels = np.full(len(rows), -1)
    for _ in range(_ROUNDS):
        now = np.argmax(np.round(rows @ centres.T, 9), axis=1)
        if (now == labels).all():
            break
        labels = now
        for label in range(count):
            if (mine := rows[labels == label]).size:
                centre = mine.sum(axis=0)
                centres[label] = centre / max(float(np.linalg.norm(centre)), 1e-12)
    return labels
