"""Claims that cannot both be learnt: opposite answers wanted to the same question about the same pictures. Pure.

Of one person the newest claim counts: he changed his mind. Samples that one person uploads may say other things of the
same picture, as captions do, and only take each other back where they say other numbers or deny each other. Two people
who disagree are both left out, and a person is asked; what was answered once holds for these two claims. Questions are
the same whatever their small words and marks; answers are opposite where most of the shorter one's words are not in the
other, where they say other numbers, or where a short one denies what the other says. An answer that somebody accepted
need not be the only good one, so it is opposed only by who rewrote or rated badly an answer like it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

from comfyloop.curate.corrections import KEPT, words
from comfyloop.curate.samples import Draft
from comfyloop.records import Choice, Dropped, Flag
from comfyloop.texts import in_a_line

SUPERSEDED, DISAGREEMENT, OVERRULED = "superseded", "disagreement", "overruled"
SENTENCES = {
    DISAGREEMENT: "two people want opposite answers to it: choose one (comfyloop feedback flags)",
    OVERRULED: "a person who was asked did not choose it",
}
BOTH, NEITHER = "both", "neither"
"""Answers to a pair of claims, beside the one that holds."""

_MOST = 40
"""Claims about one question that are compared with each other, the newest."""
_SHORT = 12
"""Words of an answer in which a "not" turns the whole of it."""
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_NO = re.compile(r"\b(?:no|not|never|none|cannot)\b|n't\b|n’t\b|[不没無无別别]", re.IGNORECASE)


@dataclass(frozen=True)
class ReadAnswer:
    """An answer, read once."""

    text: str

    @cached_property
    def words(self) -> frozenset[str]:
        return frozenset(words(self.text))

    @cached_property
    def numbers(self) -> frozenset[str]:
        return frozenset(_NUMBER.findall(self.text))

    @cached_property
    def denies(self) -> bool:
        return bool(_NO.search(self.text))

    def opposes(self, other: ReadAnswer) -> bool:
        one, two = self.words, other.words
        return len(one & two) < KEPT * min(len(one), len(two)) or self.contradicts(other)

    def contradicts(self, other: ReadAnswer) -> bool:
        if self.numbers and other.numbers and self.numbers != other.numbers:
            return True
        return self.denies is not other.denies and min(len(self.words), len(other.words)) <= _SHORT


@dataclass(frozen=True)
class Claim:
    """What one piece of feedback says about a question.

    Attributes:
        wants: The answer that was wanted; None: only that another one was not.
        against: The answer that was rewritten, or rated badly.
        only: It was written by the person, so that an opposite one is not wanted.
        uploaded: It came as a sample of its own, not as what somebody did to an answer.
        drafts: The samples that would be made of it.
    """

    feedback: str
    author: str
    at: tuple[datetime, int]
    wants: ReadAnswer | None
    against: ReadAnswer | None
    only: bool
    uploaded: bool
    drafts: tuple[int, ...] = field(compare=False)

    def opposes(self, other: Claim) -> bool:
        return self._denies(other) or other._denies(self)

    def takes_back(self, earlier: Claim) -> bool:
        """As the newer one of the same person."""
        if self.uploaded and earlier.uploaded and self.wants and earlier.wants:
            return self.wants.contradicts(earlier.wants)
        return self.opposes(earlier)

    def _denies(self, other: Claim) -> bool:
        if other.wants is None:
            return False
        if self.wants is None:
            return self.against is not None and self.against.text == other.wants.text
        if not self.wants.opposes(other.wants):
            return False
        return (self.only and other.only) or (
            self.against is not None and not self.against.opposes(other.wants)
        )


@dataclass(frozen=True)
class Settled:
    kept: list[Draft]
    dropped: list[Dropped]
    flags: list[Flag]


def settle(
    drafts: Sequence[Draft],
    when: Mapping[str, tuple[datetime, int]],
    answers: Mapping[str, str],
    same: Callable[[str], str] = lambda sha: sha,
) -> Settled:
    """The drafts without those that contradict each other.

    Args:
        when: Of each piece of feedback, when it was made and its place in the order of arrival.
        answers: What people answered to flags: a pair's key -> the id of the feedback that holds, BOTH or NEITHER.
        same: From a picture to the first one that shows the same.
    """
    out: dict[int, Dropped] = {}
    flags: list[Flag] = []

    def leave(claim: Claim, reason: str, detail: str) -> None:
        for place in claim.drafts:
            out.setdefault(place, Dropped(feedback=claim.feedback, reason=reason, detail=detail))

    for key, claims in _by_question(drafts, when, same).items():
        standing = []
        for claim, newer in _own_last_words(claims):
            if newer is None:
                standing.append(claim)
            else:
                leave(claim, SUPERSEDED, f"by {newer.feedback}")
        pairs = [pair for pair in _opposed(standing) if answers.get(key_of(*pair)) != BOTH]
        lost = set()
        for one, other in pairs:
            winner = answers.get(key_of(one, other))
            for loser, by in ((one, other), (other, one)):
                if winner in (by.feedback, NEITHER):
                    lost.add(loser)
                    leave(loser, OVERRULED, f"beside {by.feedback}")
        open_ones = [pair for pair in pairs if not lost.intersection(pair)]
        at_odds = list(dict.fromkeys(claim for pair in open_ones for claim in pair))
        for claim in at_odds:
            leave(
                claim,
                DISAGREEMENT,
                "with " + next(_other(p, claim).feedback for p in open_ones if claim in p),
            )
        if at_odds:
            flags.append(_flag(key, at_odds, drafts))
    kept = [draft for place, draft in enumerate(drafts) if place not in out]
    used = {id for draft in kept for id in draft.sample.feedback}
    dropped = {lost.feedback: lost for lost in reversed(out.values()) if lost.feedback not in used}
    return Settled(kept, list(dropped.values()), flags)


def key_of(one: Claim | str, other: Claim | str) -> str:
    """What the answer about a pair of claims is kept under."""
    ids = [claim if isinstance(claim, str) else claim.feedback for claim in (one, other)]
    return "|".join(sorted(ids))


def _other(pair: tuple[Claim, Claim], claim: Claim) -> Claim:
    return pair[1] if pair[0] is claim else pair[0]


def _by_question(
    drafts: Sequence[Draft], when: Mapping[str, tuple[datetime, int]], same: Callable[[str], str]
) -> dict[str, list[Claim]]:
    """Claims about the same question, in order of arrival, where there are several."""
    asked: dict[str, list[int]] = {}
    for place, draft in enumerate(drafts):
        if draft.sample.kind != "captioned_image":
            question = draft.question(same)
            asked.setdefault(question + _PICKS if draft.sample.kind == "image_pair" else question, []).append(
                place
            )
    return {
        question: claims
        for question, places in asked.items()
        if len(places) > 1
        and (question.endswith(_PICKS) or len({drafts[place].sample.feedback for place in places}) > 1)
        and len(claims := _claims(places, drafts, when)) > 1
    }


_PICKS = " (picks)"


def _claims(
    places: Sequence[int], drafts: Sequence[Draft], when: Mapping[str, tuple[datetime, int]]
) -> list[Claim]:
    """What is said about one question; the samples of one piece of feedback say one thing."""
    claims: dict[tuple[str, ...], Claim] = {}
    for place in places:
        claim = _claim(place, drafts[place], when)
        pair = drafts[place].sample.kind == "image_pair"
        about = ("pair", claim.feedback, str(place)) if pair else ("text", claim.feedback)
        if about in claims:  # the edit itself, and that it is preferred
            claim = _joined(claims[about], claim)
        claims[about] = claim
    return list(claims.values())


def _claim(place: int, draft: Draft, when: Mapping[str, tuple[datetime, int]]) -> Claim:
    sample = draft.sample
    about = (sample.feedback[-1], sample.author, max(when[id] for id in sample.feedback))
    if sample.kind == "image_pair":
        assert sample.picked is not None and sample.over is not None
        return Claim(*about, ReadAnswer(sample.picked), ReadAnswer(sample.over), False, False, (place,))
    uploaded = sample.origin == "sample_uploaded"
    if sample.label is False:
        return Claim(*about, None, ReadAnswer(sample.answer), False, uploaded, (place,))
    written = sample.label is None and sample.origin != "answer_accepted"
    against = sample.rejected if sample.rejected is not None else draft.replaces
    return Claim(
        *about,
        ReadAnswer(sample.answer),
        ReadAnswer(against) if against else None,
        written,
        uploaded,
        (place,),
    )


def _joined(one: Claim, other: Claim) -> Claim:
    against = one.against or other.against
    return replace(one, against=against, drafts=(*one.drafts, *other.drafts))


def _own_last_words(claims: Sequence[Claim]) -> Iterator[tuple[Claim, Claim | None]]:
    """Each claim, in their order, with the newest one of the same author if that one opposes it."""
    last: dict[str, Claim] = {}
    for claim in claims:
        if claim.author not in last or claim.at > last[claim.author].at:
            last[claim.author] = claim
    for claim in claims:
        newest = last[claim.author]
        yield claim, newest if newest is not claim and newest.takes_back(claim) else None


def _opposed(claims: Sequence[Claim]) -> list[tuple[Claim, Claim]]:
    """The pairs of two authors' claims that oppose each other."""
    if len({claim.author for claim in claims}) < 2:
        return []
    newest = sorted(claims, key=lambda claim: claim.at)[-_MOST:]
    return [
        (one, other)
        for place, one in enumerate(newest)
        for other in newest[place + 1 :]
        if one.author != other.author and one.opposes(other)
    ]


def _flag(key: str, claims: Sequence[Claim], drafts: Sequence[Draft]) -> Flag:
    sample = drafts[claims[0].drafts[0]].sample
    asked = (sample.prompt or sample.messages)[-1]
    choices = tuple(_choice(claim) for claim in claims)
    told = "; ".join(f"{choice.author} {choice.wants}" for choice in choices[:4])
    people = len({claim.author for claim in claims})
    return Flag(
        id=f"disagreement-{key[:16]}",
        project=sample.project,
        kind="disagreement",
        sentence=f'On "{in_a_line(asked.preview)}", {people} people want opposite answers: {told}. None of it is '
        "learned until you choose whose holds.",
        question=asked.text,
        images=asked.images,
        choices=choices,
    )


def _choice(claim: Claim) -> Choice:
    if claim.wants is not None:
        wants = f'wants "{in_a_line(claim.wants.text)}"'
    else:
        assert claim.against is not None
        wants = f'does not want "{in_a_line(claim.against.text)}"'
    return Choice(feedback=claim.feedback, author=claim.author, wants=wants)
