"""Uploaded texts that are all but the same: the first one stays. What people did by hand is alike on purpose, as a
house style is, and is not looked at."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
    sign(brought, ground)
    signed = [draft for draft in brought if draft.noted[FILTER.name]]
    there: _Compared | None = ground.left.get(FILTER.name)
    if there is None or there.jaccard != options.jaccard or signed[: len(there.drafts)] != there.drafts:
        there = ground.left[FILTER.name] = _Compared(options.jaccard)
    for draft in signed[len(there.drafts) :]:
        there.take(draft)
    rulings = iter(there.rulings)
    for draft in drafts:
        yield next(rulings) if draft.noted.get(FILTER.name) else KEEP


def sign(drafts: Sequence[Draft], ground: Ground) -> None:
    new = [d for d in drafts if d.sample.origin == UPLOADED and FILTER.name not in d.noted]
    signed = ground.measurements.of_samples("minhash/1", new, _signatures, large=True)
    for draft, signature in zip(new, signed, strict=True):
        draft.noted[FILTER.name] = bytes.fromhex(signature)


@dataclass
class _Compared:
    """Texts in their order, and those that are no copies by their bands."""

    jaccard: float
    drafts: list[Draft] = field(default_factory=list)
    rulings: list[Ruling] = field(default_factory=list)
    firsts: list[Draft] = field(default_factory=list)
    bands: dict[bytes, list[int]] = field(default_factory=dict)

    def take(self, draft: Draft) -> None:
        self.drafts.append(draft)
        signature: bytes = draft.noted[FILTER.name]
        step, apart = len(signature) // BANDS, _apart(draft.sample)
        keys = [b"%d " % band + signature[band * step : (band + 1) * step] + apart for band in range(BANDS)]
        near = {place for key in keys for place in self.bands.get(key, ())}
        shared = {place: self._shared(place, signature) for place in sorted(near)}
        best = max(shared, key=lambda place: shared[place], default=None)
        if best is not None and shared[best] >= self.jaccard:
            copied = ", ".join(self.firsts[best].sample.feedback)
            self.rulings.append(
                Ruling("drop", f"{shared[best]:.0%} the same as {copied}", round(shared[best], 3))
            )
            return
        for key in keys:
            self.bands.setdefault(key, []).append(len(self.firsts))
        self.firsts.append(draft)
        self.rulings.append(Ruling("keep", score=round(shared[best], 3)) if best is not None else UNLIKE)

    def _shared(self, place: int, signature: bytes) -> float:
        one, other = (
            np.frombuffer(each, dtype="<u4") for each in (self.firsts[place].noted[FILTER.name], signature)
        )
        return float((one == other).mean())


UNLIKE = Ruling("keep", score=0.0)


def _apart(sample: Sample) -> bytes:
    return repr((sample.kind, sample.label, sample.images)).encode()


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
    measure=lambda drafts, ground, options: sign(drafts, ground),
)
