"""The model thread: it admits requests, decodes them together, and takes adapters on and off between steps.

Everything of torch happens in this one thread. Other threads hand it work by `submit`, `cancel`, `attach` and
`detach`, which return at once, and get tokens back through each job's `emit`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from comfyloop import platforms
from comfyloop.errors import (
    ComfyLoopError,
    Conflict,
    EngineUnavailable,
    InvalidInput,
    ModelError,
    NotFound,
    QueueFull,
)
from comfyloop.models import devices
from comfyloop.models.moving import move
from comfyloop.models.rope import RopeScaling
from comfyloop.serve.embedded.continuations import Scoring
from comfyloop.serve.embedded.decoders import make_decoder
from comfyloop.serve.embedded.jobs import Event, Failed, Finished, Job, JobSampling, TextPiece
from comfyloop.serve.embedded.llama import READ_ROWS
from comfyloop.serve.embedded.loading import LoadedModel, load, set_threads
from comfyloop.serve.embedded.lora import Adapter, LoraRows, read_adapter
from comfyloop.serve.embedded.metrics import EngineMetrics
from comfyloop.serve.embedded.options import EngineOptions
from comfyloop.serve.embedded.prompts import Prompt, PromptMaker
from comfyloop.serve.embedded.repetition import Circle
from comfyloop.serve.embedded.sampling import pick, token_logprobs
from comfyloop.serve.embedded.sequence import CHUNK, Decoder, DecodeSequence
from comfyloop.serve.embedded.structure import Structure, Structures
from comfyloop.serve.embedded.text import TextStream
from comfyloop.serve.embedded.threads import StepThreads
from comfyloop.serve.embedded.weights import Level

DRAIN_SECONDS = 60.0
"""How long falling asleep waits for requests that run."""
WAKE_SECONDS = 600.0
"""For weights that are read from a slow disk."""
ROOM_SECONDS = 20.0
"""How long a wake waits for others to leave room on the card."""
LOOK_SECONDS = 0.5


class EmbeddedEngine:
    """One base model and its adapters. `start` begins to load; `ready` tells when it serves."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.metrics = EngineMetrics()
        self.error: ComfyLoopError | None = None  # why loading failed
        self.ready = threading.Event()
        self.on_end: Callable[[], None] = lambda: None  # called in the model thread when it ends
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._adapters: dict[str, Adapter] = {}
        self._uses: dict[str, int] = {}  # jobs that are not over, by adapter
        self._seen: dict[str, str] = {}  # adapter name -> hash of its files: a name never means two things
        self._loading: set[str] = set()
        self._waiting = 0
        self._running = 0
        self._stopping = False
        self._needed = 0  # others that work on the weights: no sleep meanwhile
        self._to_sleep: list[tuple[Future[None], Level]] = []  # who asked for it
        self.wake_seconds: float | None = None  # that the last wake took
        self._active: list[Job] = []  # seated: of the model thread
        self._queues: OrderedDict[str, deque[Job]] = OrderedDict()  # waiting, by adapter in order of turns
        self._thread = threading.Thread(target=self._main, name="model", daemon=True)

    # --- from any thread ------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the model thread after the present step; jobs that are not over fail."""
        self._inbox.put(self._stop)

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    @property
    def load(self) -> dict[str, int]:
        with self._lock:
            return {"running": self._running, "waiting": self._waiting}

    @property
    def adapters(self) -> list[Adapter]:
        with self._lock:
            return list(self._adapters.values())

    def adapter(self, model: str) -> Adapter | None:
        """The adapter that the model name stands for, None for the base; NotFound for any other name."""
        if model == self.options.served_model_name:
            return None
        with self._lock:
            if model in self._adapters:
                return self._adapters[model]
            known = ", ".join([self.options.served_model_name, *self._adapters])
        raise NotFound(f"The model {model} is not loaded here; there are: {known}.")

    def submit(
        self,
        model: str,
        prompt: Prompt,
        sampling: JobSampling,
        emit: Callable[[Event], None],
        structure: Structure | None = None,
        continuations: Sequence[Sequence[int]] = (),
    ) -> Job:
        """Queue a request, whose answer is to follow `structure`; or one that asks how likely `continuations` (token
        ids) are after the prompt, and is answered by `Finished.scores`.

        Raises:
            NotFound: `model` is neither the base nor a loaded adapter.
            InvalidInput: prompt and answer do not fit into the context.
            QueueFull: `max_queue` requests wait already.
            EngineUnavailable: the model is not loaded, or the engine is leaving.
        """
        self._check_room(prompt, sampling, max(map(len, continuations), default=0))
        adapter = self.adapter(model)
        with self._lock:
            if self._stopping:
                raise EngineUnavailable("The engine is shutting down.", retry_after=2)
            if self._waiting >= self.options.max_queue:
                self.metrics.refused.inc()
                raise QueueFull(
                    f"{self._waiting} requests wait already.",
                    "Send it again later.",
                    retry_after=self._patience(),
                )
            if adapter is not None and self._adapters.get(adapter.name) is not adapter:
                raise NotFound(f"The model {model} is not loaded here any more.")
            self._waiting += 1
            if adapter is not None:
                self._uses[adapter.name] += 1
        scoring = Scoring(continuations, CHUNK) if continuations else None
        job = Job(prompt, sampling, adapter, emit, structure, scoring)
        self._inbox.put(lambda: self._enqueue(job))
        return job

    def cancel(self, job: Job) -> None:
        """Drop the job before the next step; nothing is emitted for it afterwards."""
        job.cancelled = True
        self._inbox.put(lambda: self._drop(job))

    def add_adapter(self, adapter_name: str, read: Callable[[], Adapter]) -> Adapter:
        """Read an adapter in the calling thread and attach it between two steps; returns when it answers.

        Raises:
            Conflict: the name is taken, or has meant other files before.
            NotFound, InvalidInput: as `read_adapter`; nothing is attached then.
        """
        with self._lock:
            if adapter_name in self._adapters or adapter_name in self._loading:
                raise Conflict(
                    f"The adapter {adapter_name} is loaded already.", "Unload it, or use a new name."
                )
            if adapter_name == self.options.served_model_name:
                raise Conflict(f"{adapter_name} is the name of the base model.")
            self._loading.add(adapter_name)
        try:
            with self._awake():
                adapter = read()
                if self._seen.setdefault(adapter_name, adapter.sha256) != adapter.sha256:
                    raise Conflict(
                        f"The name {adapter_name} has meant an adapter with other weights before.",
                        "Give each version a name of its own: a name that is used again serves stale answers.",
                    )
                self._decoder.prepare(adapter)
                self._call(lambda: self._lora.attach(adapter))
                with self._lock:
                    self._adapters[adapter_name] = adapter
                    self._uses[adapter_name] = 0
        finally:
            with self._lock:
                self._loading.discard(adapter_name)
        return adapter

    def remove_adapter(self, name: str) -> None:
        """Detach an adapter and free its memory.

        Raises:
            NotFound: it is not loaded.
            Conflict: requests of it are not over.
        """
        with self._lock:
            if name not in self._adapters:
                raise NotFound(f"The adapter {name} is not loaded.")
            if self._uses[name]:
                raise Conflict(
                    f"{self._uses[name]} requests of {name} are still being answered.", "Let them end."
                )
            del self._adapters[name], self._uses[name]

        def detach() -> None:
            self._lora.detach(name)
            if not self.is_sleeping:
                self._decoder.forget(name)

        self._call(detach)
        platforms.give_memory_back()

    @property
    def is_sleeping(self) -> bool:
        return self.ready.is_set() and self.loaded.weights is not None and self.loaded.weights.given_back

    def sleep(self, level: Level = 1, seconds: float = DRAIN_SECONDS) -> None:
        """Give the memory back when the requests that run have ended; returns when that is done. A request that comes
        later wakes it.

        Raises:
            Conflict: requests ran all the while, or its weights cannot be had again.
            EngineUnavailable: the model is not loaded.
        """
        if not self.ready.is_set():
            raise EngineUnavailable("The model is still being loaded.", retry_after=1)
        if self.loaded.weights is None:
            raise Conflict(
                f"The files of {self.options.model} are not known, so its weights could not be had again.",
                "Serve it from a directory.",
            )
        asleep: Future[None] = Future()
        self._inbox.put(lambda: self._to_sleep.append((asleep, level)))
        try:
            asleep.result(timeout=seconds)
        except TimeoutError:
            if not asleep.cancel():  # it is just falling asleep
                return asleep.result(timeout=seconds)
            raise Conflict(
                f"Requests were answered for {seconds:.0f} seconds, so it did not fall asleep.",
                "Try again later.",
            ) from None

    def wake_up(self) -> None:
        """Have the weights again; returns when it answers.

        Raises:
            EngineUnavailable: there is no room for them now.
            ModelError: they cannot be read any more.
        """
        self._call(self._wake, WAKE_SECONDS)

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        """The weights are there while the block runs, in whatever thread."""
        with self._lock:
            self._needed += 1
        try:
            self.wake_up()
            yield
        finally:
            with self._lock:
                self._needed -= 1
            self._inbox.put(lambda: None)  # who waits for it to sleep looks again

    def _call(self, work: Callable[[], None], seconds: float = 60.0) -> None:
        """Have the model thread do `work` between two steps, and wait for it."""
        done: Future[None] = Future()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._inbox.put(run)
        done.result(timeout=seconds)

    def _check_room(self, prompt: Prompt, sampling: JobSampling, continuation: int) -> None:
        if not self.ready.is_set():
            raise EngineUnavailable("The model is still being loaded.", retry_after=1)
        context, size = self.loaded.context, len(prompt.ids)
        if size >= context:
            raise InvalidInput(
                f"The prompt has {size} tokens; this model reads at most {context}, the answer included.",
                "Shorten the messages.",
            )
        if size + continuation > context:
            raise InvalidInput(
                f"The prompt has {size} tokens and the longest answer {continuation}; together they may be at most "
                f"{context}."
            )
        if sampling.max_tokens is not None and size + sampling.max_tokens > context:
            raise InvalidInput(
                f"The prompt has {size} tokens and max_tokens is {sampling.max_tokens}; together they may be "
                f"at most {context}.",
                "Shorten the messages or lower max_tokens.",
            )

    def _patience(self) -> float:
        """Seconds after which a place in the queue is likely to be free."""
        rate = self.metrics.recent_requests_per_second()
        return min(30.0, max(1.0, 1 / rate)) if rate else 1.0

    # --- the model thread -----------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._load()
            with torch.inference_mode():
                self._serve()
        except ComfyLoopError as error:
            self.error = error
        except BaseException as error:
            self.error = EngineUnavailable(f"The model thread ended: {type(error).__name__}: {error}")
            raise
        finally:
            with self._lock:
                self._stopping = True  # from here on `submit` takes nothing
            self._take_last_messages()
            left = self.error or EngineUnavailable("The engine has shut down.")
            for job in [*self._jobs(), *self._active]:
                self._over(job, Failed(left))
            for asked, _ in self._to_sleep:
                if asked.set_running_or_notify_cancel():
                    asked.set_exception(left)
            self.on_end()

    def _load(self) -> None:
        o = self.options
        set_threads(o.threads)
        self._threads = StepThreads(torch.get_num_threads())
        self._reading_threads = StepThreads(torch.get_num_threads(), probe_every=8)
        began = time.monotonic()
        self.loaded: LoadedModel = load(
            o.model,
            dtype=o.dtype,
            quant_method=o.quant_method,
            device=o.device,
            max_context=o.max_context,
            rope_scaling=RopeScaling.parse(o.rope_scaling),
        )
        self.device = self.loaded.device
        self.prompts = PromptMaker(self.loaded, o.max_pixels, o.max_image_pixels)
        self._lora = LoraRows(self.loaded.model)
        self._decoder: Decoder = self._make_decoder()
        self._decode = text_decoder(self.loaded.tokenizer)
        self.structures = Structures(self.loaded.tokenizer, self.loaded.eos)
        for given in o.lora_modules:
            name, _, path = given.partition("=")
            adapter = read_adapter(name, Path(path), self.loaded.model)
            self._decoder.prepare(adapter)
            self._lora.attach(adapter)
            self._adapters[name], self._uses[name], self._seen[name] = adapter, 0, adapter.sha256
        self.metrics.load_seconds.set(time.monotonic() - began)
        self.ready.set()

    def _make_decoder(self) -> Decoder:
        o = self.options
        return make_decoder(self.loaded, self._lora, o.prefix_mb << 20, o.image_mb << 20, o.packed_mb << 20)

    def _jobs(self) -> list[Job]:
        return [job for jobs in self._queues.values() for job in jobs]

    def _serve(self) -> None:
        while not self._stopping:
            self._take_messages()
            if self._waiting_here() and self.is_sleeping:
                self._wake_for_requests()
            self._admit()
            self._advance()
            self._fall_asleep()
            self.metrics.kv_bytes.set(0 if self.is_sleeping else self._decoder.bytes)

    def _fall_asleep(self) -> None:
        """When somebody asked for it, and nobody needs the weights."""
        if not self._to_sleep or self._active or self._waiting_here():
            return
        with self._lock:
            if self._needed:
                return
        asked, self._to_sleep = self._to_sleep, []
        wanted = [(future, level) for future, level in asked if future.set_running_or_notify_cancel()]
        weights = self.loaded.weights
        problem: Exception | None = None
        if wanted and weights is not None and not weights.given_back:
            del self._decoder  # with keys, values, and its own copies of the weights
            try:
                weights.give_back(2 if any(level == 2 for _, level in wanted) else 1)
            except Exception as error:  # no room for them in the processor's memory
                self._settle_in()
                problem = error
            else:
                move(self._adapter_tensors(), devices.CPU)
                self.metrics.sleeping.set(1)
        for future, _ in wanted:
            if problem is None:
                future.set_result(None)
            else:
                future.set_exception(Conflict(f"It stays awake: {problem}", "Close what fills the memory."))

    def _adapter_tensors(self) -> list[torch.Tensor]:
        """Those of the adapters that are not where the processor computes."""
        if self.device.type == "cpu":
            return []
        pairs = [pair for adapter in self._lora.attached.values() for pair in adapter.pairs.values()]
        return [t for pair in pairs for t in (pair.a, pair.b, pair.magnitude) if t is not None]

    @torch.inference_mode(False)
    def _settle_in(self) -> None:
        """With the weights there, all that is made of them."""
        move(self._adapter_tensors(), self.device)
        self._decoder = self._make_decoder()
        for adapter in self._lora.attached.values():
            self._decoder.prepare(adapter)

    @torch.inference_mode(False)
    def _wake(self) -> None:
        """Be as before it fell asleep.

        Raises:
            EngineUnavailable: there was no room for a while.
            ModelError: the weights cannot be read any more; the engine ends.
        """
        weights = self.loaded.weights
        if weights is None or not weights.given_back:
            return
        began = time.monotonic()
        while True:
            try:
                weights.take_again()
                break
            except Exception as error:
                if not devices.is_out_of_memory(error.__cause__ or error):
                    self.error = error if isinstance(error, ComfyLoopError) else ModelError(str(error))
                    self._stopping = True
                    raise self.error from error
                devices.give_back(self.device)
            if time.monotonic() - began > ROOM_SECONDS:
                raise EngineUnavailable(
                    "The engine sleeps, and there is no room in the memory for it to wake.",
                    "Close what fills the memory, as ComfyUI's models (its Unload Models does), and ask again.",
                    retry_after=5,
                )
            time.sleep(LOOK_SECONDS)
        self._settle_in()
        self.wake_seconds = time.monotonic() - began
        self.metrics.sleeping.set(0)
        self.metrics.wakes.observe(self.wake_seconds)

    def _wake_for_requests(self) -> None:
        try:
            self._wake()
        except ComfyLoopError as error:
            for job in self._jobs():
                self._queues[_name(job)].remove(job)
                self._over(job, Failed(error))

    def _advance(self) -> None:
        """A piece of one prompt, and a token for every answer. Nothing here keeps a job that is over."""
        filling = [j for j in self._active if not _sequence(j).ready]
        if filling and not self._reads_whole(filling[0]):
            try:
                self._fill(filling[0])
            except Exception as error:  # of this prompt alone: the others have not been touched
                self._failed(filling[0], error)
        elif filling:
            self._read_whole(filling)
        decoding = [j for j in self._active if _sequence(j).ready]
        if decoding:
            self._step(decoding)

    def _take_messages(self) -> None:
        """Do what other threads asked for; with nothing to decode, sleep until one asks."""
        idle = not self._active and not self._waiting_here()
        while True:
            try:
                message = self._inbox.get(block=idle)
            except queue.Empty:
                return
            message()
            idle = False

    def _take_last_messages(self) -> None:
        """What was sent while the engine ended: its requests are failed with the others, not left unanswered."""
        while True:
            try:
                message = self._inbox.get_nowait()
            except queue.Empty:
                return
            with contextlib.suppress(Exception):  # there may be no model left to do it with
                message()

    def _waiting_here(self) -> bool:
        return any(self._queues.values())

    def _stop(self) -> None:
        self._stopping = True

    def _enqueue(self, job: Job) -> None:
        if not job.cancelled:
            self._queues.setdefault(_name(job), deque()).append(job)

    def _drop(self, job: Job) -> None:
        if job in self._active:
            self._leave(job)
            self._over(job, None)
        elif job.sequence is None:
            waiting = self._queues.get(_name(job))
            if waiting is not None and job in waiting:
                waiting.remove(job)
            self._over(job, None)

    def _admit(self) -> None:
        """Seat waiting jobs while there are free rows; adapters take turns, so that none starves."""
        while len(self._active) < self.options.max_batch and self._waiting_here():
            name, jobs = next(iter(self._queues.items()))
            if not jobs:
                del self._queues[name]
                continue
            self._queues.move_to_end(name)
            self._seat(jobs.popleft())

    def _seat(self, job: Job) -> None:
        room = self.loaded.context
        if job.sampling.max_tokens is not None:
            room = min(room, len(job.prompt.ids) + job.sampling.max_tokens)
        job.sequence = DecodeSequence(
            job.prompt,
            job.adapter,
            room,
            all_logits=job.sampling.prompt_logprobs is not None,
            alone=job.sampling.alone,
            only_scored=job.scoring is not None,
        )
        with self._lock:
            self._waiting -= 1
            self._running += 1
        try:
            job.stream = TextStream(self._decode, job.sampling.stop)
            job.generator = _generator(job.sampling, self.device)
            job.circle = Circle(job.sampling.repetition) if job.sampling.repetition else None
            if not self._reads_whole(job):
                self._decoder.admit(job.sequence)
        except Exception as error:
            self._failed(job, error)
        else:
            self._active.append(job)

    def _failed(self, job: Job, error: Exception) -> None:
        """A prompt that the model could not read: its request is answered, and the others go on."""
        self._leave(job)
        told = f"{error}" or type(error).__name__
        self._over(job, Failed(InvalidInput(f"The model cannot read this prompt: {told}")))

    def _fill(self, job: Job) -> None:
        sequence = _sequence(job)
        if job.scoring is not None:
            self._read_on(job, job.scoring)
            return
        start = sequence.filled
        logits = self._decoder.prefill(sequence)
        self.metrics.prompt_tokens.inc(sequence.filled - start)
        if job.sampling.prompt_logprobs is not None:
            self._score(job, logits, start)
        if sequence.ready:
            self.metrics.cached_tokens.inc(sequence.reused)
            self.metrics.first_token.observe(time.monotonic() - job.arrived)
            self._say(job, logits[-1])
        else:  # the next chunk is another's
            self._active.remove(job)
            self._active.append(job)

    def _leave(self, job: Job) -> None:
        """Give up the job's place."""
        if job in self._active:
            self._active.remove(job)
        if _sequence(job).has_row:
            self._decoder.release(_sequence(job))

    def _reads_whole(self, job: Job) -> bool:
        return job.scoring is not None and self._decoder.reads_whole(_sequence(job), job.scoring.size)

    def _read_whole(self, filling: list[Job]) -> None:
        """What is only scored and short: as many at a time as one pass takes."""
        together: list[Job] = []
        room = READ_ROWS
        for job in filling:
            if self._reads_whole(job):
                assert job.scoring is not None
                room -= len(job.prompt.ids) + job.scoring.size
                if room < 0:
                    break
                together.append(job)
        try:
            self._read(together)
        except Exception:  # of one of them: each by itself tells which
            for job in together:
                try:
                    self._read([job])
                except Exception as error:
                    self._failed(job, error)

    def _read(self, together: list[Job]) -> None:
        scored = [(job, job.scoring) for job in together if job.scoring is not None]
        texts = [(_sequence(job), scoring.whole) for job, scoring in scored]
        with self._reading_threads.step(READ_ROWS):  # as many, whatever is read
            read = self._decoder.read_whole(texts)
        for (job, scoring), logits in zip(scored, read, strict=True):
            self.metrics.prompt_tokens.inc(len(job.prompt.ids) + scoring.size)
            scoring.take_whole(logits)
            self._leave(job)
            self._over(job, self._finished(job, "stop"))

    def _read_on(self, job: Job, scoring: Scoring) -> None:
        """A piece of the prompt, or of what is scored behind it; the next piece is another's turn."""
        sequence, further = _sequence(job), scoring.next
        if len(sequence.prompt.ids) > sequence.filled:
            start = sequence.filled
            logits = self._decoder.prefill(sequence)
            self.metrics.prompt_tokens.inc(sequence.filled - start)
            if sequence.is_filled:
                self.metrics.cached_tokens.inc(sequence.reused)
                scoring.begin(logits[-1])
        elif further is not None:
            self.metrics.prompt_tokens.inc(len(further.tokens))
            scoring.take(self._decoder.read_on(sequence, further))
        if sequence.is_filled and scoring.next is None:
            self._leave(job)
            self._over(job, self._finished(job, "stop"))
        else:
            self._active.remove(job)
            self._active.append(job)

    def _score(self, job: Job, logits: torch.Tensor, start: int) -> None:
        """Log-probabilities of the prompt's tokens that `logits`, of the tokens from `start` on, foretell."""
        assert job.sampling.prompt_logprobs is not None
        ids = job.prompt.ids
        if start == 0:
            job.scored.append(None)
        told = torch.tensor(ids[start + 1 : start + 1 + len(logits)], device=logits.device)
        for begin in range(0, len(told), 64):
            part = told[begin : begin + 64]
            job.scored += token_logprobs(
                logits[begin : begin + len(part)], part, job.sampling.prompt_logprobs
            )

    def _step(self, decoding: list[Job]) -> None:
        began = time.monotonic()
        with self._threads.step(len(decoding)):
            logits = self._decoder.step([_sequence(j) for j in decoding])
        self.metrics.step.observe(time.monotonic() - began)
        self.metrics.batch.observe(len(decoding))
        for job, row in zip(decoding, logits, strict=True):
            self._say(job, row)

    def _say(self, job: Job, logits: torch.Tensor) -> None:
        """Choose the next token of `job`, emit what it makes certain, and end the job where it ends."""
        s, sequence, stream = job.sampling, _sequence(job), job.stream
        assert stream is not None
        if job.structure is not None:
            logits = job.structure.keep_allowed(logits)
        token = pick(logits, s.temperature, s.top_p, job.generator)
        sequence.answer.append(token)
        if job.structure is not None:
            job.structure.push(token)
        self.metrics.answer_tokens.inc()
        moment = time.monotonic()
        if job.last_token:
            self.metrics.between_tokens.observe(moment - job.last_token)
        job.last_token = moment
        ended = token in self.loaded.eos
        if s.logprobs is not None and not ended:
            told = torch.tensor([token], device=logits.device)
            job.said += token_logprobs(logits[None], told, s.logprobs)
        text = "" if ended else stream.push(token)
        if text:
            job.emit(TextPiece(text, tuple(job.said)))
            job.said = []
        full = len(sequence.prompt.ids) + len(sequence.answer) >= sequence.room
        ended = ended or (job.structure is not None and job.structure.complete)
        circles = job.circle is not None and job.circle.closed(sequence.answer)
        if ended or stream.stopped or full or circles:
            rest = stream.finish()
            if rest or job.said:
                job.emit(TextPiece(rest, tuple(job.said)))
            reason = "stop" if ended or stream.stopped else "length" if full else "repetition"
            self._decoder.release(sequence)
            self._active.remove(job)
            self._over(job, self._finished(job, reason))

    def _finished(self, job: Job, reason: str) -> Finished:
        sequence = _sequence(job)
        scored = job.scored if job.sampling.prompt_logprobs is not None else None
        self.metrics.finished(reason)
        scores = job.scoring.logprobs if job.scoring is not None else None
        return Finished(reason, len(job.prompt.ids), len(sequence.answer), sequence.reused, scored, scores)

    def _over(self, job: Job, event: Event | None) -> None:
        if job.over:
            return
        job.over = True
        with self._lock:
            if job.sequence is None:
                self._waiting -= 1
            else:
                self._running -= 1
            if job.adapter is not None:
                self._uses[job.adapter.name] -= 1
        if event is not None and not job.cancelled:
            job.emit(event)
        elif event is None:
            self.metrics.finished("cancelled")


def text_decoder(tokenizer: Any) -> Callable[[Any], str]:
    """Token ids -> text without special tokens, past the slow outer layers of a fast tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return lambda ids: backend.decode(ids, skip_special_tokens=True)
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True)


def _generator(sampling: JobSampling, device: torch.device) -> torch.Generator | None:
    if sampling.temperature <= 0:
        return None
    generator = torch.Generator(device=device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed & (2**63 - 1))
    return generator


def _sequence(job: Job) -> DecodeSequence:
    assert job.sequence is not None
    return job.sequence


def _name(job: Job) -> str:
    return "" if job.adapter is None else job.adapter.name
