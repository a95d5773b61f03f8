"""An adapter that an engine would apply in part only is refused, with the tensor named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from comfyloop.errors import InvalidInput, NotFound
from comfyloop.models.adapter_check import Limits, check
from comfyloop.serve.engines.kinds._layers import LAYERS
from tests.unit.serve.embedded.conftest import save_adapter

VLLM = Limits("vLLM", rank=8, layers=LAYERS, hint="Set tower_loras.")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def adapter(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "text"
    save_adapter(AutoModelForCausalLM.from_pretrained(tiny_llm), path)
    return path


@pytest.fixture
def changed(adapter: Path, tmp_path: Path) -> Callable[..., str]:
    """The adapter with its tensors or its configuration changed."""

    def change(tensors: Callable[[Tensors], object] = lambda tensors: None, **config: object) -> str:
        path = tmp_path / "changed"
        shutil.copytree(adapter, path)
        file = path / "adapter_model.safetensors"
        found = load_file(file)
        tensors(found)
        save_file(found, file)
        old = json.loads((path / "adapter_config.json").read_text())
        (path / "adapter_config.json").write_text(json.dumps({**old, **config}))
        return str(path)

    return change


def test_what_peft_saves_passes(adapter: Path, tiny_llm: Path) -> None:
    check("acme-v1", str(adapter), VLLM, str(tiny_llm))
    check("acme-v1", str(adapter), VLLM, "some/hub-id")


def first(tensors: Tensors, part: str = "lora_A") -> str:
    return next(name for name in sorted(tensors) if part in name)


def rename(old: str, new: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


@pytest.mark.parametrize(
    ("tensors", "config", "sentence"),
    [
        (rename("layers.0.", "layers.7."), {}, "layers.7.* that the base model does not have"),
        (rename("q_proj", "router"), {}, "router.*does not adapt"),
        (rename("model.layers", "language_model.layers"), {}, r"the base model calls it model\.layers"),
        (rename("model.layers", "vision_tower.layers"), {}, "outside the language model"),
        (rename(".lora_B.weight", ".lora_B.bias"), {}, "not a LoRA tensor"),
        (lambda t: t.pop(first(t)), {}, "only one of the two"),
        (lambda t: None, {"init_lora_weights": "pissa"}, "takes a part out of the base weights"),
        (lambda t: t.update({first(t): torch.zeros(4, 7)}), {}, "does not fit the base model"),
        (lambda t: t.update({first(t): torch.zeros(9, 64)}), {}, "ranks 9 and 4"),
        (lambda t: t[first(t)].fill_(float("nan")), {}, "not finite"),
        (lambda t: t.clear(), {}, "no tensors"),
        (lambda t: None, {"use_dora": True}, "use_dora"),
        (lambda t: None, {"bias": "all"}, "biases"),
        (lambda t: None, {"peft_type": "IA3"}, "IA3"),
        (lambda t: None, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        (lambda t: None, {"lora_alpha": 0}, "its lora_alpha is 0, so it would change nothing"),
        (lambda t: None, {"lora_alpha": None}, "its lora_alpha is None"),
        (lambda t: None, {"r": 0}, "its r is 0"),
        (lambda t: None, {"r": 8}, "rank 4 at .*adapter_config.json says 8"),
        (
            lambda t: None,
            {"alpha_pattern": {"v_proj": 32}},
            "added 8 times at .*v_proj and 2 times elsewhere",
        ),
        (lambda t: None, {"rank_pattern": {"^q_proj": 2}, "use_rslora": True, "r": 5}, "rank 4 at"),
        (lambda t: None, {"alpha_pattern": {"q_proj": 0.0}}, "its alpha_pattern of q_proj is 0.0"),
    ],
)
def test_what_would_be_left_out_is_refused(
    changed: Callable[..., str],
    tiny_llm: Path,
    tensors: Callable[[Tensors], object],
    config: dict[str, object],
    sentence: str,
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        check("acme-v1", changed(tensors, **config), VLLM, str(tiny_llm))


def test_a_rank_above_the_engines_is_refused_with_the_setting(adapter: Path, tiny_llm: Path) -> None:
    with pytest.raises(InvalidInput, match=r"rank 4 .* at most 2.*max_lora_rank"):
        check("acme-v1", str(adapter), Limits("vLLM", rank=2), str(tiny_llm))


def test_a_tower_is_let_through_where_the_engine_adapts_it(tiny_vlm: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_vlm)
    save_adapter(model, tmp_path / "tower", target_modules=r".*vision.*\.(q_proj|v_proj)")
    with pytest.raises(InvalidInput, match=r"outside the language model.*tower_loras"):
        check("acme-v1", str(tmp_path / "tower"), VLLM, str(tiny_vlm))
    check("acme-v1", str(tmp_path / "tower"), Limits("vLLM", outside=True), str(tiny_vlm))


def test_a_file_that_is_cut_off_or_gone_is_told(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "cut")
    file = tmp_path / "cut" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InvalidInput, match="cut off"):
        check("acme-v1", str(tmp_path / "cut"), VLLM)
    file.write_bytes(b"<html>")
    with pytest.raises(InvalidInput, match="not a whole safetensors"):
        check("acme-v1", str(tmp_path / "cut"), VLLM)
    file.unlink()
    with pytest.raises(NotFound, match="does not exist"):
        check("acme-v1", str(tmp_path / "cut"), VLLM)
