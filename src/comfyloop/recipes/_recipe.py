"""What a recipe says of itself. Imports no torch: settings, curation and the command line read it, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from comfyloop.records import SampleKind


@dataclass(frozen=True)
class Swift:
    """How ms-swift does the same.

    Attributes:
        command: `swift sft`, or `swift rlhf` with the recipe's name as `--rlhf_type`.
        flags: Fields of the spec's `preference` that it takes as flags of the same names, beside `beta`.
        loss: Its one `--loss_type`; empty: it has several, and `loss_type` is one of `flags`.
        mixes_rows: It gives each row the answer of another one of its step: no step may be of one row, and a
            hold-out, which is cut into steps as well, cannot be given.
    """

    command: Literal["sft", "rlhf"]
    flags: tuple[str, ...] = ()
    loss: str = ""
    mixes_rows: bool = False


@dataclass(frozen=True)
class Recipe:
    """
    Attributes:
        name: That of its file here, and of the module `train/recipes/NAME.py`, whose `run` does it.
        side: Whose adapter it trains.
        kind: The kind of sample that it is given, which says what its rows need.
        does: In a few words, what is done.
        learns_from: The same for the documentation, with where it was published.
        rows: What its rows have beside messages and images.
        source: The feedback that the loop uses it with.
        learning_rate: Of a LoRA, where none is asked for; on wide models less (`train.specs.rates`).
        replays: General answers are mixed in against forgetting.
        all_turns: It can learn every answer of a conversation (`train_on = all`).
        samples_answers: It has the model answer while it trains: in one process, with a loss that is noisy.
        swift: ms-swift's equivalent; None: there is none.
    """

    name: str
    side: Literal["text", "image"]
    kind: SampleKind
    does: str
    learns_from: str
    learning_rate: float
    rows: str = ""
    source: str = ""
    replays: bool = False
    all_turns: bool = False
    samples_answers: bool = False
    swift: Swift | None = None
