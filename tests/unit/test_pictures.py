"""One rule for pictures and prompts: what the trainer learns from is what the embedded engine answers to."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from comfyloop.formats import Row, Turn
from comfyloop.media.decoding import BadPicture, fit, read_picture
from comfyloop.serve.embedded.loading import load
from comfyloop.serve.embedded.prompts import PromptMaker
from comfyloop.serve.embedded.protocol import EngineMessage
from comfyloop.serve.embedded.vision import Vision
from comfyloop.train.image.rows import decode, picture_at
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.models import describe
from comfyloop.train.text.models import load as load_to_train
from tests.families import SEEING, make_family

MAX_PIXELS = 1_500


def turned() -> bytes:
    """A JPEG that EXIF says to turn, with a half that tells which way, large enough to be decoded in part."""
    image = Image.effect_noise((400, 200), 80).convert("RGB")
    image.paste((200, 30, 30), (0, 0, 200, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


def see_through() -> bytes:
    """A PNG whose transparent half hides black pixels."""
    image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    image.paste((10, 200, 90, 255), (30, 0, 60, 40))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def with_palette() -> bytes:
    image = Image.effect_noise((37, 53), 90).convert("P")
    file = io.BytesIO()
    image.save(file, "GIF", transparency=0)
    return file.getvalue()


@pytest.mark.parametrize("name", SEEING)
def test_trainer_and_engine_see_and_read_the_same(name: str, tmp_path: Path) -> None:
    model = make_family(name, tmp_path / "model")
    pictures = [turned(), see_through(), with_palette()]
    for number, data in enumerate(pictures):
        (tmp_path / f"{number}").write_bytes(data)
    question = ("Look: <image>", "What is it?<image>And<image>that?")
    turns = (
        Turn("user", question[0]),
        Turn("assistant", "A mug."),
        Turn("user", question[1]),
        Turn("assistant", "Cat."),
    )
    row = Row(1, "s", turns, tuple(tmp_path / f"{n}" for n in range(3)))
    spec = TrainSpec(model=str(model), train="t.jsonl", max_pixels=MAX_PIXELS, dtype="float32")
    example = describe(str(model)).encoder(spec).encode(row)

    def parts(text: str, images: list[bytes]) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        for position, piece in enumerate(text.split("<image>")):
            if position:
                url = "data:image/png;base64," + base64.b64encode(images.pop(0)).decode()
                found.append({"type": "image_url", "image_url": {"url": url}})
            if piece:
                found.append({"type": "text", "text": piece})
        return found

    left = list(pictures)
    messages = [
        EngineMessage.model_validate({"role": "user", "content": parts(question[0], left)}),
        EngineMessage(role="assistant", content="A mug."),
        EngineMessage.model_validate({"role": "user", "content": parts(question[1], left)}),
    ]
    served = load(str(model), dtype="float32")
    prompt = PromptMaker(served, MAX_PIXELS, 64_000_000).make(
        messages, add_generation_prompt=True, continue_final_message=False
    )
    assert prompt.ids == example.input_ids[: int(example.answer[0])].tolist()
    seen = example.seen()
    for field, value in seen.items():
        torch.testing.assert_close(prompt.inputs[field], value, rtol=0, atol=0)
    ours = ImageFeatures(load_to_train(spec, describe(str(model)), None)).of(example)
    with torch.no_grad():
        embedded = Vision(served.model, 1 << 20).embed(
            torch.tensor([prompt.ids]), prompt.inputs, prompt.images, ""
        )
    where = torch.tensor(prompt.ids) == describe(str(model)).image_token_id
    rows = torch.cat([v.reshape(-1, v.shape[-1]) for k, v in ours.items() if k.startswith("pooler")])
    torch.testing.assert_close(embedded.embeds[0, where], rows, rtol=1e-5, atol=1e-5)


def test_upright_on_white_and_small() -> None:
    upright = read_picture(turned(), MAX_PIXELS, 10**6)
    assert upright.width < upright.height
    assert upright.width * upright.height <= MAX_PIXELS
    red, other = upright.getpixel((5, 5)), upright.getpixel((5, upright.height - 5))
    assert isinstance(red, tuple)
    assert red[0] > 150 > red[1]
    assert other != red
    white = read_picture(see_through(), 10**6, 10**6)
    assert white.getpixel((3, 3)) == (255, 255, 255)
    assert white.mode == "RGB"


def test_a_jpeg_is_decoded_at_a_fraction_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded before decoding: 12 megapixels are not decoded to be thrown away."""
    file = io.BytesIO()
    Image.new("RGB", (4000, 3000), "red").save(file, "JPEG")
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: (decoded.append(self.size), load(self))[1])
    small = read_picture(file.getvalue(), 100_000, 64_000_000)
    assert decoded[0] == (500, 375)  # an eighth: as small as the format allows, and not below what is wanted
    assert small.size == fit(500, 375, 100_000)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "is empty"), (b"<!doctype html>", "is not one of PNG"), (turned()[:900], "cannot be decoded")],
)
def test_what_is_no_picture(data: bytes, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason):
        read_picture(data, 1_000, 10**6)


CASES = Path(__file__).parents[1] / "cases" / "07b-grey16"


def test_greys_of_sixteen_bits_are_scaled_on_the_text_side_as_on_the_image_side(tmp_path: Path) -> None:
    deep, flat = ((CASES / name).read_bytes() for name in ("cat16.png", "cat8.png"))
    seen = [np.asarray(read_picture(data, 10**6, 10**6)).astype(int) for data in (deep, flat)]
    assert np.abs(seen[0] - seen[1]).max() <= 1 and seen[0].std() > 10
    assert np.array_equal(seen[0], np.asarray(decode(picture_at(CASES / "cat16.png"))))
    assert np.asarray(read_picture((CASES / "white.png").read_bytes(), 10**6, 10**6)).min() == 255
    # further members: scaled down, 16 bits as TIFF-less modes, real numbers, a grey with transparency
    small = np.asarray(read_picture(deep, 1000, 10**6)).astype(int)
    assert small.shape[0] * small.shape[1] <= 1000 and abs(small.mean() - seen[1].mean()) < 4
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    expected = np.round(ramp / 257).astype(int)
    found = np.asarray(read_picture((tmp_path / "ramp.png").read_bytes(), 10**6, 10**6))[..., 0]
    assert np.abs(found - expected).max() <= 1
    Image.fromarray(np.full((8, 8, 2), (0, 0), np.uint8), "LA").save(tmp_path / "clear.png")
    assert np.asarray(read_picture((tmp_path / "clear.png").read_bytes(), 10**6, 10**6)).min() == 255
