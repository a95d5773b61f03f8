"""What training makes."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from comfyloop.modalities.image import Sha256
from comfyloop.records.base import BASE, Id, ProjectName, Record, Time, now
from comfyloop.records.gate import CanaryReport, GateReport


class RunState(StrEnum):
    QUEUED = "queued"  # written down, not started
    RUNNING = "running"  # its process is alive, or died and will be resumed
    SUCCEEDED = "succeeded"  # adapter/ is whole
    FAILED = "failed"  # `error` says why
    CANCELLED = "cancelled"  # stopped by a person; its last checkpoint is valid

    @property
    def is_open(self) -> bool:
        """Whether the run is still to end."""
        return self in (RunState.QUEUED, RunState.RUNNING)


class Run(Record):
    id: Id
    project: ProjectName
    snapshot: str
    recipe: str
    state: RunState = RunState.QUEUED
    path: str
    parent: int = BASE  # the version that was live: what it started from, unless it is `fresh`
    fresh: bool = False  # it started from the base models: a consolidation
    error: str = ""
    created_at: Time = Field(default_factory=now)
    finished_at: datetime | None = None


class Ancestor(Record):
    """One version that another went on from, by the hash of its content; with who made it, if that was elsewhere."""

    version: Sha256
    publisher: str = ""
    key: str = ""  # that signed it


class Origin(Record):
    """Where a version came from that was made elsewhere."""

    publisher: str  # as its bundle says
    key: str  # that signed it
    project: str  # what it was called there
    number: int
    version: Sha256  # what lineage calls it
    lineage: tuple[Ancestor, ...] = ()
    bundle: Sha256  # of the manifest
    licence: str = ""
    trigger_words: str = ""


class VersionState(StrEnum):
    CANDIDATE = "candidate"  # trained, not judged or not promoted
    LIVE = "live"  # what the project's name answers with
    RETIRED = "retired"  # was live
    REJECTED = "rejected"  # the gate said no
    WITHDRAWN = "withdrawn"  # it learned from feedback that was taken back


class Version(Record):
    project: ProjectName
    number: int = Field(ge=1)
    state: VersionState = VersionState.CANDIDATE
    parent: int = BASE
    snapshot: str = ""
    run: str = ""
    text_adapter: str | None = None  # a PEFT directory
    image_adapter: str | None = None  # a LoRA file with kohya keys
    sha256: str = ""  # of the adapter files' content
    fresh: bool = False  # trained from the base models, not on from its parent's weights
    gate: GateReport | None = None
    canary: CanaryReport | None = None
    origin: Origin | None = None  # it was imported
    created_at: Time = Field(default_factory=now)
    promoted_at: datetime | None = None

    @property
    def adapter_name(self) -> str:
        """The name under which engines know it: never re-used."""
        return f"{self.project}-v{self.number}"
