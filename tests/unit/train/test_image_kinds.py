"""Checkpoints that training would get wrong: read as ComfyUI reads them or refused by name, never as others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from comfyloop.errors import ModelError
from comfyloop.stable_diffusion.look import look
from comfyloop.train.image import checkpoint

pytestmark = pytest.mark.slow

UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model."
Tensors = dict[str, Tensor]
Write = Callable[..., Path]


def cut(place: Path) -> Tensors:
    """A checkpoint's tensors, of the vocabularies the first words alone."""
    tensors = load_file(place)
    return {n: t[:64].clone() if "token_embedding" in n else t for n, t in tensors.items()}


@pytest.fixture(scope="module")
def sd15(tiny_sd15: Path) -> Tensors:
    return cut(tiny_sd15)


@pytest.fixture(scope="module")
def sdxl(tiny_sdxl: Path) -> Tensors:
    return cut(tiny_sdxl)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(tensors: Tensors, **metadata: str) -> Path:
        told = {name.replace("__", "."): value for name, value in metadata.items()}
        save_file(tensors, tmp_path / "model.safetensors", metadata=told or None)
        return tmp_path / "model.safetensors"

    return write


def refused(place: Path, *words: str, looks: bool = True, **given: object) -> None:
    """By the trainer and, where no weights are needed, by a look, in a sentence with these words."""
    with pytest.raises(ModelError) as error:
        checkpoint.load(place, **given)  # type: ignore[arg-type]
    assert all(word in str(error.value) for word in words), error.value
    assert "again" not in error.value.hint, "nothing is damaged"
    if looks:
        with pytest.raises(ModelError) as error:
            look(str(place))
        assert all(word in str(error.value) for word in words), error.value


def predicts(place: Path) -> tuple[str, bool]:
    config = checkpoint.load(place).scheduler.config
    return config.prediction_type, config.rescale_betas_zero_snr


# --- what is predicted --------------------------------------------------------------------------------------


def test_markers_say_what_is_predicted(sd15: Tensors, sdxl: Tensors, write: Write) -> None:
    mark = torch.zeros(0)
    for base in (sdxl, sd15):
        assert predicts(write(base)) == ("epsilon", False)
        assert predicts(write({**base, "v_pred": mark})) == ("v_prediction", False)
        assert predicts(write({**base, "ztsnr": mark})) == ("epsilon", False), "as ComfyUI takes it"
    place = write({**sdxl, "v_pred": mark, "ztsnr": mark})
    assert predicts(place) == ("v_prediction", True)
    assert float(checkpoint.load(place).scheduler.alphas_cumprod[-1]) == 0
    assert "SDXL" in look(str(place)) and "the velocity, its last timestep noise alone" in look(str(place))


@pytest.mark.parametrize(
    ("key", "said", "expected"),
    [
        ("modelspec__prediction_type", "v", "v_prediction"),
        ("modelspec__predict_key", "v", "v_prediction"),
        ("modelspec__prediction_type", "epsilon", "epsilon"),
    ],
)
def test_metadata_count_where_there_is_no_marker(
    key: str, said: str, expected: str, sd15: Tensors, write: Write
) -> None:
    assert predicts(write(sd15, **{key: said})) == (expected, False)


@pytest.mark.parametrize("marker", ["edm_mean", "edm_std", "edm_vpred.sigma_max"])
@pytest.mark.parametrize("prediction", [None, "v_prediction"])
def test_edm_models_are_refused_by_name(
    marker: str, prediction: str | None, sdxl: Tensors, write: Write
) -> None:
    refused(write({**sdxl, marker: torch.tensor(120.0)}), "EDM", prediction=prediction)


def test_what_nobody_trains_here_is_refused_unless_the_person_knows_better(
    sd15: Tensors, write: Write
) -> None:
    place = write(sd15, modelspec__prediction_type="rectified flow")
    refused(place, "rectified flow", "prediction_type")
    assert checkpoint.load(place, prediction="sample").scheduler.config.prediction_type == "sample"


# --- what is taken in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "name"), [(9, "inpainting"), (8, "editing"), (5, "depth"), (7, "upscaler")]
)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_unets_that_take_more_than_latents_are_refused_before_anything_is_encoded(
    channels: int, name: str, family: str, write: Write, request: pytest.FixtureRequest
) -> None:
    tensors = request.getfixturevalue(family)
    first = f"{UNET}input_blocks.0.0.weight"
    wide = torch.zeros(len(tensors[first]), channels, 3, 3)
    refused(write({**tensors, first: wide}), name, f"{channels} channels")


