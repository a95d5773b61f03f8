"""What the gate says."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from comfyloop.modalities.image import Sha256
from comfyloop.records.base import ProjectName, Record, Time, now
from comfyloop.records.samples import Triggered


class Verdict(StrEnum):
    PROMOTE = "promote"
    REJECT = "reject"
    ASK = "ask"  # better as far as can be counted, but a person should look at it
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"


Scores = dict[str, tuple[float, float]]
"""What was measured of one item -> (live, candidate)."""


class Measure(Record):
    """Candidate against live on the same items; `low` and `high` bound the mean of candidate - live."""

    metric: str  # "log_likelihood" (nats per token), "edit_distance" (0..1), "denoising_loss", ...
    slice: str
    items: int
    live: float
    candidate: float
    low: float
    high: float
    higher_is_better: bool = True
    base: float | None = None  # the base model's, where it was asked too


class GateItem(Record):
    """One held-out item as both versions saw it."""

    sample: str
    slice: str
    question: str
    images: tuple[Sha256, ...] = ()
    reference: str
    live_answer: str = ""
    candidate_answer: str = ""
    scores: Scores = Field(default={})
    base: dict[str, float] = Field(default={})  # what the base model scored, where it was asked too


class GateReport(Record):
    project: ProjectName
    live: int
    candidate: int
    verdict: Verdict
    reasons: tuple[str, ...]  # sentences, the deciding one first
    next_step: str = ""  # what to do now, in a sentence
    measures: tuple[Measure, ...] = ()
    details: tuple[str, ...] = ()  # numbers for specialists
    items: tuple[GateItem, ...] = ()
    triggers: tuple[Triggered, ...] = ()  # phrases that call up one answer whatever is asked
    sheet: Sha256 | None = None  # a PNG (blob): what both drew of the same prompts and seeds, side by side
    looks: float = 1.0  # which look this was at its items, on the mean
    level: float = 0.0  # the one-sided level of this look; 0: nothing was tested
    seconds: float = 0.0
    created_at: Time = Field(default_factory=now)


class CanaryVerdict(StrEnum):
    RUNNING = "running"  # nothing is proven yet
    WORSE = "worse"  # proven: it was taken back
    NO_WORSE = "no_worse"  # proven: it is made live where auto_promote is on
    ENDED = "ended"  # by a person, or since another version went live


class CanaryReport(Record):
    """How people treat a version that answers a share of the conversations, beside the live one. A loss is what they
    changed of an answer: 0 where it was used as it was, 1 where nothing was left."""

    project: ProjectName
    version: int
    live: int
    share: float
    verdict: CanaryVerdict = CanaryVerdict.RUNNING
    reason: str = ""
    canary_outcomes: int = 0
    live_outcomes: int = 0
    canary_loss: float = 0.0  # means
    live_loss: float = 0.0
    low: float = -1.0  # bounds of the difference, canary less live, that hold at all times together
    high: float = 1.0
    level: float = 0.0
    after_seq: int = 0  # the newest feedback when it began
    started_at: Time = Field(default_factory=now)
    updated_at: Time = Field(default_factory=now)
