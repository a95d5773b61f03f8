"""Feedback into training data: an immutable snapshot, with a report of what was left out and why."""

from comfyloop.curate.export import export
from comfyloop.curate.imports import import_rows
from comfyloop.curate.pipeline import NothingToTrain, build
from comfyloop.curate.report import CurationReport
from comfyloop.curate.rows import read_rows, read_samples
from comfyloop.curate.snapshot import DataFiles, data_files

__all__ = [
    "CurationReport",
    "DataFiles",
    "NothingToTrain",
    "build",
    "data_files",
    "export",
    "import_rows",
    "read_rows",
    "read_samples",
]