def test_other_models_are_called_by_their_names(sd15: Tensors, write: Write) -> None:
    more = {f"{UNET}input_blocks.1.1.time_stack.0.norm1.weight": torch.zeros(4)}
    refused(write({**sd15, **more}), "video")
    more = {f"{UNET}label_emb.0.0.weight": torch.zeros(4, 4)}
    refused(write({**sd15, **more}), "unCLIP")
    alone = {n.removeprefix(UNET): t for n, t in sd15.items() if n.startswith(UNET)}
    refused(write(alone), "a UNet alone", "CheckpointSave")
    refused(write({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(4)}), "Name the whole folder")
    wide = {n: torch.zeros(len(t), 1280) for n, t in sd15.items() if n.endswith("attn2.to_k.weight")}
    refused(write({**sd15, **wide}), "width 1280", "refiner")
    refused(write({**sd15, f"{UNET}adapter.0.weight": torch.zeros(4)}), "has the unknown", looks=False)


def test_shapes_of_no_model_are_no_crash(sd15: Tensors, write: Write, tmp_path: Path) -> None:
    for name, shape in (
        (f"{UNET}input_blocks.0.0.weight", ()),
        (f"{UNET}input_blocks.1.0.out_layers.3.weight", (7, 3)),
        (f"{TEXT}embeddings.token_embedding.weight", (64,)),
        ("first_stage_model.taesd_encoder.x.weight", (4,)),
    ):
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            checkpoint.load(write({**sd15, name: torch.zeros(shape)}))


@pytest.mark.parametrize("said", ["9" * 5000 + "x64", "²x²", "4x4", "64", "x", "-64x64"])
def test_a_resolution_that_is_none_is_passed_over(said: str, sd15: Tensors, write: Write) -> None:
    assert checkpoint.load(write(sd15, modelspec__resolution=said)).denoiser.config.sample_size is None


# --- how the weights are written ----------------------------------------------------------------------------


def scaled(tensors: Tensors, name: str, *, rows: bool) -> tuple[Tensors, Tensor]:
    """A linear layer in 8 bits and its scale, and what the two stand for."""
    weight = tensors[f"{name}.weight"].float()
    most = weight.abs().amax(1, keepdim=True) if rows else weight.abs().max()
    scale = most / 448
    eight = (weight / scale).to(torch.float8_e4m3fn)
    return {f"{name}.weight": eight, f"{name}.scale": scale}, eight.float() * scale


