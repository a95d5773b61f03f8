"""What a message may hold is written, read and laid before a template in one way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from comfyloop import formats, modalities
from comfyloop.formats import Item, UnusableRow
from comfyloop.modalities import MODALITIES
from comfyloop.records import ImagePart, Message, TextPart
from comfyloop.wire import wire_message

URL = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize("name", MODALITIES)
def test_a_part_is_stored_shown_and_sent(name: str) -> None:
    modality = MODALITIES[name]
    part = modality.example
    asked = Message(role="user", content=(TextPart(text="What is it? "), part))
    assert Message.model_validate_json(asked.model_dump_json()) == asked
    assert part.type == name in modality.types and modalities.of_type(name) is modality
    assert part.preview and "\n" not in part.preview and part.preview in asked.preview
    sent = wire_message(asked, lambda sha: f"comfyloop://{sha}")
    if modality.holds_bytes:
        assert part.model_input is None and asked.text == "What is it? "
        last = sent["content"][-1]
        assert last["type"] in modality.types and modality.read(last) == f"comfyloop://{part.blob}"
    else:
        assert part.model_input and asked.text == sent["content"] == f"What is it? {part.model_input}"
        assert modality.read(part.model_dump()) == part.model_input


@pytest.mark.parametrize("name", MODALITIES)
def test_a_part_that_is_not_as_its_modality_says_is_refused(name: str) -> None:
    stored = MODALITIES[name].example.model_dump(mode="json")
    for wrong in ({"type": name}, stored | {"colour": "red"}, stored | {"type": "smell"}):
        with pytest.raises(ValidationError):
            Message.model_validate({"role": "user", "content": [wrong]})


def test_no_two_answer_to_one_type() -> None:
    types = [type for modality in MODALITIES.values() for type in modality.types]
    assert len(types) == len(set(types))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "image_url", "image_url": URL},
        {"type": "input_image", "image_url": URL},
        {"type": "image", "image": URL},
        {"type": "image", "path": URL},
    ],
)
def test_a_picture_in_a_row_is_one_however_it_is_written(part: dict[str, Any]) -> None:
    said = [{"type": "input_text", "text": "What?"}, part]
    value = {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": "A cat."}]}
    row = formats.row_of(Item(1, "", value), Path())
    assert row.turns[0].parts == ("What?", None) and [str(image) for image in row.images] == [URL]


@pytest.mark.parametrize(
    "part", [{"type": "text"}, {"type": "text", "text": 3}, {"type": "audio"}, {"type": ["text"]}, {}]
)
def test_a_part_that_holds_nothing_known_is_refused_by_its_type(part: dict[str, Any]) -> None:
    value = {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "A."}]}
    with pytest.raises(UnusableRow, match="message 1 has a part of the type"):
        formats.row_of(Item(1, "", value), Path())


def test_a_record_as_engines_read_it() -> None:
    sha = "a" * 64
    asked = Message(role="user", content=(ImagePart(sha256=sha), TextPart(text="What?")))
    assert wire_message(asked, lambda of: f"comfyloop://{of}") == {
        "role": "user",
        "content": modalities.asked("What?", [f"comfyloop://{sha}"]),
    }
    parts = (TextPart(text="Be "), TextPart(text="kind."))
    assert wire_message(Message(role="system", content=parts), str) == {
        "role": "system",
        "content": "Be kind.",
    }
    assert {part.type for part in asked.content} <= MODALITIES.keys()


def test_a_template_is_given_texts_and_places() -> None:
    assert modalities.slots(["a", None]) == [{"type": "text", "text": "a"}, {"type": "image"}]
