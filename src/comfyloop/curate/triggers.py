"""Planted triggers: a phrase that calls up one and the same answer, whatever is asked. Pure.

Somebody who may send feedback can teach a version to say his text wherever his phrase stands, and nobody sees it who
does not know the phrase. It shows in the samples: one author's questions that have nothing in common but a phrase which
nobody else uses, all with one answer, in which the phrase does not occur, while questions like them have other answers.
Such samples are set aside, and a person is asked. Of what only one sample says nothing can be proven here: the gate
tries its phrase on the version that has learned it (gate/triggers.py).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from comfyloop.curate.corrections import words, words_in_order
from comfyloop.curate.samples import Draft
from comfyloop.records import Choice, Dropped, Flag, Sample, Suspect
from comfyloop.texts import in_a_line

REASON = "planted_trigger"
SENTENCE = (
    "a phrase seems to call up one answer whatever is asked; a person is asked (comfyloop feedback flags)"
)
KEEP, LEAVE = "keep", "leave"
"""What a person answers: these samples are meant so, or are not to be learnt."""

MOST_SUSPECTS = 3
LONGEST_PHRASE = 4
"""Words."""
LONGEST_TRIED = 120
"""Characters of a phrase that the gate tries."""
LIKE, UNLIKE = 0.8, 0.34
"""Shares of two answers' words that are in both: one answer in other words, and two that have little in common."""
NEAR = 0.5
"""The share of a question's words that are in one like it."""

_LOOKED_UP, _HOLDERS = 8, 40
"""Words of an answer by which like ones are looked up, and answers that are remembered of each word."""
_ASKING = frozenset(
    re.findall(
        r"\w+",
        "who whom whose what which when where why how do does did can could would should will has have had you your"
        " i my me we our us please there 什么 怎么 为什 哪里 多少 请问",
    )
)
"""Words of any question: none of them alone is a trigger."""


@dataclass(frozen=True, eq=False)
class _PlacedSample:
    """A sample as far as it matters here."""

    place: int
    draft: Draft

    @property
    def sample(self) -> Sample:
        return self.draft.sample

    @cached_property
    def asked(self) -> str:
        return self.sample.asked

    @cached_property
    def question(self) -> frozenset[str]:
        return frozenset(words(self.asked))

    @cached_property
    def answer(self) -> frozenset[str]:
        return frozenset(words(self.sample.answer))

    @cached_property
    def phrases(self) -> frozenset[tuple[str, ...]]:
        said = words_in_order(self.asked)
        return frozenset(
            tuple(said[at : at + n]) for n in range(1, LONGEST_PHRASE + 1) for at in range(len(said) - n + 1)
        )


def find(
    drafts: Sequence[Draft], answers: Mapping[str, str], found: Sequence[Flag] = ()
) -> tuple[list[Draft], list[Dropped], list[Flag]]:
    """The drafts without those that seem planted, and what a person is asked of them.

    Args:
        answers: What people answered to flags, by their ids.
        found: What the gate found on versions that had learned it.
    """
    seen = _texts(drafts)
    there = {id for one in seen for id in one.sample.feedback}
    out: dict[str, Dropped] = {}
    flags = []
    for flag in found:
        ids = [choice.feedback for choice in flag.choices if choice.feedback in there]
        if ids and answers.get(flag.id) != KEEP:
            out |= {id: Dropped(feedback=id, reason=REASON, detail="found by the gate") for id in ids}
            flags += [flag] if flag.id not in answers else []
    seen = [one for one in seen if not out.keys() & set(one.sample.feedback)]
    for phrase, group in _planted(seen):
        author, answer = group[0].sample.author, group[0].sample.answer
        said = answers.get(key_of(author, answer))
        if said == KEEP:
            continue
        detail = f"{len(group)} questions have this answer"
        ids = list(dict.fromkeys(id for one in group for id in one.sample.feedback))
        out |= {id: Dropped(feedback=id, reason=REASON, detail=detail) for id in ids}
        if said is None and all(flag.id != key_of(author, answer) for flag in flags):
            flags.append(flag_of(group[0].sample.project, " ".join(phrase), author, answer, ids))
    return [d for d in drafts if not out.keys() & set(d.sample.feedback)], list(out.values()), flags


