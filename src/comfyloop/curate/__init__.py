"""Feedback into training data: an immutable snapshot, with a report of what was left out and why."""

from comfyloop.curate.diff import SnapshotDiff, diff
from comfyloop.curate.export import FORMATS, export
from comfyloop.curate.imports import Unkept, feedback_from, unsayable
from comfyloop.curate.known import Known
from comfyloop.curate.lesson import epochs_of
from comfyloop.curate.pipeline import NothingToTrain, SnapshotRequest, answer_flag, build, flags, queue
from comfyloop.curate.report import CurationReport
from comfyloop.curate.reviews import standing
from comfyloop.curate.rows import read_samples
from comfyloop.curate.snapshot import REHEARSAL, DataFiles, data_files, feedback_of, made_of, strip
from comfyloop.curate.triggers import flag_of, suspects

__all__ = [
    "FORMATS",
    "REHEARSAL",
    "CurationReport",
    "DataFiles",
    "Known",
    "NothingToTrain",
    "SnapshotDiff",
    "SnapshotRequest",
    "Unkept",
    "answer_flag",
    "build",
    "data_files",
    "diff",
    "epochs_of",
    "export",
    "feedback_from",
    "feedback_of",
    "flag_of",
    "flags",
    "made_of",
    "queue",
    "read_samples",
    "standing",
    "strip",
    "suspects",
    "unsayable",
]
