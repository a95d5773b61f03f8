"""The nouns of ComfyLoop: frozen, validated, without I/O.

A record is what travels between stages, over HTTP and into files. Times are UTC, sizes are bytes, images are
named by the SHA-256 of their bytes (a blob), versions by their number within a project (0 is the base model).
"""

from __future__ import annotations

from comfyloop.modalities import ImagePart as ImagePart
from comfyloop.modalities import TextPart as TextPart
from comfyloop.modalities.image import Sha256 as Sha256
from comfyloop.records.base import (
    BASE,
    MOST_REVIEWED,
    Author,
    Box,
    Id,
    ProjectName,
    Rating,
    Record,
    Time,
    new_id,
    now,
)
from comfyloop.records.chat import BROKEN_OFF, Generation, Message, Part, Sampling
from comfyloop.records.feedback import (
    AnswerAccepted,
    Answered,
    AnswerEdited,
    AnswerRated,
    Feedback,
    GraphEdited,
    ImagePicked,
    ImageRated,
    PromptEdited,
    SampleReviewed,
    SampleUploaded,
    ToReview,
    feedback_adapter,
)
from comfyloop.records.gate import CanaryReport, CanaryVerdict, GateItem, GateReport, Measure, Scores, Verdict
from comfyloop.records.loop import Forgotten, Loop, LoopState, LoopStatus, Project, Pruned
from comfyloop.records.samples import (
    Choice,
    Decided,
    Dropped,
    Flag,
    QueueItem,
    Reason,
    Sample,
    SampleKind,
    Snapshot,
    Suspect,
    Triggered,
)
from comfyloop.records.versions import Ancestor, Origin, Run, RunState, Version, VersionState

__all__ = [
    "BASE",
    "BROKEN_OFF",
    "MOST_REVIEWED",
    "Ancestor",
    "AnswerAccepted",
    "AnswerEdited",
    "AnswerRated",
    "Answered",
    "Author",
    "Box",
    "CanaryReport",
    "CanaryVerdict",
    "Choice",
    "Decided",
    "Dropped",
    "Feedback",
    "Flag",
    "Forgotten",
    "GateItem",
    "GateReport",
    "Generation",
    "GraphEdited",
    "Id",
    "ImagePart",
    "ImagePicked",
    "ImageRated",
    "Loop",
    "LoopState",
    "LoopStatus",
    "Measure",
    "Message",
    "Origin",
    "Part",
    "Project",
    "ProjectName",
    "PromptEdited",
    "Pruned",
    "QueueItem",
    "Rating",
    "Reason",
    "Record",
    "Run",
    "RunState",
    "Sample",
    "SampleKind",
    "SampleReviewed",
    "SampleUploaded",
    "Sampling",
    "Scores",
    "Sha256",
    "Snapshot",
    "Suspect",
    "TextPart",
    "Time",
    "ToReview",
    "Triggered",
    "Verdict",
    "Version",
    "VersionState",
    "feedback_adapter",
    "new_id",
    "now",
]