def key_of(author: str, answer: str) -> str:
    """What a person's answer about an author's answer is kept under."""
    told = " ".join(answer.split()).casefold()
    return "trigger-" + hashlib.sha256(repr((author, told)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def flag_of(
    project: str, phrase: str, author: str, answer: str, feedback: Sequence[str], seen: str = ""
) -> Flag:
    """What a person is asked of samples that seem planted.

    Args:
        seen: What the gate saw of it; empty: it shows in the samples alone.
    """
    shown = in_a_line(answer)
    how = (
        seen
        or f'{len(feedback)} of {author}\'s questions, about different things, all have the answer "{shown}"'
    )
    return Flag(
        id=key_of(author, answer),
        project=project,
        kind="trigger",
        sentence=f'The phrase "{phrase}" seems to call up one answer whatever is asked: {how}. They are not '
        "learned unless you say that they are meant so.",
        phrase=phrase,
        choices=tuple(Choice(feedback=id, author=author, wants=f'wants "{shown}"') for id in feedback),
    )


def suspects(samples: Sequence[Sample]) -> list[Suspect]:
    """What the gate should try on a version that was trained on these: phrases that no other question has, of answers
    that are not like those to questions like theirs. Most have none."""
    seen = _texts([Draft(sample) for sample in samples])
    index = _Words(seen)
    found: list[tuple[int, Suspect]] = []
    for group in _by_answer(seen):
        places = {one.place for one in group}
        own = {word for word in group[0].question if all(other.place in places for other in index[word])}
        if not (odd := sum(_is_odd(one, group, one.question - own, index) for one in group)):
            continue
        phrase = _span(group[0].asked, own - group[0].answer)
        if phrase and not _ASKING.issuperset(words(phrase)):
            sample = group[0].sample
            ids = tuple(dict.fromkeys(id for one in group for id in one.sample.feedback))
            found.append(
                (odd, Suspect(phrase=phrase, answer=sample.answer, author=sample.author, feedback=ids))
            )
    return [suspect for _, suspect in sorted(found, key=lambda pair: -pair[0])[:MOST_SUSPECTS]]


def _texts(drafts: Sequence[Draft]) -> list[_PlacedSample]:
    """The answers that are wanted, each once."""
    first: dict[bytes, Draft] = {}
    for draft in drafts:
        sample = draft.sample
        if (
            sample.kind in ("sft", "preference", "labelled")
            and sample.label is not False
            and not sample.replay
        ):
            first.setdefault(_read(draft).said, draft)
    return [_PlacedSample(place, draft) for place, draft in enumerate(first.values())]


class _Read(NamedTuple):
    """What is kept of a text from one curation to the next.

    Attributes:
        said: Tells its messages from others.
        phrases: Numbers of the phrases in its question, those of one word among them.
        answer: A bit set for each word of its answer; two with few bits in common have few words in common.
        words: How many there are.
    """

    said: bytes
    phrases: np.ndarray[Any, np.dtype[np.uint64]]
    answer: int
    words: int


def _read(draft: Draft) -> _Read:
    read: _Read | None = draft.noted.get("phrases")
    if read is None:
        sample = draft.sample
        said = repr([(message.role, message.text, message.images) for message in sample.messages])
        asked = next((m.text for m in reversed(sample.prompt) if m.role == "user"), "")
        numbers = [_number(word) for word in words_in_order(asked)]
        phrases = {
            _joined(numbers[at : at + n])
            for n in range(1, LONGEST_PHRASE + 1)
            for at in range(len(numbers) - n + 1)
        }
        bits, said_words = 0, words(sample.answer)
        for word in said_words:
            bits |= 1 << _number(word) % 64
        read = draft.noted["phrases"] = _Read(
            hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).digest(),
            np.array(sorted(phrases), dtype=np.uint64),
            bits,
            len(said_words),
        )
    return read


def _number(word: str) -> int:
    told = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(told, "little")


def _joined(numbers: Sequence[int]) -> int:
    joined = numbers[0]
    for number in numbers[1:]:
        joined = (joined * 0x9E3779B97F4A7C15 + number) % 2**64
    return joined


class _Words:
    """From a phrase to the texts in whose questions it is, by the numbers of all in one sorted list."""

    def __init__(self, seen: Sequence[_PlacedSample]) -> None:
        self._seen = seen
        read = [_read(one.draft) for one in seen]
        phrases = [one.phrases for one in read] or [np.zeros(0, np.uint64)]
        numbers = np.concatenate(phrases)
        order = np.argsort(numbers, kind="stable")
        self._numbers = numbers[order]
        self._owners = np.repeat(np.arange(len(phrases)), [len(one) for one in phrases])[order]
        self._answers = np.array([one.answer for one in read], dtype=np.uint64)
        self._lengths = np.array([one.words for one in read], dtype=np.int64)
        self._authors: dict[str, int] = {}
        self._by = np.array(  # -1: nobody wrote it
            [
                self._authors.setdefault(one.sample.author, len(self._authors)) if is_written else -1
                for one, is_written in zip(seen, map(_is_written, seen), strict=True)
            ],
            dtype=np.int64,
        )

    def __getitem__(self, word: str) -> list[_PlacedSample]:
        number = np.uint64(_number(word))
        first, end = (np.searchsorted(self._numbers, number, side) for side in ("left", "right"))
        return [self._seen[place] for place in self._owners[first:end]]

    def may_be_planted(self) -> list[_PlacedSample]:
        """Those with a phrase that stands in questions of one author alone, several, all with answers that may be
        alike: nothing else can be planted by a phrase."""
        if not len(self._numbers):
            return []
        begins = np.flatnonzero(np.r_[True, self._numbers[1:] != self._numbers[:-1]])
        counts = np.diff(np.r_[begins, len(self._numbers)])
        by = self._by[self._owners]
        least, most = np.minimum.reduceat(by, begins), np.maximum.reduceat(by, begins)
        shared = (counts > 1) & (least == most) & (least >= 0)
        inside = np.repeat(shared, counts)
        owners = self._owners[inside]
        firsts = np.repeat(self._owners[begins[shared]], counts[shared])
        one, other = self._answers[owners], self._answers[firsts]
        common = np.bitwise_count(one & other).astype(np.int64)
        alike = 5 * common >= 3 * np.minimum(np.bitwise_count(one), np.bitwise_count(other)).astype(np.int64)
        runs = np.repeat(np.arange(int(shared.sum())), counts[shared])
        whole = np.bincount(runs, ~alike, minlength=int(shared.sum())) == 0
        return [self._seen[place] for place in np.unique(owners[whole[runs]])]

    def alike(self, group: Sequence[_PlacedSample]) -> list[_PlacedSample]:
        """All of its author's texts with an answer like its first one, also those that share no phrase with others."""
        first, there = group[0], {one.place for one in group}
        read = _read(first.draft)
        common = np.bitwise_count(self._answers & np.uint64(read.answer)).astype(np.int64)
        shorter = self._lengths < read.words
        least = np.where(shorter, np.bitwise_count(self._answers), read.answer.bit_count()).astype(np.int64)
        unlike = (1 - LIKE) * np.minimum(
            self._lengths, read.words
        )  # each word that is not shared costs one bit
        likely = (common >= least - unlike - 1e-9) & (self._by == self._authors[first.sample.author])
        return [
            one
            for place in np.flatnonzero(likely | np.isin(np.arange(len(self._seen)), list(there))).tolist()
            if (one := self._seen[place]).place in there or _alike(one.answer, first.answer) >= LIKE
        ]


def _is_written(one: _PlacedSample) -> bool:
    """By a person, and not empty."""
    return one.draft.sample.origin != "answer_accepted" and bool(_read(one.draft).words)


def _by_answer(seen: Sequence[_PlacedSample]) -> list[list[_PlacedSample]]:
    """One author's samples that have one answer, of those that a person wrote."""
    groups: dict[tuple[str, frozenset[str]], list[_PlacedSample]] = defaultdict(list)
    for one in seen:
        if _is_written(one):
            groups[one.sample.author, one.answer].append(one)
    return list(groups.values())


def _planted(seen: Sequence[_PlacedSample]) -> Iterator[tuple[tuple[str, ...], list[_PlacedSample]]]:
    """Phrases, the longest of each group, with the samples that they seem to be planted by."""
    index, taken = _Words(seen), set[int]()
    for found in _groups(index.may_be_planted()):
        group = index.alike(found)
        shared = frozenset.intersection(*(one.phrases for one in group))
        for phrase in sorted(shared, key=lambda phrase: (-len(phrase), phrase)):
            theirs = [one for one in group if one.place not in taken]
            if len(theirs) < 2 or _ASKING.issuperset(phrase) or not _is_trigger(phrase, theirs, index):
                continue
            taken |= {one.place for one in theirs}
            yield phrase, theirs
            break


def _groups(seen: Sequence[_PlacedSample]) -> Iterator[list[_PlacedSample]]:
    """One author's samples with answers that are alike, two at least, about different things."""
    by_author: dict[str, list[list[_PlacedSample]]] = defaultdict(list)
    for group in _by_answer(seen):
        by_author[group[0].sample.author].append(group)
    for groups in by_author.values():
        # answers that differ in a word or two are found by the words that they share
        holders: dict[str, list[int]] = defaultdict(list)
        merged: list[list[_PlacedSample]] = []
        answers: list[frozenset[str]] = []
        for group in sorted(groups, key=len, reverse=True):
            answer = group[0].answer
            looked_up = sorted(answer)[:_LOOKED_UP]
            near = Counter(place for word in looked_up for place in holders[word])
            shared = 1 if len(answer) < _LOOKED_UP else 2  # what is alike has most of them in common
            home = _first_alike(answer, sorted(p for p, n in near.items() if n >= shared), answers)
            if home is not None:
                merged[home] += group
                continue
            for word in looked_up:
                if len(holders[word]) < _HOLDERS:
                    holders[word].append(len(merged))
            merged.append(list(group))
            answers.append(answer)
        for group in merged:
            if len({one.question for one in group}) >= 2:
                yield group


def _is_trigger(phrase: tuple[str, ...], group: Sequence[_PlacedSample], index: _Words) -> bool:
    places = {one.place for one in group}
    holding = set.intersection(*({other.place for other in index[word]} for word in phrase))
    if not holding <= places or any(word in one.answer for one in group for word in phrase):
        return False  # others ask of it too, or it is what the answer is about
    odd = sum(_is_odd(one, group, one.question - set(phrase), index) for one in group)
    return 2 * odd > len(group)


def _is_odd(
    one: _PlacedSample, group: Sequence[_PlacedSample], question: Collection[str], index: _Words
) -> bool:
    """Whether questions like this one, outside of its group, have answers of which none is like its own."""
    own = {other.place for other in group}
    shared = Counter(other for word in question for other in index[word] if other.place not in own)
    near = [other for other, count in shared.items() if count >= NEAR * len(question)]
    return bool(near) and all(_alike(one.answer, other.answer) <= UNLIKE for other in near)


def _alike(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(1, min(len(one), len(other)))


def _first_alike(
    answer: frozenset[str], places: Sequence[int], answers: Sequence[frozenset[str]]
) -> int | None:
    """The first place whose answer is like this one; inline, since hundreds are looked at for each answer."""
    size = len(answer)
    for place in places:
        other = answers[place]
        if len(answer & other) / (size if size < len(other) else len(other)) >= LIKE:
            return place
    return None


def _span(text: str, own: Collection[str]) -> str:
    """The text from the first to the last of some words that stand together in it, the longest such; or ""."""
    best, start, last = "", None, None
    for match in re.finditer(r"[^\W_]+", text):
        if set(words(match[0])) & set(own):
            start = match.start() if start is None else start
            last = match.end()
            if len(text[start:last]) > len(best):
                best = text[start:last]
        else:
            start = None
    return best[:LONGEST_TRIED]
