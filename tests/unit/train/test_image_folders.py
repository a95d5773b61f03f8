"""Diffusers folders are read as whole as single files are: nothing is made up where a file is missing or damaged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file, save_file

from comfyloop.errors import ModelError
from comfyloop.stable_diffusion import tokenizer
from comfyloop.stable_diffusion.folder import read_folder
from comfyloop.stable_diffusion.look import look
from comfyloop.train.image import checkpoint
from comfyloop.train.image.model import read_scheduler
from tests import image_models

pytestmark = pytest.mark.slow

Copy = Callable[..., Path]
CLIP_TEXT = ["transformers", "CLIPTextModel"]
MODEL = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of SD1.5 with an encoder of small vocabulary's size, as diffusers saves one."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("folder") / "whole"
    image_models.tiny_unet("sd15")[0].save_pretrained(folder / "unet")
    image_models.tiny_kl(0.18215).save_pretrained(folder / "vae")
    image_models.CLIPTextModel(image_models.text_config(768)).save_pretrained(folder / "text_encoder")
    tokenizer.load().save_pretrained(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", **checkpoint.SCHEDULE}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": CLIP_TEXT,
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Copy:
    """The folder with JSON files changed; large files are links, to be replaced and not written into."""
    counted = iter(range(100))

    def copy(file: str = "", **changes: Any) -> Path:
        place = tmp_path / f"folder{next(counted)}"
        shutil.copytree(whole, place, copy_function=os.link)
        if changes:
            value = json.loads((place / file).read_text())
            replace(place / file, json.dumps(value | changes))
        return place

    return copy


def replace(file: Path, text: str | bytes) -> None:
    file.unlink()
    file.write_bytes(text.encode() if isinstance(text, str) else text)


def refused(place: Path, *words: str, looks: bool = True) -> None:
    for read in (checkpoint.load, lambda place: look(str(place))) if looks else (checkpoint.load,):
        with pytest.raises(ModelError) as error:
            read(place)
        assert all(word in str(error.value) for word in (str(place), *words)), error.value


def test_a_whole_folder_is_read(copy: Copy) -> None:
    model = checkpoint.load(copy())
    assert model.family == "sd15" and model.scheduler.config.prediction_type == "epsilon"
    assert "Stable Diffusion 1.5 in a diffusers folder, which predicts the noise" in look(str(copy()))


# --- what is predicted --------------------------------------------------------------------------------------

SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("zero", [False, True])
def test_the_scheduler_says_what_is_predicted(prediction: str, zero: bool, copy: Copy) -> None:
    place = copy(SCHEDULER, prediction_type=prediction, rescale_betas_zero_snr=zero)
    folder = read_folder(place)
    assert folder.objective is not None
    assert (folder.objective.prediction, folder.objective.zero_terminal_snr) == (prediction, zero)
    scheduler = read_scheduler(DDPMScheduler, place)
    assert scheduler.config.prediction_type == prediction
    assert (float(scheduler.alphas_cumprod[-1]) == 0) is zero


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "flow matching"),
        ({"prediction_type": "flow_prediction"}, "flow matching"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}, "EDM"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDM"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "EDM"),
        ({"_class_name": "LCMScheduler"}, "distilled"),
        ({"_class_name": "DDPMWuerstchenScheduler"}, "DDPMWuerstchenScheduler"),
        ({"_class_name": None}, "not known"),
        ({"prediction_type": "x"}, "'x'"),
    ],
)
def test_what_is_not_trained_here_is_refused_by_name(changes: dict[str, Any], name: str, copy: Copy) -> None:
    refused(copy(SCHEDULER, **changes), name)


def test_a_schedule_that_nobody_knows_is_named(copy: Copy) -> None:
    refused(copy(SCHEDULER, beta_schedule="mine"), "scheduler", "mine", looks=False)


# --- what is taken in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"in_channels": 9}, "inpainting"),
        ({"in_channels": 8}, "editing"),
        ({"in_channels": 4, "out_channels": 8}, "gives 8"),
        ({"class_embed_type": "projection"}, "class_embed_type"),
        ({"num_class_embeds": 1000}, "num_class_embeds"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
        ({"addition_embed_type": "text_image"}, "addition_embed_type"),
        ({"cross_attention_dim": 1280}, "refiner"),
        ({"cross_attention_dim": [768]}, "width [768]"),
        ({"_class_name": "UNetMotionModel"}, "UNetMotionModel"),
    ],
)
def test_unets_that_are_told_more_are_refused_by_name(changes: dict[str, Any], word: str, copy: Copy) -> None:
    refused(copy("unet/config.json", **changes), word)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel"),
        ({"text_encoder": ["alt_diffusion", "RobertaSeriesModelWithTransformation"]}, "Roberta"),
        ({"text_encoder": [None, None]}, "left out"),
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, "UNet3DConditionModel"),
        ({"transformer": [], "_class_name": "PixArtAlphaPipeline"}, "PixArtAlphaPipeline"),
    ],
)
def test_parts_of_another_class_are_refused_by_name(changes: dict[str, Any], word: str, copy: Copy) -> None:
    refused(copy("model_index.json", **changes), word)


def test_an_encoder_of_another_width_is_refused(copy: Copy, tmp_path: Path) -> None:
    place = copy()
    shutil.rmtree(place / "text_encoder")
    narrow = image_models.text_config(128)
    image_models.CLIPTextModel(narrow).save_pretrained(place / "text_encoder")
    refused(place, "width 128", "768", looks=False)


def test_an_encoder_of_another_type_is_refused_by_name(copy: Copy) -> None:
    refused(copy("text_encoder/config.json", model_type="roberta"), "text_encoder", "roberta")


# --- what is missing or damaged -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "file", "key"),
    [
        ("text_encoder", "model.safetensors", "encoder.layers.1.mlp.fc2.weight"),
        ("unet", MODEL, "conv_out.weight"),
        ("vae", MODEL, "encoder.conv_in.weight"),
    ],
)
def test_a_part_that_lacks_a_tensor_is_refused(part: str, file: str, key: str, copy: Copy) -> None:
    place = copy()
    tensors = load_file(place / part / file)
    tensor = tensors.pop(key)
    (place / part / file).unlink()
    save_file(tensors, place / part / file, metadata={"format": "pt"})
    refused(place, f"lacks {key}", part, looks=False)
    save_file(
        {**tensors, key: tensor, "more.weight": tensor.clone()},
        place / part / file,
        metadata={"format": "pt"},
    )
    refused(place, "has the unknown more.weight", part, looks=False)
    save_file({**tensors, key: tensor[:1].clone()}, place / part / file, metadata={"format": "pt"})
    refused(place, part, looks=False)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(part: str, copy: Copy) -> None:
    place = copy()
    shutil.rmtree(place / part)
    refused(place, part, looks=part != "vae")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model_index.json", "{"),
        ("model_index.json", "[]"),
        ("model_index.json", "[" * 100_000),
        ("model_index.json", '{"unet": ' + "9" * 5000 + "}"),
        ("model_index.json", b"\xff\xfe\x00"),
        ("unet/config.json", "[["),
        ("unet/config.json", "null"),
        ("vae/config.json", "{"),
        ("text_encoder/config.json", "[" * 100_000),
        ("scheduler/scheduler_config.json", ""),
        ("tokenizer/tokenizer.json", "{"),
        ("tokenizer/tokenizer.json", '{"version": "1.0"}'),
        (f"unet/{MODEL}", b"x" * 100),
        (f"vae/{MODEL}", b""),
        ("text_encoder/model.safetensors", b"x" * 100),
    ],
)
def test_a_damaged_file_is_named(file: str, text: str | bytes, copy: Copy) -> None:
    place = copy()
    replace(place / file, text)
    name = file.split("/")[0]
    refused(place, name, looks=file.endswith("json") and name not in ("vae", "tokenizer"))


@pytest.mark.parametrize(
    "changes",
    [{"sample_size": {}, "block_out_channels": "x"}, {"norm_num_groups": 7}, {"down_block_types": ["Foo"]}],
)
def test_a_configuration_that_makes_no_unet_is_named(changes: dict[str, Any], copy: Copy) -> None:
    refused(copy("unet/config.json", **changes), "unet", looks=False)


def test_words_are_not_made_up_where_the_tokenizer_lacks_its_files(copy: Copy) -> None:
    """transformers makes a tokenizer of three words then, and every prompt becomes the same one."""
    place = copy()
    (place / "tokenizer/tokenizer.json").unlink()
    refused(place, "tokenizer", "vocab.json")
    (place / "tokenizer/vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1, "!": 2}')
    (place / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    refused(place, "tokenizer", "words", looks=False)


def test_folders_with_fp16_files_alone_are_read(copy: Copy, whole: Path) -> None:
    place = copy()
    for file in [*place.rglob("*model.safetensors")]:
        tensors = {name: t.half() for name, t in load_file(file).items()}
        file.unlink()
        save_file(
            tensors, file.with_name(file.name.replace(".safe", ".fp16.safe")), metadata={"format": "pt"}
        )
    model = checkpoint.load(place)
    expected = load_file(whole / "unet" / MODEL)["conv_in.weight"].half().float()
    assert torch.equal(model.denoiser.conv_in.weight, expected)
    assert {p.dtype for module in model.modules for p in module.parameters()} == {torch.float32}
    look(str(place))


def test_weights_as_pickles_alone_are_not_read(copy: Copy) -> None:
    place = copy()
    (place / "unet" / MODEL).unlink()
    (place / "unet/diffusion_pytorch_model.bin").write_bytes(b"x")
    refused(place, "unet", "pickle", "save_pretrained")


def test_a_transformer_is_read_whole_too(tmp_path: Path) -> None:
    place = image_models.make_tiny_flow(tmp_path / "sd3", "sd3")
    assert "Stable Diffusion 3" in look(str(place))
    config = json.loads((place / "transformer/config.json").read_text())
    file = place / "text_encoder_2/model.safetensors"
    tensors = load_file(file)
    save_file(
        {n: t for n, t in tensors.items() if n != "text_projection.weight"}, file, metadata={"format": "pt"}
    )
    refused(place, "text_encoder_2 lacks text_projection.weight", looks=False)
    save_file(tensors, file, metadata={"format": "pt"})
    (place / "scheduler/scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    refused(place, "DDIMScheduler")
    (place / "scheduler/scheduler_config.json").write_text(
        '{"_class_name": "FlowMatchEulerDiscreteScheduler"}'
    )
    (place / "transformer/config.json").write_text(json.dumps(config | {"in_channels": 33}))
    refused(place, looks=False)
    (place / "transformer/config.json").write_text(json.dumps(config))
    image_models.tiny_kl(0.18215).save_pretrained(tmp_path / "vae")
    with pytest.raises(ModelError, match="make 4"):
        checkpoint.load(place, tmp_path / "vae")
