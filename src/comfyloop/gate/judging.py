"""The gate at work: both versions on the same held-out items, through the engine that serves them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from comfyloop import data_urls
from comfyloop.errors import Busy
from comfyloop.gate import suites
from comfyloop.gate.decision import Evidence, Pairs, decide
from comfyloop.gate.metrics import EDIT_DISTANCE, LOG_LIKELIHOOD, edit_distance, log_likelihood
from comfyloop.records import GateItem, GateReport, Message, Sample, TextPart
from comfyloop.settings import Settings

ALL = "all"
ACCEPTED = "accepted"
GENERAL = "general"

IN_FLIGHT = 4
"""Requests at a time: enough for the engine to batch, few enough to leave room for people."""

_BUSY_TRIES = 60
_LONGEST_ANSWER = 512  # tokens
PROMPT_TOKENS = 96
"""Longest prompt that is written for an image model."""

WireMessage = Mapping[str, Any]
"""A chat message as OpenAI's API spells it."""

Progress = Callable[[int, int], None]
"""Told how many items are done, of how many. May raise to stop the gate."""

_T = TypeVar("_T")


class Scored(Protocol):
    @property
    def logprobs(self) -> list[float]: ...


class Scorer(Protocol):
    """What the gate needs of an engine; `serve.client.EngineClient` is one. Called from several threads."""

    def answer(self, model: str, messages: Sequence[WireMessage], max_tokens: int) -> str:
        """The greedy answer."""
        ...

    def score(self, model: str, messages: Sequence[WireMessage], answer: str) -> Scored:
        """Log-probabilities of the tokens of `answer` after `messages`."""
        ...


