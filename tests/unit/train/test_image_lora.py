"""The LoRA file: keys, alpha, metadata, and that it is never written over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from comfyloop.errors import ModelError
from comfyloop.stable_diffusion.kinds import Prediction
from comfyloop.train.image import checkpoint, kohya, lora
from comfyloop.train.image.model import ImageModel
from comfyloop.train.judge.judge import form_of
from comfyloop.train.specs.image import AdapterMetadata, ImageAdapterSpec

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_file_holds_the_trained_change_and_gives_it_back(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue(f"tiny_{family}")
    spec = ImageAdapterSpec(r=4, lora_alpha=8, target_modules="all", text_encoder=True)
    model = checkpoint.load(place)
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([10])
    states = torch.randn(1, 77, 768 if family == "sd15" else 2048)
    extra = {"text_embeds": torch.randn(1, 1280), "time_ids": torch.ones(1, 6)}
    base = model.denoiser(x, t, states, added_cond_kwargs=extra).sample
    lora.add(model, spec)
    for _, parameter in lora.trainable(model):
        parameter.data = (0.1 * torch.randn_like(parameter)).half().float()
    about = AdapterMetadata(project="acme", version="7", parent="5", trigger_words="acme style")
    kohya.save(model, tmp_path / "adapter", about.model_dump())
    tensors, metadata = kohya.read(tmp_path / "adapter" / kohya.FILE)
    stems = {name.split(".")[0] for name in tensors}
    assert all(
        {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"} <= tensors.keys()
        for stem in stems
    )
    assert len(tensors) == 3 * len(stems)
    assert {float(tensors[f"{stem}.alpha"]) for stem in stems} == {8.0}
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q" in stems
    prefixes = {"sd15": {"lora_unet", "lora_te"}, "sdxl": {"lora_unet", "lora_te1", "lora_te2"}}[family]
    assert {"_".join(stem.split("_")[:2]) for stem in stems} == prefixes
    assert any(f"{p}_text_model_encoder_layers_0_self_attn_q_proj" in stems for p in prefixes)
    assert metadata["ss_network_alpha"] == "8" and metadata["comfyloop.version"] == "7"
    assert metadata["modelspec.trigger_phrase"] == "acme style"

    trained = model.denoiser(x, t, states, added_cond_kwargs=extra).sample
    with lora.reference(model, None):
        assert torch.equal(model.denoiser(x, t, states, added_cond_kwargs=extra).sample, base)
    assert not torch.allclose(trained, base, atol=1e-3)
    again = checkpoint.load(place)
    lora.add(again, spec)
    lora.read_into(again, tensors, "the file")
    assert torch.equal(again.denoiser(x, t, states, added_cond_kwargs=extra).sample, trained)


def test_a_parent_of_another_shape_is_refused(tiny_sd15: Path) -> None:
    model = checkpoint.load(tiny_sd15)
    lora.add(model, ImageAdapterSpec(r=4, lora_alpha=8))
    tensors = kohya.tensors(model)
    other = checkpoint.load(tiny_sd15)
    lora.add(other, ImageAdapterSpec(r=8, lora_alpha=8))
    with pytest.raises(ModelError, match="rank 4 and alpha 8"):
        lora.read_into(other, tensors, "v1")
    with pytest.raises(ModelError, match="also changes lora_te_x"):
        lora.read_into(model, {**tensors, "lora_te_x.alpha": torch.tensor(1.0)}, "v1")
    missing = dict(list(tensors.items())[1:])
    with pytest.raises(ModelError, match="v1 lacks"):
        lora.read_into(model, missing, "v1")


@pytest.fixture(scope="module")
def with_lora(tiny_sd15: Path) -> ImageModel:
    model = checkpoint.load(tiny_sd15)
    lora.add(model, ImageAdapterSpec(r=4, lora_alpha=4))
    return model


STEM = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha": torch.ones(2)}, ("alpha", "no number above 0")),
        ({"alpha": torch.zeros(0)}, ("alpha", "no number above 0")),
        ({"alpha": torch.tensor(torch.nan)}, ("alpha", "no number above 0")),
        ({"alpha": torch.tensor(-4.0)}, ("alpha", "no number above 0")),
        ({"alpha": torch.tensor(2.5)}, ("rank 4 and alpha 2.5", "4 and 4")),
        ({"lora_down.weight": torch.zeros(())}, ("another base model", "[]")),
        ({"lora_down.weight": torch.zeros(4)}, ("another base model", "[4]")),
        ({"lora_down.weight": torch.zeros(4, 640)}, ("another base model", "[4, 640]", "[4, 64]")),
        ({"lora_down.weight": torch.zeros(4, 64, 1, 1)}, ("another base model",)),
        ({"lora_up.weight": torch.zeros(64, 1)}, ("another base model", "[64, 1]")),
        ({"lora_up.weight": torch.zeros(4, 64)}, ("another base model",)),
        ({"lora_down.weight": torch.full((4, 64), torch.nan)}, ("no numbers", STEM)),
        ({"lora_down.weight": torch.zeros(8, 64), "lora_up.weight": torch.zeros(64, 8)}, ("rank 8", STEM)),
    ],
)
def test_a_lora_of_odd_shapes_is_refused_by_what_is_odd(
    changes: dict[str, torch.Tensor], words: tuple[str, ...], with_lora: ImageModel
) -> None:
    tensors = {**kohya.tensors(with_lora), **{f"{STEM}.{name}": tensor for name, tensor in changes.items()}}
    with pytest.raises(ModelError) as error:
        lora.read_into(with_lora, tensors, "v1")
    assert all(word in str(error.value) for word in ("v1", *words)), error.value


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_lora_says_what_it_was_taught_to_predict(
    prediction: Prediction, tiny_sd15: Path, tmp_path: Path
) -> None:
    model = checkpoint.load(tiny_sd15, prediction=prediction)
    lora.add(model, ImageAdapterSpec(r=1, lora_alpha=1))
    kohya.save(model, tmp_path / "adapter", {})
    _, metadata = kohya.read(tmp_path / "adapter" / kohya.FILE)
    said = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}[prediction]
    assert metadata["modelspec.prediction_type"] == said
    kohya.refuse_another_prediction(model, metadata, "v1")
    kohya.refuse_another_prediction(model, {}, "one that says nothing")
    other = "sample" if prediction == "epsilon" else "epsilon"
    model.scheduler.register_to_config(prediction_type=other)
    with pytest.raises(ModelError, match=f"v1 was taught on a model that predicts {said}"):
        kohya.refuse_another_prediction(model, metadata, "v1")


def test_an_alpha_in_half_precision_is_the_same(with_lora: ImageModel) -> None:
    tensors = kohya.tensors(with_lora)
    lora.read_into(
        with_lora, {n: t.bfloat16() if n.endswith("alpha") else t for n, t in tensors.items()}, "v1"
    )
    lora.read_into(with_lora, {n: t * 1.0001 if n.endswith("alpha") else t for n, t in tensors.items()}, "v1")


def test_names_of_kohyas_trainer_are_called_so(with_lora: ImageModel) -> None:
    tensors = {n.replace("down_blocks_1", "input_blocks_4"): t for n, t in kohya.tensors(with_lora).items()}
    with pytest.raises(ModelError, match="input_blocks and so on"):
        lora.read_into(with_lora, tensors, "v1")


@pytest.mark.parametrize("alpha", [None, torch.tensor(0.5), torch.ones(2), torch.tensor(torch.inf)])
def test_a_judge_says_which_lora_is_none_of_ours(alpha: torch.Tensor | None, tmp_path: Path) -> None:
    told = {
        "lora_unet_a.lora_down.weight": torch.zeros(4, 8),
        "lora_unet_a.lora_up.weight": torch.zeros(8, 4),
    }
    save_file(told | ({} if alpha is None else {"lora_unet_a.alpha": alpha}), tmp_path / "v3.safetensors")
    with pytest.raises(ModelError, match=r"v3\.safetensors.*alpha"):
        form_of(tmp_path / "v3.safetensors")
