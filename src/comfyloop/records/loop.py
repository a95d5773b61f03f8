"""The loop."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field, model_validator

from comfyloop.records.base import BASE, ProjectName, Record, Time, is_device, now
from comfyloop.records.gate import CanaryReport


class LoopState(StrEnum):
    IDLE = "idle"
    CURATING = "curating"
    TRAINING = "training"
    GATING = "gating"
    PROMOTING = "promoting"


class Loop(Record):
    """Where a project's loop stands. One row a project; every transition is one transaction."""

    project: ProjectName
    state: LoopState = LoopState.IDLE
    snapshot: str = ""
    run: str = ""
    version: int = 0
    requested: bool = False  # a person asked for a run
    consolidate: bool = False  # the next turn starts from the base models
    consolidating: bool = False  # the turn under way does, since a person asked for it
    by_hand: bool = False  # the turn under way was asked for by a person
    seen_seq: int = 0  # the newest feedback that a finished turn has used
    held_over: int = 0  # pieces before `seen_seq` that the last turn left for the next one
    looked_seq: int = 0  # the newest that was looked at, and found too little for a turn
    attempts: int = 0  # of the present state
    error: str = ""  # of the last turn, empty when it went well
    # of the last turn: "promoted", "canary", "rejected", "ask", "not_enough_evidence", "not_enough_feedback",
    # "nothing_new", "nothing_to_train", "waiting", "cancelled", "failed"
    outcome: str = ""
    reason: str = ""  # why it ended so, and what comes next, as sentences
    note: str = ""  # what else a person should know of it: who waits, what was set aside, what is asked
    updated_at: datetime = Field(default_factory=now)


class Forgotten(Record):
    """What was taken back, and what that meant for the versions of a project."""

    project: ProjectName
    feedback: tuple[str, ...]  # ids of what was deleted now
    versions: tuple[int, ...]  # those that carry it: withdrawn
    previous: int  # the version that was live
    live: int  # the one that is live now
    retrains: bool = False  # a turn begins that learns the rest anew


class Pruned(Record):
    """What was removed, or would be: versions by name, runs and snapshots by id."""

    versions: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()
    bytes: int = 0
    busy: tuple[str, ...] = ()  # projects that were left alone, since a turn of theirs is under way


class LoopStatus(Loop):
    """Where a loop stands, and how much waits for its next turn."""

    waiting: int  # pieces of feedback that no finished turn has used
    trigger: int  # so many start a turn by themselves
    canary: CanaryReport | None = None  # how the version that is tried beside the live one does, or did


class Project(Record):
    name: ProjectName
    base_model: str
    live: int = BASE
    image_model: str = ""  # a checkpoint or diffusers folder whose LoRA is trained too; empty: text alone
    image_vae: str = ""  # in place of that model's own; empty: as the setting says
    image_prediction_type: Literal["auto", "epsilon", "v_prediction", "sample"] = (
        "auto"  # auto: as the setting says
    )
    system_prompt: str = ""
    auto: bool = True  # the loop starts by itself
    created_at: Time = Field(default_factory=now)
    canary: int = (
        BASE  # the version that answers `canary_share` of the conversations in place of the live one
    )
    canary_share: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _not_reserved(self) -> Project:
        if self.name in {"base", "live", "candidate"}:
            raise ValueError(f"a project cannot be called {self.name!r}: it is a word of model names")
        if self.name.endswith(".") or is_device(self.name):
            raise ValueError(f"a project cannot be called {self.name!r}: Windows has no folder of that name")
        return self
