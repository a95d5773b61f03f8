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
    sample: Sample

    @cached_property
    def asked(self) -> str:
        return next((m.text for m in reversed(self.sample.prompt) if m.role == "user"), "")

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
    seen = _texts([draft.sample for draft in drafts])
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
    seen = _texts(samples)
    index = _index(seen)
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


def _texts(samples: Sequence[Sample]) -> list[_PlacedSample]:
    """The answers that are wanted, each once."""
    first: dict[object, _PlacedSample] = {}
    for place, sample in enumerate(samples):
        if (
            sample.kind in ("sft", "preference", "labelled")
            and sample.label is not False
            and not sample.replay
        ):
            first.setdefault(sample.messages, _PlacedSample(place, sample))
    return list(first.values())


_Index = Mapping[str, Sequence[_PlacedSample]]
"""From a word to the samples in whose questions it is."""


def _index(seen: Sequence[_PlacedSample]) -> _Index:
    index: dict[str, list[_PlacedSample]] = defaultdict(list)
    for one in seen:
        for word in one.question:
            index[word].append(one)
    return index


def _by_answer(seen: Sequence[_PlacedSample]) -> list[list[_PlacedSample]]:
    """One author's samples that have one answer, of those that a person wrote."""
    groups: dict[tuple[str, frozenset[str]], list[_PlacedSample]] = defaultdict(list)
    for one in seen:
        if one.answer and one.sample.origin != "answer_accepted":
            groups[one.sample.author, one.answer].append(one)
    return list(groups.values())


def _planted(seen: Sequence[_PlacedSample]) -> Iterator[tuple[tuple[str, ...], list[_PlacedSample]]]:
    """Phrases, the longest of each group, with the samples that they seem to be planted by."""
    index, taken = _index(seen), set[int]()
    for group in _groups(seen):
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
            near = {place for word in sorted(answer)[:_LOOKED_UP] for place in holders[word]}
            home = _first_alike(answer, sorted(near), answers)
            if home is not None:
                merged[home] += group
                continue
            for word in sorted(answer)[:_LOOKED_UP]:
                if len(holders[word]) < _HOLDERS:
                    holders[word].append(len(merged))
            merged.append(list(group))
            answers.append(answer)
        for group in merged:
            if len({one.question for one in group}) >= 2:
                yield group


def _is_trigger(phrase: tuple[str, ...], group: Sequence[_PlacedSample], index: _Index) -> bool:
    places = {one.place for one in group}
    holding = set.intersection(*({other.place for other in index[word]} for word in phrase))
    if not holding <= places or any(word in one.answer for one in group for word in phrase):
        return False  # others ask of it too, or it is what the answer is about
    odd = sum(_is_odd(one, group, one.question - set(phrase), index) for one in group)
    return 2 * odd > len(group)


def _is_odd(
    one: _PlacedSample, group: Sequence[_PlacedSample], question: Collection[str], index: _Index
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