@pytest.mark.parametrize(("scale_name", "rows"), [("scale_weight", False), ("weight_scale", True)])
def test_weights_of_8_bits_are_multiplied_by_their_scales(
    scale_name: str, rows: bool, sd15: Tensors, write: Write
) -> None:
    block = "input_blocks.3.1.transformer_blocks.0.attn2.to_k"
    places = {
        f"{UNET}{block}": "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        f"{TEXT}encoder.layers.0.mlp.fc1": "encoder.layers.0.mlp.fc1.weight",
    }
    given = dict(sd15)
    expected = {}
    for name, nested in places.items():
        eight, expected[nested] = scaled(sd15, name, rows=rows)
        given |= {f"{name}.weight": eight[f"{name}.weight"], f"{name}.{scale_name}": eight[f"{name}.scale"]}
        given[f"{name}.{'scale_input' if scale_name == 'scale_weight' else 'input_scale'}"] = torch.tensor(
            1.0
        )
    if rows:
        quant = json.dumps({"format": "float8_e4m3fn"}).encode()
        given |= {f"{n}.comfy_quant": torch.tensor(list(quant), dtype=torch.uint8) for n in places}
    else:
        given |= {f"{UNET}scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    model = checkpoint.load(write(given))
    read = {**model.denoiser.state_dict(), **model.text_encoders[0].model.state_dict()}
    for nested, weight in expected.items():
        torch.testing.assert_close(read[nested], weight)


def test_other_quantisations_are_refused_by_name(sd15: Tensors, write: Write) -> None:
    name = f"{TEXT}encoder.layers.0.mlp.fc1"
    whole = sd15[f"{name}.weight"]
    refused(write({**sd15, f"{name}.weight": whole.to(torch.int8)}), "quantised", "int8", looks=False)
    quant = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    refused(write({**sd15, f"{name}.comfy_quant": quant}), "quantised", "nvfp4", looks=False)
    blocks = {f"{name}.weight": whole.to(torch.float8_e5m2), f"{name}.weight_scale": torch.ones(8, 6)}
    refused(write({**sd15, **blocks}), "quantised", "48 scales", looks=False)


def test_novelai_names_are_read_as_comfyui_reads_them(sd15: Tensors, write: Write) -> None:
    short = {n.replace(TEXT, "cond_stage_model.transformer."): t for n, t in sd15.items()}
    place = write(short)
    one, other = (checkpoint.load(p).text_encoders[0].model.state_dict() for p in (place, write(sd15)))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert "Stable Diffusion 1.5 in one file" in look(str(place))


def test_weights_that_are_no_numbers_are_found_before_the_first_step(sd15: Tensors, write: Write) -> None:
    for name in (f"{UNET}out.2.weight", f"{TEXT}final_layer_norm.bias"):
        broken = sd15[name].clone()
        broken.view(-1)[0] = torch.inf if "out" in name else torch.nan
        with pytest.raises(ModelError, match="no numbers"):
            checkpoint.load(write({**sd15, name: broken}))


def test_what_other_tools_leave_in_a_file_is_passed_over(sd15: Tensors, sdxl: Tensors, write: Write) -> None:
    """Positions, as whole or real numbers or none; scales and projections of CLIP; averages of the weights."""
    positions = torch.arange(77.0)[None]
    for kind in (torch.float32, torch.int64):
        more = {f"{TEXT}embeddings.position_ids": positions.to(kind), "model_ema.decay": torch.tensor(0.9)}
        assert predicts(write({**sd15, **more}))[0] == "epsilon"
    short = {n.replace(TEXT, "cond_stage_model.transformer."): t for n, t in {**sd15, **more}.items()}
    assert predicts(write(short))[0] == "epsilon"
    first = "conditioner.embedders.0."
    more = {f"{first}logit_scale": torch.tensor(1.0), f"{first}text_projection": torch.zeros(768, 768)}
    assert predicts(write({**sdxl, **more}))[0] == "epsilon"


def test_a_decoder_alone_is_no_vae_to_train_with(sd15: Tensors, write: Write) -> None:
    half = {n: t for n, t in sd15.items() if "taesd_encoder" not in n}
    refused(write(half), "no VAE with an encoder")


def test_pickles_name_the_node_that_converts_them(sd15: Tensors, write: Write, tmp_path: Path) -> None:
    for name in ("old.ckpt", "OLD.CKPT", "old.pt"):
        (tmp_path / name).write_bytes(b"x")
        refused(tmp_path / name, "pickle", "CheckpointSave")
    bare = write({n: t for n, t in sd15.items() if not n.startswith("first_stage_model.")})
    refused(bare, "no VAE with an encoder")
    with pytest.raises(ModelError, match="VAESave"):
        checkpoint.load(bare, tmp_path / "old.pt")
    with pytest.raises(ModelError, match="VAESave"):
        look(str(bare), str(tmp_path / "old.pt"))


def test_a_vae_that_does_not_belong_is_refused(sd15: Tensors, write: Write, tmp_path: Path) -> None:
    bare = write({n: t for n, t in sd15.items() if not n.startswith("first_stage_model.")})
    folder, other = tmp_path / "vae", tmp_path / "other"
    AutoencoderKL(latent_channels=16).save_pretrained(folder)
    refused(bare, "16", looks=False, vae=folder)
    refused(
        bare, f"Name the folder: {folder}", looks=False, vae=folder / "diffusion_pytorch_model.safetensors"
    )
    AutoencoderKL(latents_mean=[0.0] * 4, latents_std=[1.0] * 4).save_pretrained(other)
    refused(bare, "latents_mean", looks=False, vae=other)
    odd = tmp_path / "odd.safetensors"
    save_file({"encoder.conv_in.weight": torch.zeros(4)}, odd)
    with pytest.raises(ModelError, match=r"odd\.safetensors"):
        checkpoint.load(bare, odd)
