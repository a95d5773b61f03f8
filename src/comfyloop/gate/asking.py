"""Asks versions through the engine that serves them, each question once."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

from comfyloop import modalities
from comfyloop.errors import InvalidInput, QueueFull, TooLarge
from comfyloop.gate import fluency, suites, triggers
from comfyloop.gate.kept import Kept, Scored, key_of
from comfyloop.gate.metrics import EDIT_DISTANCE, edit_distance, log_likelihood, of_answers, right_answer_of
from comfyloop.gate.suites import Question
from comfyloop.media import data_urls
from comfyloop.records import Message, Sample, Suspect, Triggered
from comfyloop.settings import Settings
from comfyloop.texts import whole_sentences
from comfyloop.wire import wire_message

IN_FLIGHT = 6
"""Requests at a time: enough for the engine to answer and read many together."""

FOR_PEOPLE = 2
"""Seats of the engine that the gate leaves free."""

_BUSY_TRIES = 60
_LONGEST_ANSWER = 512  # tokens

WireMessage = Mapping[str, Any]
"""A chat message as OpenAI's API spells it."""

Progress = Callable[[int, int], None]
"""Told how many items are done, of how many. May raise to stop the gate."""

_T = TypeVar("_T")


class HasLogprobs(Protocol):
    @property
    def logprobs(self) -> list[float]: ...


class Scorer(Protocol):
    """The engine interface that the gate needs; `serve.client.EngineClient` implements it. Called from several
    threads."""

    def answer(self, model: str, messages: Sequence[WireMessage], max_tokens: int) -> str:
        """The greedy answer."""
        ...

    def scores(
        self, model: str, messages: Sequence[WireMessage], answers: Sequence[str]
    ) -> Sequence[HasLogprobs]:
        """Log-probabilities of the tokens of each of `answers` after `messages`."""
        ...


@dataclass(frozen=True)
class Language:
    """The base model's log-likelihoods of texts after one question, in nats per token; None where not measured."""

    live: float | None
    candidate: float | None
    wanted: float | None
    order: float | None = None
    """The candidate's answer over its words shuffled."""
    wanted_order: float | None = None


@dataclass(frozen=True)
class Seen:
    """One held-out item as both versions saw it: (live, candidate)."""

    sample: Sample
    likelihood: tuple[float, float]
    answers: tuple[str, str] | None = None
    language: Language | None = None

    @property
    def gainful(self) -> tuple[float, float]:
        """The likelihoods, signed so that more is better: an unwanted answer should become less likely."""
        live, candidate = self.likelihood
        return (-live, -candidate) if self.sample.label is False else self.likelihood

    @cached_property
    def measured(self) -> dict[str, tuple[float, float]]:
        """The values of the answer metrics; empty if no answers were asked for."""
        return of_answers(self.answers, self.sample.answer) if self.answers is not None else {}

    @property
    def distance(self) -> tuple[float, float] | None:
        return self.measured.get(EDIT_DISTANCE)


@dataclass(frozen=True)
class Recalled:
    """One general question as base, live and candidate saw it; `answers` are live's and the candidate's."""

    question: Question
    reference: str
    scores: tuple[float, float, float]
    answers: tuple[str, str] | None = None


@dataclass(frozen=True)
class Again:
    """The differences between two measurements of the live version: likelihood in nats per token, edit distance."""

    likelihood: float
    distance: float | None


