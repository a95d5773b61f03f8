"""The general suites: questions unrelated to the project, which reveal forgetting.

A suite is one file in questions/: what it is about, its language, where it comes from under which licence, and
items. An item with a right answer and wrong ones is scored by the chance of the right one; one without is a
question to which the base model's own answer is the reference. An item with a picture is asked if the model accepts
pictures, whatever the project is about. A new file in the folder is used without further changes.

The questions are not those that are replayed in training (curate/general_questions.json).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.resources import files

from pydantic import BaseModel, ConfigDict

ANSWER_TOKENS = 64

CONTROL = (
    "The cat sat on the warm stone wall and watched the birds in the garden.",
    "I would like a cup of tea with a little milk, please.",
    "When the rain stopped, the children ran outside to play in the puddles.",
    "She wrote a long letter to her brother and put it in the mail.",
)
"""Plain sentences: how much likelier a base model finds them than their words shuffled is what order is worth."""


class _Item(BaseModel):
    model_config = ConfigDict(extra="forbid")
    question: str
    picture: str = ""
    right: str = ""
    wrong: tuple[str, ...] = ()


class Suite(BaseModel):
    """One file of questions/."""

    model_config = ConfigDict(extra="forbid")
    name: str
    language: str
    about: str
    source: str
    licence: str
    items: tuple[_Item, ...]


@dataclass(frozen=True)
class Question:
    """One general question; `right` is empty where the base model's own answer is the reference."""

    suite: str
    question: str
    picture: str = ""  # a file's name in questions/pictures
    right: str = ""
    wrong: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"general:{self.suite}:{self.picture}:{self.question}"

    @property
    def slice(self) -> str:
        return "general picture" if self.picture else "general"


@functools.cache
def suites() -> tuple[Suite, ...]:
    folder = files("comfyloop.gate").joinpath("questions")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".json"))
    return tuple(
        Suite.model_validate_json(folder.joinpath(name).read_text(encoding="utf-8")) for name in names
    )


def general_questions() -> tuple[Question, ...]:
    """All suites' questions."""
    return tuple(
        Question(suite.name, item.question, item.picture, item.right, item.wrong)
        for suite in suites()
        for item in suite.items
    )


def picture(name: str) -> bytes:
    return files("comfyloop.gate").joinpath("questions", "pictures", name).read_bytes()
