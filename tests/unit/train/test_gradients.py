"""Before the first step gradients are held against plain autograd, through dequantised weights where they are in
four bits."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyloop.errors import ModelError
from comfyloop.formats import Row, Turn
from comfyloop.models.quantization import four_bit_layers
from comfyloop.train.data.examples import Example
from comfyloop.train.kernels import lora, mlp, rms_norm
from comfyloop.train.recipes import sft
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text import forward, gradients, models
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.models import Loaded, describe, load
from tests.families import make_family
from tests.unit.train.conftest import RunRecipe
from tests.unit.train.test_preferences import THINGS, pair_row

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra `quant`)"
)
needs_avx512_bf16 = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="this processor has no AVX512-BF16"
)


@pytest.fixture(scope="module")
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family("qwen2_vl", tmp_path_factory.mktemp("models") / "qwen2-vl")


def ready(model: Path, **values: Any) -> tuple[Loaded, ImageFeatures, list[Example]]:
    spec = TrainSpec.model_validate({"model": str(model), "train": "t", "dtype": "float32", **values})
    description = describe(str(model))
    encoder = description.encoder(spec)
    examples = [
        encoder.encode(Row(1, thing, (Turn("user", f"A {thing}?"), Turn("assistant", f"The {thing}, slow."))))
        for thing in ("mug", "basket")
    ]
    loaded = load(spec, description, None)
    return loaded, ImageFeatures(loaded), examples


def wrong_backward(function: Any, output: int, factor: float) -> Callable[..., Any]:
    """A function's backward pass with one of its gradients that is off by a factor."""
    right = function.backward

    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        found = list(right(ctx, *above))
        if found[output] is not None:  # nothing wants a gradient below the first layer
            found[output] = factor * found[output]
        return tuple(found)

    return staticmethod(backward)


@pytest.mark.parametrize(
    ("function", "output", "kind", "layers"),
    [
        (lora._LoraLinears, 0, "self_attn", "all-linear"),  # of what a LoRA layer reads
        (lora._LoraLinears, 4, "lora_A", "all-linear"),  # of the first half of a LoRA
        (lora._LoraLinears, 5, "lora_B", "all-linear"),
        (mlp._LoraGatedMlp, 0, "self_attn", "all-linear"),
        (mlp._LoraGatedMlp, 13, "lora_B", "all-linear"),
        (mlp._GatedMlp, 0, "self_attn", ["q_proj", "v_proj"]),  # runs where its own layers are not trained
        (rms_norm._RmsNorm, 0, "self_attn", "all-linear"),
    ],
)
def test_a_backward_pass_that_is_a_tenth_off_is_refused(
    function: Any,
    output: int,
    kind: str,
    layers: str | list[str],
    tiny_llm: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its log-probabilities are right, which was all that had been looked at."""
    model, features, examples = ready(tiny_llm, adapter={"target_modules": layers})
    forward.prove(model, features, examples)
    assert not model.alone
    monkeypatch.setattr(function, "backward", wrong_backward(function, output, 1.1))
    with pytest.raises(ModelError, match=rf"backward pass .* is wrong .* gradients of \S*{kind}\S* are \d+%"):
        forward.prove(model, features, examples)


def test_passes_that_are_wrong_on_an_untested_device_are_left_out(
    tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, features, examples = ready(tiny_llm)
    monkeypatch.setattr(lora._LoraLinears, "backward", wrong_backward(lora._LoraLinears, 5, 1.1))
    monkeypatch.setattr(forward, "TESTED_ON", ())
    assert "lora_B" in forward.prove(model, features, examples)
    assert not model.alone and forward.prove(model, features, examples) == ""


@needs_bitsandbytes
@needs_avx512_bf16
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_packed_for_inference_are_refused(
    dtype: str, tiny_llm: Path, run_recipe: RunRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What bitsandbytes 0.49 does by itself: a run learnt next to nothing, and had succeeded."""
    monkeypatch.setattr(models, "keep_unpacked", lambda model: 0)
    rows = [pair_row(thing) for thing in THINGS]
    with pytest.raises(ModelError, match=r"is wrong .* Leave quant_method out"):
        run_recipe(sft, tiny_llm, rows, quant_method="bnb", dtype=dtype)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_bit_weights_stay_unpacked_whoever_looks_at_the_model(dtype: str, qwen2_vl: Path) -> None:
    """The hold-out is looked at in evaluation mode and without gradients, which is when they were packed."""
    model, features, examples = ready(qwen2_vl, quant_method="bnb", dtype=dtype)
    before = [layer.weight.data.clone() for layer in four_bit_layers(model.whole)]
    assert len(before) == 3 * 7
    forward.prove(model, features, examples)
    model.eval()
    with torch.no_grad():
        forward._log_probs(model, features, examples)
    for layer, was in zip(four_bit_layers(model.whole), before, strict=True):
        assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
        assert torch.equal(layer.weight.data, was)


def test_the_proof_leaves_a_model_as_it_was(tiny_llm: Path) -> None:
    model, features, examples = ready(tiny_llm, gradient_checkpointing=True)
    weights = {name: parameter.detach().clone() for name, parameter in model.module.named_parameters()}
    modes = [module.training for module in model.module.modules()]
    passes = [module.__dict__.get("forward") for module in model.module.modules()]
    model.eval()
    chance = torch.get_rng_state()
    forward.prove(model, features, examples)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.module.named_parameters())
    assert [module.__dict__.get("forward") for module in model.module.modules()] == passes
    assert not any(module.training for module in model.module.modules()) and len(modes) > 20
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_what_is_no_number_is_no_agreement(tiny_llm: Path) -> None:
    model, features, examples = ready(tiny_llm)

    model.go_alone("its own code is asked")

    def plain() -> Tensor:
        return torch.cat([forward._own_log_probs(model, features, example) for example in examples])

    assert gradients.disagreement(model, plain, plain) == ""
    worst = gradients.differences(model, lambda: plain() * math.nan, plain)
    assert all(found.share == math.inf for found in worst)
    assert gradients.disagreement(model, lambda: plain() * math.nan, plain)
