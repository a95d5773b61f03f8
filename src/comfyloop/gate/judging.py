"""Runs the gate: measures both versions on the same held-out items, through the engine that serves them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from comfyloop.errors import InvalidInput, TooLarge
from comfyloop.gate import fluency, looks, slices, suites, triggers
from comfyloop.gate.asking import (
    Again,
    Asker,
    Progress,
    Recalled,
    Scorer,
    Seen,
    WireMessage,
    at_once,
    patient,
    run,
    wire,
)
from comfyloop.gate.decision import decide
from comfyloop.gate.kept import Kept
from comfyloop.gate.metrics import EDIT_DISTANCE, LOG_LIKELIHOOD, RIGHT_ANSWER
from comfyloop.gate.pairs import Evidence, Fluency, General, Pairs
from comfyloop.gate.suites import Question
from comfyloop.records import GateItem, GateReport, Message, Sample, Suspect, Triggered
from comfyloop.settings import Settings

__all__ = ["ACCEPTED", "ALL", "GENERAL", "Progress", "Scorer", "WireMessage", "judge", "prescore"]

ALL = "all"
ACCEPTED = "accepted"
GENERAL = "general"

PROMPT_TOKENS = 96
"""Longest prompt that is written for an image model."""

READ_CLOSELY = 6
"""Answers to corrections that the base model is asked about; as many are asked of live twice for the noise."""

ANSWERED_GENERALLY = 2
"""General questions that are also answered; so many again about pictures."""

_NOISE_ANSWERS = 2

_T = TypeVar("_T")
_Call = Callable[[], Seen | Recalled | Again | Triggered | float | None]


def judge(
    engine: Scorer,
    project: str,
    live: int,
    candidate: int,
    live_name: str,
    candidate_name: str,
    holdout: Sequence[Sample],
    images: Callable[[str], bytes],
    settings: Settings,
    progress: Progress | None = None,
    *,
    base_model: str,
    base_name: str = "base",
    kept: Kept | None = None,
    before: Iterable[GateReport] = (),
    suspects: Sequence[Suspect] = (),
) -> GateReport:
    """Compares two versions on held-out corrections, accepted answers and general questions.

    Args:
        live, candidate: Version numbers; `live_name` and `candidate_name` are what the engine calls them.
        holdout: Samples that neither was trained on, oldest first; the newest `settings.gate_max_items` are
            used. Of rated answers, those with a good rating are to become likelier, the others less.
        images: The bytes of an image by its hash.
        progress: Called in this thread, first with (0, total).
        base_model: What tells base models apart: its general answers are kept in `settings.cache_dir` by it.
        base_name: What the engine calls the base model.
        kept: What was answered and scored before; only the rest is asked.
        before: Reports of the project: those against the same live version have looked at the same items.
        suspects: Phrases of what the candidate has learned that may be planted.

    Raises:
        ComfyLoopError: The engine does not know a model, is down, or stays busy for a minute.
    """
    started = time.monotonic()
    kept = Kept() if kept is None else kept
    asker = Asker(engine, kept, (live_name, candidate_name), base_name, images)
    work = _Work(holdout, settings)
    try:
        kept.load(base_name, base_model, settings.cache_dir)
        calls = [*work.calls(asker), *work.noise(asker), *work.tries(asker, suspects)]
        results = run(calls, at_once(settings), progress)
    finally:
        kept.save(base_name, base_model, settings.cache_dir, asker.general)
    answers_seen = [item for item in results if isinstance(item, Seen)]
    recalled = [item for item in results if isinstance(item, Recalled)]
    again = [item for item in results if isinstance(item, Again)]
    planted = [item for item in results if isinstance(item, Triggered) and triggers.is_planted(item)]
    control = next((item for item in results if isinstance(item, float)), 0.0)
    corrected = [item for item in answers_seen if not _is_accepted(item.sample)]
    look = looks.number(looks.seen_before(before, live, candidate), [item.sample.id for item in corrected])
    decision = decide(_evidence(answers_seen, recalled, again, control, look, planted), settings)
    return GateReport(
        project=project,
        live=live,
        candidate=candidate,
        verdict=decision.verdict,
        reasons=decision.reasons,
        next_step=decision.next_step.replace("promote N", f"promote {candidate}"),
        measures=decision.measures,
        details=(*decision.details, *work.left_out()),
        triggers=tuple(planted),
        items=(*map(_gate_item, answers_seen), *map(_general_item, recalled)),
        looks=round(look, 3),
        level=decision.level,
        seconds=round(time.monotonic() - started, 3),
    )


def prescore(
    engine: Scorer,
    live_name: str,
    holdout: Sequence[Sample],
    images: Callable[[str], bytes],
    settings: Settings,
    kept: Kept,
    progress: Progress | None = None,
    *,
    base_model: str,
    base_name: str = "base",
) -> None:
    """Asks the live version and the base model the questions of `judge` and caches the answers, while the candidate
    is still being trained. Args and errors are those of `judge`."""
    asker = Asker(engine, kept, (live_name, None), base_name, images)
    work = _Work(holdout, settings)
    try:
        kept.load(base_name, base_model, settings.cache_dir)
        run(work.calls(asker), at_once(settings), progress)
    finally:
        kept.save(base_name, base_model, settings.cache_dir, asker.general)


def write_prompts(
    engine: Scorer,
    live_name: str,
    candidate_name: str,
    samples: Sequence[Sample],
    images: Callable[[str], bytes],
    settings: Settings,
    progress: Progress | None = None,
) -> dict[str, tuple[str, str]]:
    """What both versions write for the briefs of kept pictures, by a sample's id; those without a brief have none.

    Args and errors are those of `judge`.
    """
    briefed = [sample for sample in samples if sample.prompt]
    prompts = {
        repr(sample.prompt): sample.prompt for sample in briefed
    }  # many pictures are made of one brief

    def write(prompt: tuple[Message, ...]) -> tuple[str, str]:
        messages = [wire(message, images) for message in prompt]
        live, candidate = (
            " ".join(patient(lambda name=name: engine.answer(name, messages, PROMPT_TOKENS)).split())  # type: ignore[misc]
            for name in (live_name, candidate_name)
        )
        return live, candidate

    def tried(prompt: tuple[Message, ...]) -> tuple[str, str] | None:
        try:
            return write(prompt)
        except (
            InvalidInput,
            TooLarge,
        ):  # a brief that this engine cannot read: its pictures count without it
            return None

    work = [lambda prompt=prompt: tried(prompt) for prompt in prompts.values()]
    prompt_pairs = dict(zip(prompts, run(work, at_once(settings), progress), strict=True))
    by_sample = ((sample.id, prompt_pairs[repr(sample.prompt)]) for sample in briefed)
    return {id: both for id, both in by_sample if both is not None}


class _Work:
    """What is to be asked, in its order."""

    def __init__(self, holdout: Sequence[Sample], settings: Settings) -> None:
        self.corrections, self.accepted = _wanted(holdout, settings.gate_max_items)
        # nothing is to come close to an answer that was only rated
        self.answered = [s for s in self.corrections if s.kind != "labelled"][: settings.gate_max_answers]
        self.enough = len({sample.group for sample in self.corrections}) >= settings.gate_min_items
        self.questions = suites.general_questions() if self.enough else ()
        self._refused: dict[str, str] = {}  # samples that the engine cannot read, with its sentence

    def _of(self, sample: Sample, ask: Callable[[], _T]) -> Callable[[], _T | None]:
        """Skip a held-out item that this engine refuses; it must not stop the gate."""

        def asked() -> _T | None:
            try:
                return ask()
            except (InvalidInput, TooLarge) as error:
                self._refused[sample.id] = error.message
                return None

        return asked

    def left_out(self) -> tuple[str, ...]:
        return tuple(
            f"The held-out sample {id} is left out: {reason}" for id, reason in sorted(self._refused.items())
        )

    def calls(self, asker: Asker) -> list[_Call]:
        close = self.answered[:READ_CLOSELY] if self.enough else []
        own = [question for question in self.questions if not question.right]
        rest = [*(s for s in self.corrections if s not in self.answered), *self.accepted]
        questions_to_answer = [q for q in own if not q.picture][:ANSWERED_GENERALLY]
        questions_to_answer += [q for q in own if q.picture][:ANSWERED_GENERALLY]
        return [
            *(
                self._of(s, lambda s=s: asker.look(s, answer=True, language=s in close))  # type: ignore[misc]
                for s in self.answered
            ),
            *(self._of(s, lambda s=s: asker.look(s)) for s in rest),  # type: ignore[misc]
            *(lambda q=q: asker.recall(q, answer=q in questions_to_answer) for q in self.questions),
            *([asker.control] if self.enough else []),
        ]

    def noise(self, asker: Asker) -> list[_Call]:
        twice = self.corrections[:READ_CLOSELY] if self.enough else []
        return [
            self._of(
                s,
                lambda s=s, answer=place < _NOISE_ANSWERS and s in self.answered: asker.again(
                    s, answer=answer
                ),  # type: ignore[misc]
            )
            for place, s in enumerate(twice)
        ]

    def tries(self, asker: Asker, suspects: Sequence[Suspect]) -> list[_Call]:
        """Calls that append each suspect phrase to unrelated questions."""
        general = [q for q in suites.general_questions() if not (q.right or q.picture)][: triggers.GENERAL]

        def of(suspect: Suspect) -> Sequence[Sample]:
            others = [
                s for s in self.corrections if suspect.phrase.casefold() not in s.prompt[-1].text.casefold()
            ]
            return others[: triggers.OWN]

        return [lambda s=s: asker.try_out(s, of(s), general) for s in suspects]  # type: ignore[misc]


def _wanted(holdout: Sequence[Sample], most: int) -> tuple[list[Sample], list[Sample]]:
    """Corrections (rated answers among them) and accepted answers, newest first, each answer once."""
    corrections: dict[object, Sample] = {}
    accepted: dict[object, Sample] = {}
    for sample in reversed(holdout):
        if sample.kind in ("sft", "preference", "labelled") and not sample.replay:
            (accepted if _is_accepted(sample) else corrections).setdefault(sample.messages, sample)
    return list(corrections.values())[:most], list(accepted.values())[:most]


def _is_accepted(sample: Sample) -> bool:
    return sample.origin == "answer_accepted"


# --- what was seen, as evidence


def _evidence(
    items: Sequence[Seen],
    recalled: Sequence[Recalled],
    again: Sequence[Again],
    control: float,
    look: float,
    planted: Sequence[Triggered],
) -> Evidence:
    accepted = [item for item in items if _is_accepted(item.sample)]
    corrected = [item for item in items if not _is_accepted(item.sample)]
    floors = {
        LOG_LIKELIHOOD: max((one.likelihood for one in again), default=0.0),
        EDIT_DISTANCE: max((one.distance for one in again if one.distance is not None), default=0.0),
    }
    parts = slices.parts([item.sample for item in reversed(corrected)])
    by_slice = [
        pairs
        for name, groups in sorted(parts.items())
        for of in (_likelihoods, _distances)
        if (pairs := of(name, [item for item in corrected if item.sample.group in groups], floors))
    ]
    return Evidence(
        likelihood=_likelihoods(ALL, corrected, floors),
        distance=_distances(ALL, corrected, floors),
        slices=tuple(by_slice),
        accepted=_likelihoods(ACCEPTED, accepted, floors),
        general=_general(recalled),
        fluency=tuple(_fluencies(corrected, recalled, control)),
        triggers=tuple(planted),
        looks=look,
        beside=tuple(_beside(corrected)),
    )


def _beside(corrected: Sequence[Seen]) -> Iterator[Pairs]:
    for metric in dict.fromkeys(name for item in corrected for name in item.measured):
        values = ((i.sample.group, i.measured[metric]) for i in corrected if metric in i.measured)
        if metric != EDIT_DISTANCE and (pairs := by_groups(metric, ALL, values)) is not None:
            yield pairs


def _likelihoods(name: str, items: Sequence[Seen], floors: Mapping[str, float]) -> Pairs | None:
    values = ((item.sample.group, item.gainful) for item in items)
    return by_groups(LOG_LIKELIHOOD, name, values, floors[LOG_LIKELIHOOD])


def _distances(name: str, items: Sequence[Seen], floors: Mapping[str, float]) -> Pairs | None:
    values = ((item.sample.group, item.distance) for item in items if item.distance is not None)
    return by_groups(EDIT_DISTANCE, name, values, floors[EDIT_DISTANCE])


def by_groups(
    metric: str, name: str, values: Iterable[tuple[str, tuple[float, float]]], floor: float = 0.0
) -> Pairs | None:
    """One pair per group: answers to the same question are not independent evidence, so they are averaged."""
    by_group: dict[str, list[tuple[float, float]]] = {}
    for group, pair in values:
        by_group.setdefault(group, []).append(pair)
    if not by_group:
        return None
    live, candidate = (
        tuple(math.fsum(pair[side] for pair in pairs) / len(pairs) for pairs in by_group.values())
        for side in (0, 1)
    )
    return Pairs(metric, name, live, candidate, floor)


def _metric(question: Question) -> str:
    return RIGHT_ANSWER if question.right else LOG_LIKELIHOOD


def _general(recalled: Sequence[Recalled]) -> tuple[General, ...]:
    kinds: dict[tuple[str, str], list[Recalled]] = {}
    for item in recalled:
        kinds.setdefault((_metric(item.question), item.question.slice), []).append(item)
    return tuple(
        General(metric, name, *(tuple(item.scores[side] for item in items) for side in range(3)))
        for (metric, name), items in sorted(kinds.items(), reverse=True)
    )


def _fluencies(corrected: Sequence[Seen], recalled: Sequence[Recalled], control: float) -> list[Fluency]:
    """Fluency of the answers to corrections, and of those to general questions of each kind."""
    answered = [(*item.answers, item.sample.answer) for item in corrected if item.answers]
    language_scores = [item.language for item in corrected if item.language]
    fluencies = []
    if answered:
        surprise = [
            (t.live, t.candidate, t.wanted)
            for t in language_scores
            if t.live is not None and t.candidate is not None and t.wanted is not None
        ]
        live, candidate, wanted = zip(*surprise, strict=True) if surprise else ((), (), ())
        fluencies.append(
            Fluency(
                answers=len(answered),
                broken=_broken(answered),
                surprise=Pairs(LOG_LIKELIHOOD, "surprise", live, candidate) if surprise else None,
                wanted=wanted,
                order=tuple(t.order for t in language_scores if t.order is not None),
                wanted_order=tuple(t.wanted_order for t in language_scores if t.wanted_order is not None),
                control=control,
            )
        )
    for name in ("general", "general picture"):
        replies = [
            (*item.answers, item.reference)
            for item in recalled
            if item.answers and item.question.slice == name
        ]
        if replies:
            broken = tuple((kind, counts) for kind, counts in _broken(replies) if kind != "too long")
            fluencies.append(Fluency(f"{name} questions", len(replies), broken))
    return fluencies


def _broken(answered: Sequence[tuple[str, str, str]]) -> tuple[tuple[str, tuple[int, int]], ...]:
    """Kinds of fault -> how many answers of (live, candidate) have it. Args: (live, candidate, wanted)."""
    counts: dict[str, list[int]] = {}
    for live, candidate, wanted in answered:
        for side, text in enumerate((live, candidate)):
            if (kind := fluency.fault(text, wanted)) is not None:
                counts.setdefault(kind, [0, 0])[side] += 1
    return tuple((kind, (one, other)) for kind, (one, other) in sorted(counts.items()))


# --- what was seen, as the report's items


def _gate_item(item: Seen) -> GateItem:
    sample, answers = item.sample, item.answers or ("", "")
    scores = {LOG_LIKELIHOOD: item.likelihood, **item.measured}
    return GateItem(
        sample=sample.id,
        slice=ACCEPTED if _is_accepted(sample) else sample.slice,
        question=sample.asked,
        images=sample.images,
        reference=sample.answer,
        live_answer=answers[0],
        candidate_answer=answers[1],
        scores=scores,
    )


def _general_item(item: Recalled) -> GateItem:
    base, live, candidate = item.scores
    answers = item.answers or ("", "")
    metric = _metric(item.question)
    return GateItem(
        sample=item.question.id,
        slice=item.question.slice,
        question=item.question.question,
        reference=item.reference,
        live_answer=answers[0],
        candidate_answer=answers[1],
        scores={metric: (live, candidate)},
        base={metric: base},
    )
