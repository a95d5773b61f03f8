"""What says how near drawings come: a CLIP where one is set, else the project's own model."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
)

from comfyloop import sight
from comfyloop.errors import ModelError
from comfyloop.formats import UnusableRow
from comfyloop.stable_diffusion import tokenizer
from comfyloop.train.image.rows import decode, picture_at
from comfyloop.train.judge.scorer import ImageScorer, image_scorer_of
from comfyloop.train.judge.sheet import SheetRow, contact_sheet
from comfyloop.train.specs.image import ImageTrainSpec
from comfyloop.train.specs.judge import JudgeSpec

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("clip") / "tiny-clip"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(**sizes, vocab_size=49408, bos_token_id=49406, eos_token_id=49407)
    vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=16)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    CLIPModel(config).save_pretrained(place)
    pixels = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(pixels, tokenizer.load()).save_pretrained(place)
    return place


def scorer(**told: str) -> ImageScorer | None:
    return image_scorer_of(
        JudgeSpec(image=ImageTrainSpec(model="none", train="none", dtype="float32"), **told)
    )


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    places = []
    for name, colour in (("red", "red"), ("green", "green")):
        picture = Image.linear_gradient("L").convert("RGB")
        picture.paste(colour, (0, 0, 128, 256))
        picture.save(tmp_path / f"{name}.png")
        places.append(tmp_path / f"{name}.png")
    return places


@pytest.mark.parametrize("kind", ["clip", "viewer"])
def test_pictures_have_faces_and_fit_texts_more_or_less(
    kind: str, tiny_clip: Path, tiny_vlm: Path, pictures: list[Path]
) -> None:
    eyes = scorer(**{kind: str(tiny_clip if kind == "clip" else tiny_vlm)})
    assert eyes is not None
    red, again, green = (eyes.embed(place) for place in (pictures[0], *pictures))
    assert float(red @ again) == pytest.approx(1.0) and float(red @ green) < 1 - 1e-4
    fits = {eyes.score(place, text) for place in pictures for text in ("a red fox", "设计 " * 40)}
    assert len(fits) == 4 and all(fit < 1 for fit in fits)
    assert eyes.score(pictures[0], "a red fox") in fits


def test_filters_get_the_same_vectors_from_a_process_of_its_own(
    tiny_clip: Path, pictures: list[Path]
) -> None:
    told = sight.ask("clip", [pictures[0].read_bytes, b"no picture".strip, "a red fox"], str(tiny_clip))
    eyes = scorer(clip=str(tiny_clip))
    assert eyes is not None and told[1] is None
    shown, said = (
        np.frombuffer(base64.b64decode(one), "<f2").astype(np.float32) for one in (told[0], told[2])
    )
    assert shown @ eyes.embed(pictures[0]).numpy() == pytest.approx(1, abs=2e-3)
    assert shown @ said == pytest.approx(eyes.score(pictures[0], "a red fox"), abs=5e-3)


def test_a_program_that_cannot_start_answers_nothing_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert sight.ask("clip", ["a fox", "a cat"], str(tmp_path / "none")) == [None, None]
    assert "cannot be used as CLIP" in caplog.text


def test_what_is_too_long_is_cut_by_clip_and_refused_by_a_model(
    tiny_clip: Path, tiny_vlm: Path, pictures: list[Path]
) -> None:
    clip, viewer = scorer(clip=str(tiny_clip)), scorer(viewer=str(tiny_vlm))
    assert clip is not None and viewer is not None
    assert clip.score(pictures[0], "fox " * 600) < 1
    with pytest.raises(UnusableRow, match="more than the 512"):
        viewer.score(pictures[0], "fox " * 600)


def test_what_is_no_clip_is_refused(tiny_clip: Path, tiny_llm: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be used as CLIP.*Set gate_clip"):
        scorer(clip=str(tiny_llm))
    with pytest.raises(ModelError, match="cannot be used as CLIP"):
        scorer(clip=str(tiny_clip.with_name("none")))


def test_a_clip_that_lacks_a_tensor_judges_nothing(tiny_clip: Path, tmp_path: Path) -> None:
    place = shutil.copytree(tiny_clip, tmp_path / "holes")
    tensors = load_file(place / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks visual_projection\.weight"):
        scorer(clip=str(place))


def test_a_model_that_sees_nothing_says_nothing(tiny_llm: Path) -> None:
    assert scorer(viewer=str(tiny_llm)) is None and scorer() is None


def test_a_sheet_has_a_row_a_prompt_and_holds_long_words(pictures: list[Path]) -> None:
    shown = tuple(decode(picture_at(place)) for place in pictures)
    rows = [SheetRow(shown, ("a red fox " * 20, "设计" * 100)) for _ in range(3)]
    sheet = contact_sheet(("live", "candidate"), rows)
    assert sheet.width == 2 * 264 + 8 and sheet.height > 3 * 256
    assert sheet.getpixel((20, 40)) == (255, 0, 0)
