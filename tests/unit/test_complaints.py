"""What is wrong with values that were sent, in words about those values and not about how they are checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

import comfyloop
from comfyloop.complaints import complaints, in_words
from comfyloop.records import Project

MISSING, OBJECT = "this field is missing", "it must be a JSON object"


class Text(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Url(BaseModel):
    url: str


class Image(BaseModel):
    type: Literal["image_url"]
    image_url: Url


class Said(BaseModel):
    role: Literal["user", "assistant"]
    content: str | list[Annotated[Text | Image, Field(discriminator="type")]] | None = None
    stop: str | tuple[str, ...] | None = None
    n: int = Field(default=1, ge=1, le=8)
    names: list[str] = Field(default=[], max_length=2)


def told(sent: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(list[Said]).validate_python(sent)
    return {place: what for place, what in complaints(caught.value.errors(), sent)}


def said(**more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", **more}]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (said(content=5), {"0.content": "it must be text or a list"}),
        (said(content=[{"type": "text"}]), {"0.content.0.text": "this field is missing"}),
        (said(content=[{"type": "text", "text": 5}]), {"0.content.0.text": "it must be text"}),
        (said(content=[{"type": "image_url", "image_url": {}}]), {"0.content.0.image_url.url": MISSING}),
        (said(content=[{"type": "image_url", "image_url": "x"}]), {"0.content.0.image_url": OBJECT}),
        (said(content=[{"type": "audio"}]), {"0.content.0": "its type 'audio' is none of 'text', 'image_url'"}),
        (said(content=[{"text": "a"}]), {"0.content.0": "the field 'type' is missing"}),
        (said(content=["a", 5]), {f"0.content.{n}": "it must be a JSON object" for n in (0, 1)}),
        (said(stop=["a", 1]), {"0.stop.1": "it must be text"}),
        (said(n=9), {"0.n": "it must be at most 8"}),
        (said(n="x"), {"0.n": "it must be a whole number"}),
        (said(names=["a"] * 3), {"0.names": "it must have at most 2 items, and has 3"}),
        ([{"role": "tool"}], {"0.role": "it must be 'user' or 'assistant'"}),
        ([{}], {"0.role": "this field is missing"}),
        ({}, {"": "it must be a list"}),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a", "more": 1}]}, 7],
            {
                "0.content.0.more": "there is no such field, or what it asks cannot be done here",
                "1": "it must be a JSON object",
            },
        ),
    ],
)  # fmt: skip
def test_each_field_is_named_as_it_stands_in_what_was_sent(sent: Any, expected: dict[str, str]) -> None:
    assert told(sent) == expected


def test_no_word_of_pydantic_is_left() -> None:
    for sent in (
        said(content=[{"type": "text", "text": None}], n=None, names="a"),
        [None],
        said(stop=5, n=1.5),
    ):
        sentence = " ".join(f"{place} {what}" for place, what in told(sent).items())
        assert not any(
            word in sentence for word in ("Input", "valid", "union", "str", "list[", "Field", "tuple")
        )


def test_without_what_was_sent_the_paths_stay() -> None:
    with pytest.raises(ValidationError) as caught:
        Said.model_validate({"role": "user", "n": 0})
    assert in_words(caught.value.errors(), "together") == "n: it must be at least 1"


def test_every_pattern_is_told_in_words() -> None:
    """A person who calls a project 品牌 is not answered with an expression."""
    source = Path(comfyloop.__file__).parent
    found = {
        pattern
        for file in source.rglob("*.py")
        for pattern in re.findall(r'\bpattern=r?"([^"]+)"', file.read_text("utf-8"))
    }
    assert len(found) > 5
    for pattern in found:
        with pytest.raises(ValidationError) as caught:
            TypeAdapter(Annotated[str, Field(pattern=pattern)]).validate_python("\n品牌/..")
        (complaint,) = complaints(caught.value.errors())
        assert "^" not in complaint.what and "[" not in complaint.what, pattern


@pytest.mark.parametrize("name", ["con", "nul.1", "lpt9", "a."])
def test_a_project_has_a_name_that_a_folder_can_have_on_windows(name: str) -> None:
    with pytest.raises(ValidationError, match="Windows has no folder of that name"):
        Project(name=name, base_model="starter")
    assert Project(name="console.1", base_model="starter").name == "console.1"