@dataclass(frozen=True)
class _Seen:
    """One item as both versions saw it: (live, candidate)."""

    sample: Sample
    likelihood: tuple[float, float]
    answers: tuple[str, str] | None = None

    @property
    def gainful(self) -> tuple[float, float]:
        """The likelihood, so that more is better: an answer that was not wanted is to become less likely."""
        live, candidate = self.likelihood
        return (-live, -candidate) if self.sample.label is False else self.likelihood

    @property
    def distance(self) -> tuple[float, float] | None:
        if self.answers is None:
            return None
        live, candidate = self.answers
        return edit_distance(live, self.sample.answer), edit_distance(candidate, self.sample.answer)


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

    Raises:
        ComfyLoopError: The engine does not know a model, is down, or stays busy for a minute.
    """
    started = time.monotonic()
    asked = _References(engine, (live_name, candidate_name), base_name, images)
    corrections, accepted = _wanted(holdout, settings.gate_max_items)
    groups = {sample.group for sample in corrections}
    questions = suites.general_questions() if len(groups) >= settings.gate_min_items else ()
    remembered = suites.cached_answers(base_model, settings.cache_dir)
    # nothing is to come close to an answer that was only rated
    answered = [s for s in corrections if s.kind != "labelled"][: settings.gate_max_answers]
    work: list[Callable[[], _Seen | None]] = [
        *(lambda s=s: asked.look(s, answer=True) for s in answered),
        *(lambda s=s: asked.look(s) for s in corrections if s not in answered),
        *(lambda s=s: asked.look(s) for s in accepted),
        *(lambda q=q: asked.recall(q, project, remembered) for q in questions),
    ]
    before = len(remembered)
    try:
        seen = [item for item in _run(work, min(IN_FLIGHT, settings.max_batch), progress) if item is not None]
    finally:
        if len(remembered) > before:
            suites.keep_answers(base_model, settings.cache_dir, remembered)
    decision = decide(_evidence(seen), settings)
    return GateReport(
        project=project,
        live=live,
        candidate=candidate,
        verdict=decision.verdict,
        reasons=decision.reasons,
        measures=decision.measures,
        items=tuple(_gate_item(item) for item in seen),
        seconds=round(time.monotonic() - started, 3),
    )


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
    asked = {repr(sample.prompt): sample.prompt for sample in briefed}  # many pictures are made of one brief

    def write(prompt: tuple[Message, ...]) -> tuple[str, str]:
        wire = [_wire(message, images) for message in prompt]
        live, candidate = (
            " ".join(_patient(lambda name=name: engine.answer(name, wire, PROMPT_TOKENS)).split())  # type: ignore[misc]
            for name in (live_name, candidate_name)
        )
        return live, candidate

    work = [lambda prompt=prompt: write(prompt) for prompt in asked.values()]
    written = dict(zip(asked, _run(work, min(IN_FLIGHT, settings.max_batch), progress), strict=True))
    return {sample.id: written[repr(sample.prompt)] for sample in briefed}


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


class _References:
    """Asks both versions about references."""

    def __init__(
        self, engine: Scorer, names: tuple[str, str], base_name: str, images: Callable[[str], bytes]
    ) -> None:
        self._engine = engine
        self._names = names
        self._base_name = base_name
        self._images = images
        self._lock = threading.Lock()

    def look(self, sample: Sample, *, answer: bool = False) -> _Seen:
        """Both versions' likelihood of the sample's answer and, if asked for, their own answers."""
        live, candidate = self._names
        prompt = [_wire(message, self._images) for message in sample.prompt]
        first = _patient(lambda: self._engine.score(live, prompt, sample.answer))
        second = _patient(lambda: self._engine.score(candidate, prompt, sample.answer))
        likelihood = log_likelihood(first.logprobs), log_likelihood(second.logprobs)
        if not answer:
            return _Seen(sample, likelihood)
        room = min(len(first.logprobs) * 3 // 2 + 16, _LONGEST_ANSWER)
        return _Seen(
            sample,
            likelihood,
            (
                _patient(lambda: self._engine.answer(live, prompt, room)),
                _patient(lambda: self._engine.answer(candidate, prompt, room)),
            ),
        )

    def recall(self, question: str, project: str, remembered: dict[str, str]) -> _Seen | None:
        """Both versions' likelihood of the base model's answer, which is asked for at first use.

        None for a question to which the base model says nothing.
        """
        prompt = Message.of("user", question)
        wire = [_wire(prompt, self._images)]
        if (reference := remembered.get(question)) is None:
            reference = suites.ask_base(
                question,
                lambda _, tokens: _patient(lambda: self._engine.answer(self._base_name, wire, tokens)),
            )
            with self._lock:
                remembered[question] = reference
        if not reference:
            return None
        sample = Sample(
            id=f"general:{question}",
            project=project,
            kind="sft",
            messages=(prompt, Message.of("assistant", reference)),
            group=question,
            slice=GENERAL,
            replay=True,
        )
        return self.look(sample)


def _wire(message: Message, images: Callable[[str], bytes]) -> dict[str, Any]:
    if not message.images:
        return {"role": message.role, "content": message.text}
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "image_url", "image_url": {"url": data_urls.encode(images(part.sha256))}}
        for part in message.content
    ]
    return {"role": message.role, "content": parts}


def _patient(call: Callable[[], _T]) -> _T:
    """The call again while the engine's queue is full: people's requests come first."""
    for _ in range(_BUSY_TRIES):
        try:
            return call()
        except Busy as busy:
            time.sleep(min(busy.retry_after or 1.0, 5.0))
    return call()


def _run(work: Sequence[Callable[[], _T]], at_once: int, progress: Progress | None) -> list[_T]:
    """The results in the order of `work`. The first error, also one of `progress`, stops the rest."""
    tell = progress or (lambda done, total: None)
    tell(0, len(work))
    with ThreadPoolExecutor(at_once, thread_name_prefix="gate") as pool:
        futures: list[Future[_T]] = [pool.submit(item) for item in work]
        try:
            open_ones = set(futures)
            while open_ones:
                done, open_ones = wait(open_ones, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                tell(len(work) - len(open_ones), len(work))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _evidence(seen: Sequence[_Seen]) -> Evidence:
    general = [item for item in seen if item.sample.replay]
    accepted = [item for item in seen if _is_accepted(item.sample)]
    corrected = [item for item in seen if not (item.sample.replay or _is_accepted(item.sample))]
    names = sorted({item.sample.slice for item in corrected})
    by_slice = [
        pairs
        for name in (names if len(names) > 1 else ())
        for of in (_likelihoods, _distances)
        if (pairs := of(name, [item for item in corrected if item.sample.slice == name]))
    ]
    return Evidence(
        likelihood=_likelihoods(ALL, corrected),
        distance=_distances(ALL, corrected),
        slices=tuple(by_slice),
        accepted=_likelihoods(ACCEPTED, accepted),
        general=_likelihoods(GENERAL, general),
    )


def _likelihoods(name: str, seen: Sequence[_Seen]) -> Pairs | None:
    return by_groups(LOG_LIKELIHOOD, name, ((item.sample.group, item.gainful) for item in seen))


def _distances(name: str, seen: Sequence[_Seen]) -> Pairs | None:
    return by_groups(
        EDIT_DISTANCE,
        name,
        ((item.sample.group, item.distance) for item in seen if item.distance is not None),
    )


def by_groups(metric: str, name: str, values: Iterable[tuple[str, tuple[float, float]]]) -> Pairs | None:
    """One pair a group: answers to one question are no independent evidence, so they are averaged."""
    by_group: dict[str, list[tuple[float, float]]] = {}
    for group, pair in values:
        by_group.setdefault(group, []).append(pair)
    if not by_group:
        return None
    live, candidate = (
        tuple(math.fsum(pair[side] for pair in pairs) / len(pairs) for pairs in by_group.values())
        for side in (0, 1)
    )
    return Pairs(metric, name, live, candidate)


def _gate_item(item: _Seen) -> GateItem:
    sample, answers = item.sample, item.answers or ("", "")
    scores = {LOG_LIKELIHOOD: item.likelihood}
    if item.distance is not None:
        scores[EDIT_DISTANCE] = item.distance
    asked = next((message.text for message in reversed(sample.prompt) if message.role == "user"), "")
    return GateItem(
        sample=sample.id,
        slice=ACCEPTED if _is_accepted(sample) else sample.slice,
        question=asked,
        images=sample.images,
        reference=sample.answer,
        live_answer=answers[0],
        candidate_answer=answers[1],
        scores=scores,
    )
