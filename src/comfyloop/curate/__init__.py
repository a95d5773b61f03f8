"""Feedback into training data: an immutable snapshot, with a report of what was left out and why."""

from comfyloop.curate.export import export
from comfyloop.curate.imports import import_rows, read_import
from comfyloop.curate.lesson import epochs_of
from comfyloop.curate.pipeline import NothingToTrain, Turn, build
from comfyloop.curate.report import CurationReport
from comfyloop.curate.rows import read_rows, read_samples
from comfyloop.curate.snapshot import REHEARSAL, DataFiles, data_files, strip

__all__ = [
    "REHEARSAL",
    "CurationReport",
    "DataFiles",
    "NothingToTrain",
    "Turn",
    "build",
    "data_files",
    "epochs_of",
    "export",
    "import_rows",
    "read_import",
    "read_rows",
    "read_samples",
    "strip",
]
