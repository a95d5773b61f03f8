"""Uploaded texts that are all but the same: the first one stays. What people did by hand is alike on purpose, as a
house style is, and is not looked at."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from pydantic import Field

from comfyloop.curate.filters import _texts
from comfyloop.curate.rulings import KEEP, UPLOADED, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft
from comfyloop.records import Sample

HASHES, BANDS = 64, 16
SHINGLE = 3
SHORT = 8
"""Words from which on a text can be a near copy: shorter ones differ in a word, and in what they say."""


class TextDeduplicator(Options):
    jaccard: float = Field(
        default=0.8, gt=0, le=1, description="Share of runs of three words from which on two texts are one."
    )


def judge(drafts: Sequence[Draft], ground: Ground, options: TextDeduplicator) -> Iterator[Ruling]:
    """MinHash of question and answer; texts that agree in one band of four are compared. About different pictures the
    same words say different things: only those about the same pictures are compared."""
    brought = [draft for draft in drafts if draft.sample.origin == UPLOADED]
    signed = ground.measurements.of_samples("minhash/1", brought, _signatures)
    of = {id(draft): bytes.fromhex(hex) for draft, hex in zip(brought, signed, strict=True)}
    bands: dict[tuple[object, int, bytes], list[int]] = {}
    firsts: list[tuple[str, np.ndarray[Any, np.dtype[np.uint32]]]] = []
    for draft in drafts:
        signature = of.get(id(draft), b"")
        if not signature:
            yield KEEP
            continue
        numbers = np.frombuffer(signature, dtype="<u4")
        step = len(signature) // BANDS
        keys = [
            (_apart(draft.sample), band, signature[band * step : (band + 1) * step]) for band in range(BANDS)
        ]
        near = {place for key in keys for place in bands.get(key, ())}
        shared = {place: float((firsts[place][1] == numbers).mean()) for place in near}
        best = max(shared, key=lambda place: shared[place], default=None)
        if best is not None and shared[best] >= options.jaccard:
            yield Ruling("drop", f"{shared[best]:.0%} the same as {firsts[best][0]}", round(shared[best], 3))
            continue
        firsts.append((", ".join(draft.sample.feedback), numbers))
        for key in keys:
            bands.setdefault(key, []).append(len(firsts) - 1)
        yield Ruling("keep", score=round(max(shared.values(), default=0.0), 3))


def _apart(sample: Sample) -> object:
    return sample.kind, sample.label, sample.images


def _signatures(drafts: Sequence[Draft]) -> Iterator[str]:
    for draft in drafts:
        sample = draft.sample
        found = _texts.words(
            " ".join([*(message.text for message in sample.messages), sample.rejected or ""])
        )
        if len(_texts.words(sample.answer)) < SHORT:
            yield ""
            continue
        grams = {" ".join(found[i : i + SHINGLE]) for i in range(max(1, len(found) - SHINGLE + 1))}
        yield minhash(grams).tobytes().hex()


def minhash(grams: set[str]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    factors, offsets = _permutations()
    codes = np.array([zlib.crc32(gram.encode("utf-8", "replace")) for gram in grams], dtype=np.uint64)
    mixed = (codes[:, None] * factors + offsets) >> np.uint64(32)  # wraps at 2**64, as it is meant to
    least: np.ndarray[Any, np.dtype[np.uint32]] = mixed.min(0).astype("<u4")
    return least


@cache
def _permutations() -> tuple[Any, Any]:
    drawn = np.random.default_rng(1).integers(1, 2**63, (2, HASHES), dtype=np.uint64)
    return drawn[0] | np.uint64(1), drawn[1]


FILTER = Filter(
    "document_minhash_deduplicator",
    "all but the same text was uploaded before",
    judge,
    rank=200,
    compares=True,
    options=TextDeduplicator,
)
