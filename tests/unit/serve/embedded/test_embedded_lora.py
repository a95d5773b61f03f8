"""Adapters: the same logits as plain PEFT, all of a file or nothing of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from comfyloop.errors import InvalidInput, NotFound
from comfyloop.serve.embedded.lora import LoraRows, read_adapter
from tests.unit.serve.embedded.conftest import save_adapter

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 3},
    "dora": {"use_dora": True},
    "all linear": {"target_modules": "all-linear"},
    "by pattern": {"target_modules": r".*\.(0|1)\.mlp\.(up|down)_proj"},
    "one layer": {"layers_to_transform": [1]},
    "excluded": {"exclude_modules": ["k_proj"]},
    "ranks by layer": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 6},
        "alpha_pattern": {"o_proj": 3},
    },
}


@pytest.fixture
def model(tiny_llm: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.float32).eval()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_same_logits_as_peft(model: Any, tiny_llm: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    ids = torch.randint(5, model.config.vocab_size, (2, 17))
    plain = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = save_adapter(plain, tmp_path, **config)(ids).logits
        base = model(ids).logits
        rows = LoraRows(model)
        rows.attach(read_adapter("a", tmp_path, model))
        rows.select([rows.attached["a"]] * 2)
        assert (model(ids).logits - expected).abs().max() < 2e-5 * expected.abs().max()
        assert (base - expected).abs().max() > 0.1
        rows.select([rows.attached["a"], None])
        mixed = model(ids).logits
        assert (mixed[0] - expected[0]).abs().max() < 2e-5 * expected.abs().max()
        assert torch.equal(mixed[1], base[1])
        rows.select([None, None])
        assert torch.equal(model(ids).logits, base)
        rows.detach("a")
        assert not any(m._forward_hooks for m in model.modules())


def test_bfloat16_as_peft(tiny_llm: Path, tmp_path: Path) -> None:
    plain, ours = (AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.bfloat16).eval() for _ in "ab")
    ids = torch.randint(5, ours.config.vocab_size, (1, 9))
    with torch.inference_mode():
        expected = save_adapter(plain, tmp_path)(ids).logits
        rows = LoraRows(ours)
        rows.attach(read_adapter("a", tmp_path, ours))
        rows.select([rows.attached["a"]])
        assert torch.equal(ours(ids).logits, expected)


def test_an_adapter_of_the_vision_side(tiny_vlm: Path, tmp_path: Path) -> None:
    plain, ours = (AutoModelForImageTextToText.from_pretrained(tiny_vlm).eval() for _ in "ab")
    targets = r".*(multi_modal_projector\.linear_1|vision_tower.*\.[qkv]_proj|language_model.*\.q_proj)"
    ids = torch.tensor([[5, 3, 3, 3, 3, 9]])
    pixels = torch.randn(1, 3, 28, 28)
    with torch.inference_mode():
        expected = save_adapter(plain, tmp_path, target_modules=targets)(
            input_ids=ids, pixel_values=pixels
        ).logits
        rows = LoraRows(ours)
        rows.attach(read_adapter("a", tmp_path, ours))
        rows.select([rows.attached["a"]])
        assert (
            ours(input_ids=ids, pixel_values=pixels).logits - expected
        ).abs().max() < 2e-5 * expected.abs().max()


def _tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        file = path / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return spoil


def _config(**changes: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        file = path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing tensor": (
        _tensors(lambda t: t.pop(KEY)),
        "has no tensor model.layers.1.self_attn.q_proj.lora_A",
    ),
    "missing layer": (
        _tensors(lambda t: [t.pop(k) for k in list(t) if "layers.1.self_attn.q_proj" in k]),
        "no tensors for 1 of its 8 target layers",
    ),
    "layer left over": (
        _tensors(lambda t: t.update({KEY.replace("layers.1", "layers.7"): torch.zeros(4, 64)})),
        "this model lacks",
    ),
    "another rank": (_config(r=8), "with r=8 on this model it must be"),
    "wrong shape": (_tensors(lambda t: t.update({KEY: torch.zeros(4, 65)})), "must be (4, 64)"),
    "not finite": (_tensors(lambda t: t[KEY].fill_(float("nan"))), "not finite"),
    "not lora tensor": (
        _tensors(lambda t: t.update({"lm_head.weight": torch.zeros(2)})),
        "not a LoRA tensor",
    ),
    "magnitude without dora": (
        _tensors(
            lambda t: t.update({KEY.replace("lora_A.weight", "lora_magnitude_vector"): torch.zeros(64)})
        ),
        "configuration excludes",
    ),
    "other targets": (_config(target_modules=["q_proj"]), "target_modules do not name"),
    "no targets": (_config(target_modules=["nothing"]), "target_modules do not name"),
    "not a linear layer": (_config(target_modules=["input_layernorm"]), "not a linear layer"),
    "another kind": (_config(peft_type="IA3"), "applies LoRA"),
    "biases": (_config(bias="all"), "trained biases"),
    "no scale": (_config(lora_alpha=0), "its lora_alpha is 0, so it would change nothing"),
    "no number for a scale": (_config(lora_alpha=None), "its lora_alpha is None"),
    "saved modules": (_config(modules_to_save=["lm_head"]), "modules_to_save"),
    "broken json": (lambda p: (p / "adapter_config.json").write_text("{") and None, "cannot be read"),
    "broken weights": (
        lambda p: (p / "adapter_model.safetensors").write_bytes(b"\0" * 99) and None,
        "cannot be read",
    ),
}


@pytest.mark.parametrize(("spoil", "sentence"), SPOILED.values(), ids=SPOILED.keys())
def test_a_spoiled_adapter_is_refused_whole(
    text_engine: Any, adapters: list[Path], tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    path = tmp_path / "adapter"
    shutil.copytree(adapters[0], path)
    spoil(path)
    with pytest.raises(InvalidInput) as refused:
        text_engine.load("spoiled", path)
    assert sentence in str(refused.value)
    assert "spoiled" not in [a.name for a in text_engine.engine.adapters]
    text_engine.load("spoiled", adapters[0])  # nothing was kept of the bad one, not even its name
    text_engine.engine.remove_adapter("spoiled")


def test_a_directory_that_is_not_there(text_engine: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        text_engine.load("gone", tmp_path / "nothing")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_a_lora_that_belongs_on_a_changed_base_is_refused(
    start: str, model: Any, tiny_llm: Path, tmp_path: Path
) -> None:
    """PEFT takes a part out of the base weights; added to the base as it comes, the answers are others."""
    ids = torch.randint(5, model.config.vocab_size, (1, 17))
    plain = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = save_adapter(plain, tmp_path, init_lora_weights=start)(ids).logits
    with pytest.raises(
        InvalidInput, match=f"init_lora_weights = {start}, which takes a part out .* plain LoRA"
    ):
        read_adapter("a", tmp_path, model)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": True}))
    rows = LoraRows(model)
    rows.attach(read_adapter("a", tmp_path, model))
    rows.select([rows.attached["a"]])
    with torch.inference_mode():
        assert (model(ids).logits - expected).abs().max() > 1  # what was served without a word


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", False])
def test_a_lora_that_leaves_its_base_alone_is_taken_however_it_began(
    start: Any, model: Any, tiny_llm: Path, tmp_path: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.float32).eval()
    ids = torch.randint(5, model.config.vocab_size, (1, 17))
    with torch.inference_mode():
        expected = save_adapter(plain, tmp_path, init_lora_weights=start)(ids).logits
        rows = LoraRows(model)
        rows.attach(read_adapter("a", tmp_path, model))
        rows.select([rows.attached["a"]])
        assert (model(ids).logits - expected).abs().max() < 2e-5 * expected.abs().max()
