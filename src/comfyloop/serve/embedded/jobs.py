"""A request inside the engine, and what is told of it as its answer grows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from comfyloop.errors import ComfyLoopError
from comfyloop.serve.embedded.continuations import Scoring
from comfyloop.serve.embedded.lora import Adapter
from comfyloop.serve.embedded.prompts import Prompt
from comfyloop.serve.embedded.repetition import Circle, Repetition
from comfyloop.serve.embedded.sampling import TokenLogprob
from comfyloop.serve.embedded.sequence import DecodeSequence
from comfyloop.serve.embedded.structure import Structure
from comfyloop.serve.embedded.text import TextStream


@dataclass(frozen=True)
class JobSampling:
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # how many likely tokens to tell beside the chosen one; None: tell nothing
    prompt_logprobs: int | None = None
    alone: bool = False  # the same answer whatever else is answered meanwhile, at the price of a slower one
    repetition: Repetition | None = None  # the answer ends where it goes round in a circle; None: it may


@dataclass(frozen=True)
class TextPiece:
    """Text that has become certain, with the tokens that made it when they were asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    reason: str  # "stop", "length" or "repetition"
    prompt_tokens: int
    answer_tokens: int
    cached_tokens: int
    prompt_logprobs: list[TokenLogprob | None] | None = None
    scores: list[list[float]] | None = None  # log-probabilities of the tokens of each continuation


@dataclass(frozen=True)
class Failed:
    error: ComfyLoopError


Event = TextPiece | Finished | Failed


@dataclass(eq=False)
class Job:
    """A request on its way through the model thread. `emit` is called there with each event, in order."""

    prompt: Prompt
    sampling: JobSampling
    adapter: Adapter | None
    emit: Callable[[Event], None]
    structure: Structure | None = None  # what the answer follows
    scoring: Scoring | None = None  # of continuations, instead of an answer
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    # the rest belongs to the model thread
    sequence: DecodeSequence | None = None
    stream: TextStream | None = None
    generator: torch.Generator | None = None
    circle: Circle | None = None
    said: list[TokenLogprob] = field(default_factory=list)  # not yet emitted
    scored: list[TokenLogprob | None] = field(default_factory=list)  # of the prompt
    last_token: float = 0.0
    over: bool = False
