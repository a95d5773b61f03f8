"""The manifest of a bundle: `manifest.json`, which is signed."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from comfyloop.records import Ancestor, ProjectName, Record, Sha256, Time, now

MANIFEST, SIGNATURE = "manifest.json", "signature.ed25519"
CARD, GATE, SPEC, SUITES = "README.md", "gate.json", "spec.json", "evaluation.json"
SHEET, EXAMPLES, LICENCE = "contact-sheet.png", "examples.json", "LICENCE.txt"
TEXT_CONFIG, TEXT_WEIGHTS, TEXT_POSITIONS = (
    "text/adapter_config.json",
    "text/adapter_model.safetensors",
    "text/positions.json",
)
IMAGE_WEIGHTS = "image/lora.safetensors"

SMALL = {CARD, GATE, SPEC, SUITES, EXAMPLES, LICENCE, TEXT_CONFIG, TEXT_POSITIONS}
"""Files of at most `MOST_WORDS` bytes."""
MOST_WORDS = 4 * 2**20
MOST_SHEET = 32 * 2**20
KNOWN = SMALL | {MANIFEST, SIGNATURE, SHEET, TEXT_WEIGHTS, IMAGE_WEIGHTS}
"""All that a bundle may hold."""

Line = Annotated[str, StringConstraints(max_length=400, pattern=r"^[^\x00-\x1f\x7f]*$")]


def line(text: str) -> str:
    """A text as a manifest takes it."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:400]


Publisher = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,62}$")]


class Include(StrEnum):
    """What is packed only where it is asked for by name."""

    SHEET = "contact-sheet"  # pictures that were held out, and what was drawn
    EXAMPLES = "examples"  # held-out questions with the answers of before and after


class BundleFile(Record):
    """One file of a bundle."""

    name: Line
    bytes: int = Field(ge=0)
    sha256: Sha256
    crc32: int = Field(ge=0, lt=2**32)


class SuiteScores(Record):
    """What a version and its base model gave on a standard suite of questions."""

    suite: Line
    version: Line  # of the suite
    items: int = Field(ge=1)
    base: float
    this: float


class BaseModelOf(Record):
    """The base model that a side was trained on. `weights` tells it from others of its kind; empty: not known."""

    name: Line  # "starter", a hub id, or the name of the folder or file
    kind: Line = ""  # "qwen2_5_vl", "sdxl", ...
    weights: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] = ""


class Manifest(Record):
    format: Literal[1] = 1
    made_by: Line
    created_at: Time = Field(default_factory=now)
    publisher: Publisher
    project: ProjectName
    number: int = Field(ge=1)
    version: Sha256  # what lineage calls it
    lineage: tuple[Ancestor, ...] = Field(default=(), max_length=1000)  # what it went on from, newest first
    text_base: BaseModelOf | None = None
    image_base: BaseModelOf | None = None
    licence: Line = ""  # an SPDX id, or "see LICENCE.txt"
    trigger_words: Line = ""
    verdict: Line = ""  # of the gate where it was made
    files: tuple[BundleFile, ...] = Field(max_length=64)
