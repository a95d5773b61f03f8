"""What a snapshot kept, what it left out and why: as JSON (the record) and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydantic import Field

from comfyloop.curate import changes, disagreements, filters, groups, reviews, triggers
from comfyloop.curate.lesson import Lesson
from comfyloop.curate.split import Split
from comfyloop.records import Dropped, Flag, Record, Sample
from comfyloop.settings import Settings

REASONS: dict[str, str] = {
    **filters.SENTENCES,
    groups.REASON: groups.SENTENCE,
    **disagreements.SENTENCES,
    triggers.REASON: triggers.SENTENCE,
    changes.REASON: changes.SENTENCE,
    reviews.REJECTED: reviews.SENTENCE,
    "superseded": "the same person said something newer about the same thing",
    "neutral": "a rating of 3 says neither yes nor no",
    "no_generation": "the answer it is about is no longer stored",
    "broken_off": "the answer was broken off (a circle, a fault, a client that left): edit it to have it learned",
    "no_prompt": "nobody knows which prompt the image was made from",
    "no_pair": "a bad rating needs a good one of the same prompt beside it",
    "broken_graph": "the workflow is not in ComfyUI's API form",
    "large_edit": "the workflow's edit is too large to be one example",
    "graph_edits_off": "edits of workflows are kept and not trained on (learn_graph_edits)",
    "another_subject": "the prompt became one of something else: no correction",
    "undone": "the change was taken back",
}


class CurationReport(Record):
    """Counts are of samples, except `feedback` and `dropped`, which count pieces of feedback."""

    project: str
    feedback: int
    train: dict[str, int]  # kind -> samples
    holdout: dict[str, int]
    slices: dict[str, int]  # over both sides
    authors: dict[str, int]
    sources: dict[str, int] = Field(
        default_factory=dict, description="What people did (`answer_edited`, ...) -> samples made of it."
    )
    new: int = 0  # samples that this turn learns, of those in `train`
    rehearsal: int = 0  # learned before, and kept in practice
    dev: int = 0  # new, but kept back to tell when to stop
    replay: int
    dropped: dict[str, int]  # reason -> pieces of feedback
    details: tuple[Dropped, ...]
    warnings: tuple[str, ...] = ()
    waiting: dict[str, int] = Field(
        default_factory=dict,
        description="Author -> pieces of feedback that are more than one may have in a turn.",
    )
    unsure: tuple[Dropped, ...] = Field(
        default=(), description="What filters are unsure of: it is learned, and a person should look at it."
    )
    unmeasured: dict[str, int] = Field(
        default_factory=dict, description="Filter -> samples that it could not measure."
    )
    coverage: tuple[str, ...] = Field(
        default=(), description="What the set has much and little of, as sentences."
    )
    notes: tuple[str, ...] = ()  # what the turn's account tells a person, as sentences

    def text(self) -> str:
        """The report as a person reads it, a few lines."""
        lines = [
            f"Project {self.project}: {self.feedback} pieces of feedback.",
            f"Training: {_counts(self.train)}, and {self.replay} replayed general answers.",
            f"This turn: {self.new} new, {self.rehearsal} rehearsed, {self.dev} kept back to tell when to stop.",
            f"Held out: {_counts(self.holdout)}.",
        ]
        if self.slices:
            lines.append(f"Slices: {_counts(self.slices)}.")
        if len(self.authors) > 1:
            lines.append(f"Authors: {_counts(self.authors)}.")
        if self.sources:
            lines.append(f"Made of: {_counts(self.sources)}.")
        if self.dropped:
            lines.append("Left out:")
            lines += _reasons(self.dropped, self.details)
        if self.unsure:
            lines.append("To be looked at (comfyloop queue list):")
            lines += _reasons(_count(item.reason for item in self.unsure), self.unsure)
        lines += [f"Not measured: {name}, {n} samples." for name, n in self.unmeasured.items()]
        lines += [f"Coverage: {sentence}" for sentence in self.coverage]
        lines += [f"Note: {note}" for note in (*self.warnings, *self.notes)]
        return "\n".join(lines) + "\n"


EXAMPLES = 2
"""Pieces of feedback that the text names for each reason; the JSON has them all."""


def _reasons(counts: Mapping[str, int], items: Sequence[Dropped]) -> Iterator[str]:
    for reason, n in counts.items():
        yield f"  {n:>5}  {reason}: {REASONS[reason]}"
        for item in [item for item in items if item.reason == reason][:EXAMPLES]:
            yield f"         e.g. {item.feedback}{f': {item.detail}' if item.detail else ''}"


def report_of(
    project: str,
    feedback: int,
    split: Split,
    lesson: Lesson,
    replay: Sequence[Sample],
    dropped: Sequence[Dropped],
    settings: Settings,
    replay_wanted: int,
    *,
    flags: Sequence[Flag] = (),
    unsure: Sequence[Dropped] = (),
    unmeasured: Mapping[str, int] | None = None,
    coverage: Sequence[str] = (),
) -> CurationReport:
    both = (*split.train, *split.holdout)
    waiting = _waiting(lesson)
    return CurationReport(
        project=project,
        feedback=feedback,
        train=_count(sample.kind for sample in split.train),
        holdout=_count(sample.kind for sample in split.holdout),
        slices=_count(sample.slice for sample in both),
        authors=_count(sample.author for sample in both),
        sources=_count(sample.origin for sample in both),
        new=len(lesson.new),
        rehearsal=len(lesson.rehearsal),
        dev=len(lesson.dev),
        waiting=waiting,
        replay=len(replay),
        dropped=_count(item.reason for item in dropped),
        details=tuple(dropped),
        unsure=tuple(unsure),
        unmeasured=dict(unmeasured or {}),
        coverage=tuple(coverage),
        warnings=tuple(_warnings(split, replay, settings, replay_wanted)),
        notes=tuple(_notes(waiting, flags, settings)),
    )


def _waiting(lesson: Lesson) -> dict[str, int]:
    of = {id: sample.author for sample in lesson.waiting for id in sample.feedback}
    return _count(of.values())


def _notes(waiting: Mapping[str, int], flags: Sequence[Flag], settings: Settings) -> Iterator[str]:
    for author, count in waiting.items():
        pieces = f"{count} {'pieces' if count > 1 else 'piece'} of {author}'s feedback"
        yield (
            f"{pieces} {'wait' if count > 1 else 'waits'} for a later turn: nobody may make up more than "
            f"{settings.author_share:.0%} of what a turn learns anew (author_share)."
        )
    for kind, one, more in (
        (
            "disagreement",
            "On 1 question people want opposite answers",
            "On {} questions people want opposite answers",
        ),
        ("trigger", "1 phrase seems planted", "{} phrases seem planted"),
    ):
        if count := sum(flag.kind == kind for flag in flags):
            told = one if count == 1 else more.format(count)
            yield f"{told}: nothing of it is learned until you have looked (comfyloop feedback flags)."
    yield from (flag.sentence for flag in flags if flag.kind == "change")


def _warnings(split: Split, replay: Sequence[Sample], settings: Settings, replay_wanted: int) -> list[str]:
    warnings = []
    judged = len({sample.group for sample in split.holdout if sample.kind in ("sft", "preference")})
    if judged < settings.gate_min_items:
        warnings.append(
            f"{judged} questions are held out, the gate needs {settings.gate_min_items}: "
            "it will not promote before there is more feedback."
        )
    if len(replay) < replay_wanted:
        warnings.append(
            f"{replay_wanted} replayed answers would make up the share of {settings.replay_share:.0%}, "
            f"{len(replay)} were there."
        )
    return warnings


def _count(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {word}" for word, n in numbers.items()) or "nothing"
