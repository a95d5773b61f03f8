"""A text adapter in the forms of others: ms-swift's folder, ComfyUI's LoRA of a text encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from comfyloop.errors import Conflict, InvalidInput
from comfyloop.registry import comfyui_text, swift_folder
from tests.unit.registry.test_gguf import save_adapter, save_whole_model


@pytest.mark.parametrize(
    ("model", "told", "command"),
    [
        ("ms:Qwen/Qwen3-4B", "Qwen/Qwen3-4B", "swift infer --adapters DIR"),
        ("hf:Qwen/Qwen3-4B", "Qwen/Qwen3-4B", "swift infer --adapters DIR --use_hf true"),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B", "swift infer --adapters DIR --use_hf true"),
        ("/models/mine", None, "swift infer --adapters DIR --model /models/mine"),
    ],
)
def test_ms_swift_is_told_the_base_model_where_others_have_it(
    model: str, told: str | None, command: str, tmp_path: Path
) -> None:
    assert swift_folder.complete(tmp_path, model, {}, Path("DIR")) == command
    arguments = json.loads((tmp_path / "args.json").read_text())
    assert arguments.get("model") == told
    assert arguments["tuner_type"] == "lora" and arguments["task_type"] == "causal_lm"
    assert "quant_method" not in arguments


def test_ms_swift_holds_the_base_model_as_it_was_trained_on(tmp_path: Path) -> None:
    swift_folder.complete(tmp_path, "ms:Qwen/Qwen3-4B", {"quant_method": "bnb", "quant_bits": 4}, tmp_path)
    arguments = json.loads((tmp_path / "args.json").read_text())
    assert (arguments["quant_method"], arguments["quant_bits"], arguments["bnb_4bit_quant_type"]) == (
        "bnb",
        4,
        "nf4",
    )


def test_comfyui_gets_the_same_change_under_its_names(tmp_path: Path) -> None:
    model = save_whole_model(tmp_path / "base", "qwen3")
    adapter = save_adapter(
        model, tmp_path / "adapter", alpha_pattern={"layers.1.mlp.down_proj": 20}, use_dora=True
    )
    assert comfyui_text.write(adapter, "qwen3", tmp_path / "lora.safetensors") == []
    found, lora = load_file(tmp_path / "lora.safetensors"), load_file(adapter / "adapter_model.safetensors")
    assert len(found) == 4 * len(lora) // 3
    for name, down in lora.items():
        if not name.endswith(".lora_A.weight"):
            continue
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        key = f"text_encoders.transformer.{layer}"
        up = lora[name.replace("lora_A", "lora_B")]
        np.testing.assert_array_equal(found[f"{key}.lora_down.weight"], down)
        np.testing.assert_array_equal(found[f"{key}.lora_up.weight"], up)
        assert found[f"{key}.alpha"] == (20 if layer == "model.layers.1.mlp.down_proj" else 6)
        assert found[f"{key}.dora_scale"].shape == (len(up), 1)
    with pytest.raises(Conflict, match="there already"):
        comfyui_text.write(adapter, "qwen3", tmp_path / "lora.safetensors")


def test_comfyui_is_not_given_what_it_cannot_use(tmp_path: Path) -> None:
    model = save_whole_model(tmp_path / "base", "qwen2_5_vl")
    adapter = save_adapter(model, tmp_path / "adapter", modules="q_proj qkv lm_head")
    with pytest.raises(InvalidInput, match="'llama'"):
        comfyui_text.write(adapter, "llama", tmp_path / "lora.safetensors")
    (note,) = comfyui_text.write(adapter, "qwen2_5_vl", tmp_path / "lora.safetensors")
    assert note.startswith("2 layers") and len(load_file(tmp_path / "lora.safetensors")) == 2 * 3