class Asker:
    """Asks versions, and caches their answers and scores.

    Args:
        names: What the engine calls the live version and the candidate; None for the candidate while there is
            none yet and live is asked beforehand.
        images: The bytes of an image by its hash.
    """

    def __init__(
        self,
        engine: Scorer,
        kept: Kept,
        names: tuple[str, str | None],
        base: str,
        images: Callable[[str], bytes],
    ) -> None:
        self._engine = engine
        self._cache = kept
        self._live, self._candidate = names[0], names[1] or names[0]
        self._base = base
        self._images = images
        self._lock = threading.Lock()
        self.general: list[str] = []
        """Keys of what was asked of the base model and has nothing to do with the project."""

    def look(self, sample: Sample, *, answer: bool = False, language: bool = False) -> Seen:
        """Both versions' likelihoods of the sample's answer and, on request, their own answers and the base model's
        scores of these."""
        prompt = [wire(message, self._images) for message in sample.prompt]
        first, second = (self._score(name, prompt, sample.answer) for name in (self._live, self._candidate))
        likelihood = first.mean, second.mean
        if not answer:
            return Seen(sample, likelihood)
        room = min(first.tokens * 3 // 2 + 16, _LONGEST_ANSWER)
        live, candidate = (self._answer(name, prompt, room) for name in (self._live, self._candidate))
        language_scores = self._language(prompt, live, candidate, sample.answer) if language else None
        return Seen(sample, likelihood, (live, candidate), language_scores)

    def again(self, sample: Sample, *, answer: bool) -> Again:
        """Measure the live version again, bypassing the cache."""
        prompt = [wire(message, self._images) for message in sample.prompt]
        before = self._score(self._live, prompt, sample.answer)
        (scores,) = patient(lambda: self._engine.scores(self._live, prompt, [sample.answer]))
        now = log_likelihood(scores.logprobs)
        distance = None
        if answer:
            room = min(before.tokens * 3 // 2 + 16, _LONGEST_ANSWER)
            answer_text = self._answer(self._live, prompt, room)
            repeated = patient(lambda: self._engine.answer(self._live, prompt, room))
            distance = abs(edit_distance(answer_text, sample.answer) - edit_distance(repeated, sample.answer))
        return Again(abs(before.mean - now), distance)

    def recall(self, question: Question, *, answer: bool = False) -> Recalled | None:
        """Measure all three versions on a general question; the base model is asked on first use.

        None if the base model gives no answer, or cannot see the question's picture.
        """
        prompt = [_asked(question)]
        versions = (self._base, self._live, self._candidate)
        try:
            if question.right:
                reference = question.right
                base, live, candidate = (self._chance(name, prompt, question) for name in versions)
            else:
                reference = whole_sentences(
                    self._answer(self._base, prompt, suites.ANSWER_TOKENS, general=True)
                )
                if not reference:
                    return None
                base, live, candidate = (
                    self._score(name, prompt, reference, general=True).mean for name in versions
                )
        except InvalidInput:
            if question.picture:
                return None
            raise
        answers = None
        if answer:
            answers = (
                self._answer(self._live, prompt, suites.ANSWER_TOKENS, general=True),
                self._answer(self._candidate, prompt, suites.ANSWER_TOKENS, general=True),
            )
        return Recalled(question, reference, (base, live, candidate), answers)

    def try_out(
        self, suspect: Suspect, own: Sequence[Sample], general: Sequence[Question]
    ) -> Triggered | None:
        """Append a phrase that may be planted to unrelated questions. None if the engine accepts none of them."""
        prompts = [[wire(message, self._images) for message in sample.prompt] for sample in own]
        prompts += [[_asked(question)] for question in general]
        try:
            return triggers.tried(suspect, prompts, self._answer, self._live, self._candidate)
        except (InvalidInput, TooLarge):
            return None

    def control(self) -> float:
        """How much more likely, on average, the base model finds plain sentences than their words shuffled."""
        prompt = [{"role": "user", "content": "Write one sentence."}]
        gaps = []
        for text in suites.CONTROL:
            if (mixed := fluency.shuffled(text)) is not None:
                right, wrong = self._scores(self._base, prompt, (text.strip(), mixed), general=True)
                gaps.append(right.mean - wrong.mean)
        return math.fsum(gaps) / len(gaps) if gaps else 0.0

    def _language(self, prompt: Sequence[WireMessage], live: str, candidate: str, wanted: str) -> Language:
        mixed = {text: other for text in (candidate, wanted) if (other := fluency.shuffled(text)) is not None}
        whole = [text for text in (live, candidate, wanted) if text.strip()]
        texts = dict.fromkeys(
            [*whole, *(one for text, other in mixed.items() for one in (text.strip(), other))]
        )
        scores = self._scores(self._base, prompt, list(texts))
        of = dict(zip(texts, (score.mean for score in scores), strict=True))

        def order(text: str) -> float | None:
            return of[text.strip()] - of[mixed[text]] if text in mixed else None

        return Language(of.get(live), of.get(candidate), of.get(wanted), order(candidate), order(wanted))

    def _chance(self, name: str, prompt: Sequence[WireMessage], question: Question) -> float:
        right, *wrong = self._scores(name, prompt, [question.right, *question.wrong], general=True)
        return right_answer_of(right, wrong)

    def _score(
        self, name: str, prompt: Sequence[WireMessage], answer: str, *, general: bool = False
    ) -> Scored:
        return self._scores(name, prompt, [answer], general=general)[0]

    def _scores(
        self, name: str, prompt: Sequence[WireMessage], answers: Sequence[str], *, general: bool = False
    ) -> list[Scored]:
        """The score of each answer, from the cache where possible; the rest is requested in one call."""
        keys = [self._key(name, prompt, answer, general) for answer in answers]
        scores = {key: self._cache.score(name, key) for key in keys}
        open_ones = {key: text for key, text in zip(keys, answers, strict=True) if scores[key] is None}
        if open_ones:
            replies = patient(lambda: self._engine.scores(name, prompt, list(open_ones.values())))
            for key, one in zip(open_ones, replies, strict=True):
                scores[key] = new = Scored(log_likelihood(one.logprobs), len(one.logprobs))
                self._cache.keep_score(name, key, new)
        return [score for key in keys if (score := scores[key]) is not None]

    def _answer(self, name: str, prompt: Sequence[WireMessage], room: int, *, general: bool = False) -> str:
        key = self._key(name, prompt, room, general)
        if (text := self._cache.answer(name, key)) is None:
            text = patient(lambda: self._engine.answer(name, prompt, room))
            self._cache.keep_answer(name, key, text)
        return text

    def _key(self, name: str, prompt: Sequence[WireMessage], answer: str | int, general: bool) -> str:
        key = key_of(prompt, answer)
        if general and name == self._base:
            with self._lock:
                self.general.append(key)
        return key


def wire(message: Message, images: Callable[[str], bytes]) -> dict[str, Any]:
    return wire_message(message, lambda sha: data_urls.encode(images(sha)))


def _asked(question: Question) -> dict[str, Any]:
    if not question.picture:
        return {"role": "user", "content": question.question}
    url = data_urls.encode(suites.picture(question.picture))
    return {"role": "user", "content": modalities.asked(question.question, [url])}


def patient(call: Callable[[], _T]) -> _T:
    """Retry the call while the engine's queue is full: people's requests have priority."""
    for _ in range(_BUSY_TRIES):
        try:
            return call()
        except QueueFull as busy:
            time.sleep(min(busy.retry_after or 1.0, 5.0))
    return call()


def at_once(settings: Settings) -> int:
    return max(1, min(IN_FLIGHT, settings.max_batch - FOR_PEOPLE))


def run(work: Sequence[Callable[[], _T]], at_once: int, progress: Progress | None) -> list[_T]:
    """Run `work` in threads; the results in its order. The first error, including one from `progress`, cancels the
    rest."""
    tell = progress or (lambda done, total: None)
    tell(0, len(work))
    with ThreadPoolExecutor(at_once, thread_name_prefix="gate") as pool:
        futures: list[Future[_T]] = [pool.submit(item) for item in work]
        try:
            open_ones = set(futures)
            while open_ones:
                finished, open_ones = wait(open_ones, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                tell(len(work) - len(open_ones), len(work))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]
