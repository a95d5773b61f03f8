"""People who change their minds: from some day on, other answers are wanted to the same kind of question. Pure.

Of two corrections of one answer the newer one counts (disagreements.py); but a person who no longer wants hashtags does
not correct again what she corrected in spring. Learned side by side, the old and the new would teach neither, and the
old ones among the hold-out would judge against whoever learns the new. So each author's written answers are looked at
in their order: is there a place from which they are unlike those before, while the questions are like those before? The
energy statistic of the distances between texts (Székely and Rizzo 2013) is largest there; how often it would be as
large by chance, a permutation test tells. A new task has new questions and changes nothing of this. What was wanted
before of questions like the new ones is then outdated: it is not learned, nor judged by, unless a person says that both
hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from comfyloop.curate.samples import Draft
from comfyloop.records import Choice, Dropped, Flag, Sample
from comfyloop.store.flags import BOTH
from comfyloop.texts import in_a_line

REASON = "outdated"
SENTENCE = "the same person has wanted other answers to such questions since (comfyloop feedback flags)"
NEWER = "newer"
"""What a person answers who does not say that BOTH hold, which is so until somebody says otherwise."""

LEAST = 8
"""Answers on either side of a change."""
NEWEST = 120
"""Answers of an author that are looked at for a change, the newest."""
PERMUTATIONS = 199
CHANCE = 0.01
EFFECT = 0.15
"""Of the energy coefficient H, 0 to 1: of simulated people who keep their minds 0.04 at most, of one who changes it
0.65."""
QUESTIONS = 0.25
"""Questions may change by so much of what answers do."""
NEIGHBOURS = 3
UNLIKE = 0.1
"""By so much an outdated answer is farther from those to the questions most like its own than those are from theirs."""
_CHARACTERS = 600
"""Of a text that are compared."""

Matrix = np.ndarray[Any, np.dtype[np.floating[Any]]]


def find(
    drafts: Sequence[Draft], when: Mapping[str, tuple[datetime, int]], before: Sequence[Flag] = ()
) -> list[Flag]:
    """Changes of mind that show in the drafts, as flags that a person can answer.

    Args:
        when: Of each piece of feedback, when it was made and its place in the order of arrival.
        before: Changes that were found before: what came until then is not looked at again.
    """
    flags = []
    for (author, name), samples in sorted(_written(drafts, when).items()):
        since = max(
            (when[id] for flag in before for id in _first(flag, author, name) if id in when), default=None
        )
        series = [s for s in samples if since is None or max(when[id] for id in s.feedback) >= since]
        place = _change(series[-NEWEST:])
        if place is None:
            continue
        at = len(series) - len(series[-NEWEST:]) + place
        old, new = series[:at], series[at:]
        if outdated := _outdated(old, new):
            flags.append(_flag(author, name, outdated, new))
    return flags


def apply(
    drafts: Sequence[Draft], answers: Mapping[str, str], found: Sequence[Flag]
) -> tuple[list[Draft], list[Dropped], list[Flag]]:
    """The drafts without those that are outdated, and the changes that no person has said anything to yet.

    Args:
        answers: What people answered to flags, by their ids.
        found: Changes that were found.
    """
    out = {
        id: Dropped(feedback=id, reason=REASON, detail=flag.id)
        for flag in found
        if answers.get(flag.id) != BOTH
        for id in flag.outdated
    }
    kept = [draft for draft in drafts if out.keys().isdisjoint(draft.sample.feedback)]
    there = {id for draft in drafts for id in draft.sample.feedback}
    dropped = [lost for id, lost in out.items() if id in there]
    open_ones = [flag for flag in found if flag.id not in answers and len(flag.choices) > 1]
    return kept, dropped, [flag for flag in open_ones if not there.isdisjoint(flag.outdated)]


def _written(
    drafts: Sequence[Draft], when: Mapping[str, tuple[datetime, int]]
) -> dict[tuple[str, str], list[Sample]]:
    """Answers that people wrote themselves, by author and slice, oldest first; of one answer the last."""
    written: dict[tuple[str, str], dict[str, Sample]] = defaultdict(dict)
    for draft in drafts:
        sample = draft.sample
        if (
            sample.kind == "sft"
            and sample.origin not in ("answer_accepted", "sample_uploaded")
            and sample.feedback
        ):
            written[sample.author, sample.slice][sample.id] = sample
    return {
        key: sorted(samples.values(), key=lambda sample: max(when[id] for id in sample.feedback))
        for key, samples in written.items()
    }


def _first(flag: Flag, author: str, name: str) -> Iterator[str]:
    """The first feedback after a change, if it is one of this author and slice."""
    if flag.kind == "change" and flag.choices[-1].author == author and flag.slice == name:
        yield flag.choices[-1].feedback


def _change(series: Sequence[Sample]) -> int | None:
    """The first place from which other answers are wanted; None: the same as ever."""
    if len(series) < 2 * LEAST:
        return None
    answers = _distances([sample.answer for sample in series])
    place, most = _largest(answers)
    effect = _coefficient(answers, place)
    if effect < EFFECT or _coefficient(_distances([s.asked for s in series]), place) > QUESTIONS * effect:
        return None
    random = np.random.default_rng(0)
    orders = (random.permutation(len(series)) for _ in range(PERMUTATIONS))
    as_large = sum(_largest(answers[np.ix_(order, order)])[1] >= most for order in orders)
    return place if (as_large + 1) / (PERMUTATIONS + 1) <= CHANCE else None


def _largest(distances: Matrix) -> tuple[int, float]:
    """Where the energy statistic of what is before and after is largest, and how large it is there."""
    n = len(distances)
    sums = np.zeros((n + 1, n + 1))
    sums[1:, 1:] = distances.cumsum(0).cumsum(1)
    places = np.arange(LEAST, n - LEAST + 1)
    before, after = sums[places, places], sums[n, n] - 2 * sums[places, n] + sums[places, places]
    between = sums[places, n] - before
    left, right = places.astype(float), n - places.astype(float)
    energy = 2 * between / (left * right) - before / (left * (left - 1)) - after / (right * (right - 1))
    statistic = energy * left * right / n
    best = int(statistic.argmax())
    return int(places[best]), float(statistic[best])


def _coefficient(distances: Matrix, place: int) -> float:
    """The energy statistic in parts of its mean distance between the two sides: about 0 where they are alike."""
    old, new, between = distances[:place, :place], distances[place:, place:], distances[:place, place:]
    within = sum(float(side.sum()) / (len(side) * (len(side) - 1)) for side in (old, new))
    mean = float(between.mean())
    return (2 * mean - within) / (2 * mean) if mean else 0.0


def _outdated(old: Sequence[Sample], new: Sequence[Sample]) -> list[Sample]:
    """Those of the old whose answers are unlike those that are now wanted to the questions most like theirs, and more
    so than the new ones are unlike each other."""
    some = new[-NEWEST:]
    asked, wanted = [sample.asked for sample in some], [sample.answer for sample in some]
    among = _distances(asked)
    np.fill_diagonal(among, np.inf)
    nearest = _nearest(among)
    own = np.take_along_axis(_distances(wanted), nearest, 1).mean(1)
    far = np.median(among[np.isfinite(among)])  # of a question like theirs, at most
    questions = _distances([sample.asked for sample in old], asked)
    nearest = _nearest(questions)
    unlike = np.take_along_axis(_distances([s.answer for s in old], wanted), nearest, 1).mean(1)
    like_theirs = np.take_along_axis(questions, nearest, 1).mean(1) <= far
    bound = np.maximum(np.quantile(own, 0.9), own[nearest].mean(1) + UNLIKE)
    return [sample for sample, out in zip(old, (unlike > bound) & like_theirs, strict=True) if out]


def _nearest(questions: Matrix) -> np.ndarray[Any, np.dtype[np.intp]]:
    return np.argsort(questions, axis=1, kind="stable")[:, :NEIGHBOURS]


def _distances(texts: Sequence[str], others: Sequence[str] | None = None) -> Matrix:
    """(texts, others) in 0..1: the share of characters that would have to go or come."""
    from rapidfuzz import fuzz, process  # not where the service starts: it brings all its kinds along

    first = [text[:_CHARACTERS] for text in texts]
    second = first if others is None else [text[:_CHARACTERS] for text in others]
    alike: Matrix = process.cdist(first, second, scorer=fuzz.ratio, dtype=np.float32)
    return 1 - alike / 100


def _flag(author: str, name: str, outdated: Sequence[Sample], new: Sequence[Sample]) -> Flag:
    before, now = outdated[-1], new[0]
    ids = tuple(dict.fromkeys(id for sample in outdated for id in sample.feedback))
    corrections = "1 correction" if len(outdated) == 1 else f"{len(outdated)} corrections"
    return Flag(
        id=f"change-{now.feedback[-1]}",
        project=now.project,
        kind="change",
        sentence=f"{author} wants other answers than before to one kind of question: "
        f'"{in_a_line(now.answer)}", and no longer "{in_a_line(before.answer)}". '
        f"What was wanted before ({corrections}) is not learned any more, unless you say that both hold.",
        question=now.asked,
        slice=name,
        choices=(_choice(before, "wanted"), _choice(now, "now wants")),
        outdated=ids,
    )


def _choice(sample: Sample, verb: str) -> Choice:
    wants = f'{verb} "{in_a_line(sample.answer)}"'
    return Choice(feedback=sample.feedback[-1], author=sample.author, wants=wants)
