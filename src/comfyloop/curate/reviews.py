"""What people decided in the review queue, applied to the samples that it is about. Pure.

A decision is about content, not about the feedback that it came from: whoever sends the same again is not asked
again. Of several decisions about one content the newest counts, and one that was taken back as if it had not been made.
A fix is an edit: the new text is learned, and preferred to the one before; what was decided about the new text holds,
too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from comfyloop.curate.samples import Draft, Source, make
from comfyloop.records import Dropped, Feedback, Message, Sample, SampleReviewed

REJECTED = "rejected"
SENTENCE = "a person who looked at it did not want it learned"


class Taught(NamedTuple):
    """A text, and whether a person took it: what the filter `learned` learns from beside the samples."""

    text: str
    taken: bool


@dataclass(frozen=True)
class ReviewVerdict:
    """What holds of an item.

    Attributes:
        answered: The filters whose doubts were answered; empty: all of them.
    """

    decision: SampleReviewed
    answered: frozenset[str]


@dataclass
class Reviewed:
    """
    Attributes:
        decided: The drafts as they were, with what was decided about them.
        rejected: Feedback of drafts that are not learned, with the decision.
        looked_up: Items whose verdict it was made by, also where there is none.
    """

    drafts: list[Draft] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    taught: list[Taught] = field(default_factory=list)
    decided: list[tuple[Draft, SampleReviewed]] = field(default_factory=list)
    rejected: dict[str, SampleReviewed] = field(default_factory=dict)
    looked_up: list[str] = field(default_factory=list)


def apply(drafts: Sequence[Draft], verdicts: Mapping[str, ReviewVerdict]) -> Reviewed:
    done = together([of_one(draft, verdicts) for draft in drafts])
    done.dropped = dropped(done.rejected, {id for draft in done.drafts for id in draft.sample.feedback})
    return done


def of_one(draft: Draft, verdicts: Mapping[str, ReviewVerdict]) -> Reviewed:
    """What becomes of a draft; `dropped` is for who knows what is made of the same feedback."""
    done = Reviewed()
    done.drafts += _settled(draft, verdicts, done, ()) if verdicts else [draft]
    return done


def together(made: Sequence[Reviewed]) -> Reviewed:
    done = Reviewed(
        drafts=[draft for one in made for draft in one.drafts],
        taught=list(dict.fromkeys(taught for one in made for taught in one.taught)),
        decided=[decided for one in made for decided in one.decided],
    )
    for one in made:
        done.rejected |= one.rejected
    return done


def dropped(rejected: Mapping[str, SampleReviewed], used: Collection[str]) -> list[Dropped]:
    """The feedback that was rejected, but for what others are made of.

    Args:
        used: The feedback of all drafts that are left.
    """
    return [
        Dropped(feedback=id, reason=REJECTED, detail=f"by {decision.author} ({decision.id})")
        for id, decision in rejected.items()
        if id not in used
    ]


def _settled(
    draft: Draft, verdicts: Mapping[str, ReviewVerdict], done: Reviewed, before: tuple[str, ...]
) -> Iterator[Draft]:
    """What becomes of a draft.

    Args:
        before: Items that it was before it was fixed: who changes a text back means the text as it was.
    """
    done.looked_up.append(draft.item)
    verdict = verdicts.get(draft.item)
    if verdict is None or draft.item in before:
        yield draft
        return
    decision, answered = verdict.decision, verdict.answered
    done.decided.append((draft, decision))
    if draft.answered is not None:
        answered = answered | draft.answered if answered and draft.answered else frozenset()
    match decision.decision:
        case "reject":
            done.taught.append(Taught(draft.sample.answer, False))
            done.rejected.update(dict.fromkeys(draft.sample.feedback, decision))
        case "accept":
            done.taught.append(Taught(draft.sample.answer, draft.sample.label is not False))
            yield replace(draft, answered=answered)
        case "fix":
            assert decision.text is not None
            done.taught.append(Taught(draft.sample.answer, False))
            for fixed in _fixed(draft, decision, decision.text.strip(), answered):
                yield from _settled(fixed, verdicts, done, (*before, draft.item))


def _fixed(draft: Draft, decision: SampleReviewed, text: str, answered: frozenset[str]) -> Iterator[Draft]:
    sample = draft.sample
    source = Source(sample.project, (*sample.feedback, decision.id), sample.origin, decision.author)
    messages = (*sample.messages[:-1], Message.of(sample.messages[-1].role, text, sample.messages[-1].images))
    was = sample.answer

    def made(fixed: Sample, replaces: str | None) -> Draft:
        return Draft(fixed, replaces, answered)

    match sample.kind:
        case "captioned_image" | "image_pair":
            fixed = make(
                sample.kind,
                messages,
                source,
                picked=sample.picked,
                over=sample.over,
                slice=sample.slice,
                repeats=sample.repeats,
                crop=sample.crop,
            )
            yield made(fixed, None)
        case "preference":
            yield made(
                make("preference", messages, source, rejected=sample.rejected, slice=sample.slice),
                sample.rejected,
            )
        case "sft" | "labelled":
            yield made(make("sft", messages, source, slice=sample.slice), was)
            yield made(make("preference", messages, source, rejected=was, slice=sample.slice), was)


def verdicts_of(items: Sequence[Feedback]) -> dict[str, ReviewVerdict]:
    """What holds of each item, of all feedback of a project in the order of its arrival."""
    verdicts: dict[str, ReviewVerdict] = {}
    for _, decision in sorted(
        enumerate(standing([item for item in items if isinstance(item, SampleReviewed)])),
        key=lambda placed: (placed[1].created_at, placed[0]),
    ):
        for item in decision.items:
            now, earlier = frozenset(item.filters), verdicts.get(item.item)
            if earlier is not None:
                now = now | earlier.answered if now and earlier.answered else frozenset()
            verdicts[item.item] = ReviewVerdict(decision, now)
    return verdicts


def standing(decisions: Sequence[SampleReviewed]) -> list[SampleReviewed]:
    """Those that were not taken back, of decisions in the order of their arrival. Taking back can be taken back."""
    undone: set[str] = set()
    left: list[SampleReviewed] = []
    for decision in reversed(decisions):
        if decision.id in undone:
            continue
        left.append(decision)
        if decision.undoes is not None:
            undone.add(decision.undoes)
    return left[::-1]
