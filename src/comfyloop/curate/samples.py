"""What a person did, turned into training examples.

One piece of feedback gives at most these::

    answer_edited    sft (the edit) and preference (the edit over the model's answer)
    answer_accepted  sft (the answer as it was, unless it was broken off)
    answer_rated     labelled: 4-5 wanted, 1-2 not wanted; 3 says neither
    prompt_edited    sft and preference for whoever writes image prompts
    graph_edited     sft: workflow and aim -> the edit as text (graph_text.py)
    sample_uploaded  the example as it is
    sample_reviewed  nothing of its own: it says what becomes of samples that others give (reviews.py)
    image_*          captioned_image, image_pair (pictures.py); sft and preference for the writer of the
                     prompt (prompts.py)

Of several claims of one person about one thing the newest counts: an edit or accept replaces the edit or accept
before it, a rating the rating before it, a pick the pick from the same images. A rating that contradicts that
person's edit (4-5 for an answer they rewrote) is left out, and of an accept and a bad rating the newer one stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from comfyloop.curate import graph, graph_text
from comfyloop.curate.corrections import words_in_order
from comfyloop.curate.groups import group_of
from comfyloop.records import (
    AnswerAccepted,
    AnswerEdited,
    AnswerRated,
    Box,
    Dropped,
    Feedback,
    Generation,
    GraphEdited,
    ImagePicked,
    ImageRated,
    Message,
    Part,
    PromptEdited,
    Sample,
    SampleKind,
    SampleReviewed,
    SampleUploaded,
    TextPart,
)

WRITE_PROMPT = "Write the prompt for an image model.\nBrief: {brief}"
"""What is asked when a prompt was edited that no model had written; the brief is the prompt before."""


@dataclass(frozen=True)
class Draft:
    """A sample before the filters.

    Attributes:
        replaces: The answer that the person saw and replaced, if there was one.
        answered: Filters whose doubts a person has answered, having looked at it; None: nobody has; empty: all of them.
        made_from: What it was before a filter mended it.
        to_review: It is learned only once a person has looked at it.
    """

    sample: Sample
    replaces: str | None = None
    answered: frozenset[str] | None = None
    made_from: Sample | None = None
    to_review: bool = False

    @cached_property
    def item(self) -> str:
        """What the review queue calls its content: the same for an answer and for its being preferred."""
        sample = self.made_from or self.sample
        return "item_" + _hash([[_plain(m) for m in sample.messages], sample.label, sample.picked])

    @cached_property
    def noted(self) -> dict[str, Any]:
        """What filters found in it and need again: a draft does not change."""
        return {}

    @cached_property
    def content(self) -> bytes:
        """What tells its sample from others: not runs of white space."""
        sample = self.sample
        turns = tuple((m.role, m.images, " ".join(m.text.split())) for m in sample.messages)
        rejected = None if sample.rejected is None else " ".join(sample.rejected.split())
        return _digest((sample.kind, turns, rejected, sample.label, sample.picked, sample.over, sample.crop))

    def question(self, same: Callable[[str], str]) -> str:
        """What tells its question from others: neither small words and marks, nor how a picture was saved.

        Args:
            same: From a picture to the first one that shows the same.
        """
        shown = tuple(tuple(map(same, images)) for images in self._asked[1])
        return _digest((self._asked[0], shown)).hex() if any(shown) else self._asked_alone

    @cached_property
    def _asked(self) -> tuple[bytes, tuple[tuple[str, ...], ...]]:
        prompt = self.sample.prompt or self.sample.messages
        said = [(message.role, words_in_order(message.text)) for message in prompt]
        return _digest(said), tuple(message.images for message in prompt)

    @cached_property
    def _asked_alone(self) -> str:
        return self._asked[0].hex()

    def is_answered(self, filter: str) -> bool:
        return self.answered is not None and (not self.answered or filter in self.answered)

    @cached_property
    def pictures(self) -> tuple[str, ...]:
        """The pictures that it teaches: those it asks about, and the one that a person picked."""
        picked = (self.sample.picked,) if self.sample.picked else ()
        return tuple(dict.fromkeys((*self.sample.images, *picked)))


@dataclass(frozen=True)
class Source:
    """Where a sample comes from: copied onto each sample of one piece of feedback."""

    project: str
    feedback: tuple[str, ...]
    origin: str
    author: str

    @classmethod
    def of(cls, *items: Feedback) -> Source:
        last = items[-1]
        return cls(last.project, tuple(item.id for item in items), last.kind, last.author)


def canonical(message: Message) -> Message:
    """The same message as a model reads it: adjacent texts joined, empty ones left out; one text if nothing is left."""
    parts: list[Part] = []
    for part in message.content:
        text = part.model_input
        last = parts[-1] if parts else None
        if text is None:
            parts.append(part)
        elif isinstance(last, TextPart):
            parts[-1] = TextPart(text=last.text + text)
        elif text:
            parts.append(TextPart(text=text))
    return Message(role=message.role, content=tuple(parts) or (TextPart(text=""),))


def make(
    kind: SampleKind,
    messages: Iterable[Message],
    source: Source,
    *,
    rejected: str | None = None,
    label: bool | None = None,
    picked: str | None = None,
    over: str | None = None,
    slice: str | None = None,
    replay: bool = False,
    repeats: int = 1,
    crop: Box | None = None,
) -> Sample:
    """A sample with its id (hash of the content), group and slice worked out.

    The last message is the answer; of image kinds it is the prompt, which may stand alone as the user's.
    """
    turns = tuple(canonical(message) for message in messages)
    prompt = turns[:-1] or turns
    content: list[Any] = [kind, [_plain(m) for m in turns], rejected, label, picked, over, replay]
    if crop is not None:
        content.append(crop)
    return Sample(
        id=_hash(content),
        project=source.project,
        kind=kind,
        messages=turns,
        rejected=rejected,
        label=label,
        picked=picked,
        over=over,
        group=("replay:" if replay else "") + group_of(prompt),
        slice=slice or ("vision" if any(m.images for m in prompt) else "text"),
        replay=replay,
        feedback=source.feedback,
        origin=source.origin,
        author=source.author,
        repeats=repeats,
        crop=crop,
    )


def _plain(message: Message) -> dict[str, Any]:
    """What `model_dump` gives, in a tenth of the time."""
    return {
        "role": message.role,
        "content": [
            {"type": "text", "text": part.text}
            if isinstance(part, TextPart)
            else {"type": part.type, "sha256": part.blob}
            for part in message.content
        ],
    }


def _digest(content: object) -> bytes:
    return hashlib.blake2b(repr(content).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _hash(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def newest(items: Sequence[Feedback]) -> tuple[list[Feedback], list[Dropped]]:
    """Leaves out what its author has since replaced; `items` are in order of arrival, which is kept.

    "Newest" is by `created_at` (when the person did it), ties by arrival.
    """
    by_target: dict[tuple[str, ...], list[int]] = {}
    for index, item in enumerate(items):
        if (about := target(item)) is not None:
            by_target.setdefault((item.author, *about), []).append(index)
    replaced_by: dict[int, str] = {}
    for indices in by_target.values():
        indices.sort(key=lambda i: (items[i].created_at, i))
        for i in indices[:-1]:
            replaced_by[i] = items[indices[-1]].id
    _contradictions(items, by_target, replaced_by)
    kept = [item for i, item in enumerate(items) if i not in replaced_by]
    dropped = [
        Dropped(feedback=items[i].id, reason="superseded", detail=f"by {newer}")
        for i, newer in sorted(replaced_by.items())
    ]
    return kept, dropped


def target(item: Feedback) -> tuple[str, ...] | None:
    """What one person can say only one thing about; None where every piece of feedback stands alone."""
    match item:
        case AnswerEdited() | AnswerAccepted():
            return ("answer", item.generation)
        case AnswerRated():
            return ("rating", item.generation)
        case PromptEdited(generation=str() as generation):
            return ("prompt", generation)
        case ImageRated():
            return ("image", item.image)
        case ImagePicked():
            return ("pick", item.prompt, *sorted({*item.picked, *item.over}))
        case _:
            return None


def _contradictions(
    items: Sequence[Feedback], by_target: Mapping[tuple[str, ...], list[int]], replaced_by: dict[int, str]
) -> None:
    for (author, what, *rest), ratings in by_target.items():
        answers = by_target.get((author, "answer", *rest)) if what == "rating" else None
        if not answers:
            continue
        rating, answer = items[ratings[-1]], items[answers[-1]]
        assert isinstance(rating, AnswerRated)
        if isinstance(answer, AnswerEdited) and rating.rating >= 4:
            replaced_by[ratings[-1]] = answer.id
        elif isinstance(answer, AnswerAccepted) and rating.rating <= 2:
            if (answer.created_at, answers[-1]) > (rating.created_at, ratings[-1]):
                replaced_by[ratings[-1]] = answer.id
            else:
                replaced_by[answers[-1]] = rating.id


def drafts_of(item: Feedback, generations: Mapping[str, Generation]) -> tuple[list[Draft], Dropped | None]:
    """The drafts that one piece of feedback about texts gives, or why it gives none."""
    source = Source.of(item)
    generation = None
    if isinstance(item, AnswerEdited | AnswerAccepted | AnswerRated | PromptEdited) and item.generation:
        generation = generations.get(item.generation)
        if generation is None:
            return [], Dropped(feedback=item.id, reason="no_generation", detail=item.generation)
    match item:
        case AnswerEdited():
            assert generation is not None
            return _edit(generation.messages, item.edited, generation.answer, source), None
        case AnswerAccepted():
            assert generation is not None
            if generation.broken_off:
                return [], _broken_off(item, generation)
            return [Draft(make("sft", _with(generation.messages, generation.answer), source))], None
        case AnswerRated():
            assert generation is not None
            if item.rating == 3:
                return [], Dropped(feedback=item.id, reason="neutral", detail="3 of 5")
            if item.rating > 3 and generation.broken_off:
                return [], _broken_off(item, generation)
            messages = _with(generation.messages, generation.answer)
            return [Draft(make("labelled", messages, source, label=item.rating > 3))], None
        case PromptEdited():
            seen = generation.answer if generation else item.before
            asked = (
                generation.messages
                if generation
                else (Message.of("user", WRITE_PROMPT.format(brief=item.before)),)
            )
            return _edit(asked, item.after, seen, source, slice="prompt"), None
        case GraphEdited():
            return _graph_edit(item, source)
        case SampleUploaded():
            return [Draft(_uploaded(item, source), item.rejected, to_review=item.to_review)], None
        case ImagePicked() | ImageRated():
            raise TypeError("feedback about images is for pictures.py")
        case SampleReviewed():
            raise TypeError("decisions are for reviews.py")


def _broken_off(item: Feedback, generation: Generation) -> Dropped:
    return Dropped(feedback=item.id, reason="broken_off", detail=generation.finish_reason)


def _with(messages: Sequence[Message], answer: str) -> tuple[Message, ...]:
    return (*messages, Message.of("assistant", answer))


def _edit(
    asked: Sequence[Message], edited: str, seen: str, source: Source, slice: str | None = None
) -> list[Draft]:
    messages = _with(asked, edited.strip())
    return [
        Draft(make("sft", messages, source, slice=slice), seen),
        Draft(make("preference", messages, source, rejected=seen, slice=slice), seen),
    ]


def _graph_edit(item: GraphEdited, source: Source) -> tuple[list[Draft], Dropped | None]:
    try:
        before, after = graph.parse(item.before), graph.parse(item.after)
    except ValueError as error:
        return [], Dropped(feedback=item.id, reason="broken_graph", detail=str(error))
    before, after = before.without(graph_text.hidden), after.without(graph_text.hidden)
    change = graph.diff(before, after)
    if not change:
        return [], Dropped(feedback=item.id, reason="unchanged", detail="nothing but ids, layout or seeds")
    if len(change) > graph.MOST_STEPS:
        return [], Dropped(feedback=item.id, reason="large_edit", detail=f"{len(change)} steps")
    near, change = graph.around(before, change)
    question, answer = graph_text.question(near, item.aim), graph_text.describe(near, change)
    if len(question) + len(answer) > graph_text.LONGEST:
        near, change = graph.around(before, change, hops=0)
        question = graph_text.question(near, item.aim)
    if len(question) + len(answer := graph_text.describe(near, change)) > graph_text.LONGEST:
        return [], Dropped(
            feedback=item.id, reason="large_edit", detail=f"{len(question) + len(answer)} characters"
        )
    messages = (Message.of("user", question), Message.of("assistant", answer))
    return [Draft(make("sft", messages, source, slice="graph"))], None


def _uploaded(item: SampleUploaded, source: Source) -> Sample:
    kind: SampleKind = (
        "preference" if item.rejected is not None else "sft" if item.label is None else "labelled"
    )
    return make(kind, item.messages, source, rejected=item.rejected, label=item.label)
