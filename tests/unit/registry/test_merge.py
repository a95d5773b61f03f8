"""A merged model is the base model with the adapter's change in its weights, and nothing else changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from comfyloop.errors import Conflict, InvalidInput
from comfyloop.registry import merge
from tests.unit.registry.conftest import Made, save_model


@pytest.fixture
def adapter(made: Made) -> Path:
    return Path(str(made.version.text_adapter))


def test_adapted_layers_change_by_the_adapter_and_the_others_not_at_all(
    made: Made, adapter: Path, tmp_path: Path
) -> None:
    (made.model / "tokenizer.json").write_text("{}")
    merge.merge(adapter, made.model, tmp_path / "merged")
    before, after = (load_file(folder / "model.safetensors") for folder in (made.model, tmp_path / "merged"))
    lora = load_file(adapter / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        change = np.zeros_like(weight)
        if f"{stem}.lora_A.weight" in lora:
            change = 2 * lora[f"{stem}.lora_B.weight"] @ lora[f"{stem}.lora_A.weight"]  # alpha 4, rank 2
        np.testing.assert_allclose(after[name], weight + change, rtol=1e-6, atol=1e-6)
    assert sum(not np.array_equal(before[name], after[name]) for name in before) == 2
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    with pytest.raises(Conflict, match="there already"):
        merge.merge(adapter, made.model, tmp_path / "merged")


def test_each_block_that_sees_pictures_gets_its_own_change(tmp_path: Path) -> None:
    names = [f"model.visual.blocks.{block}.attn.{part}" for block in range(2) for part in ("qkv", "proj")]
    names += [f"model.visual.merger.mlp.{at}" for at in (0, 2)]
    rng = np.random.default_rng(0)

    def random(*shape: int) -> NDArray[np.float32]:
        return rng.normal(size=shape).astype(np.float32)

    model, adapter = tmp_path / "model", tmp_path / "adapter"
    model.mkdir()
    adapter.mkdir()
    before = {f"{name}.weight": random(6, 4) for name in names}
    lora = {f"base_model.model.{name}.lora_{part}.weight": random(*shape) for name in names
            for part, shape in (("A", (2, 4)), ("B", (6, 2)))}  # fmt: skip
    save_file(before, model / "model.safetensors")
    save_file(lora, adapter / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["qkv", "proj", "0", "2"]}
    (adapter / "adapter_config.json").write_text(json.dumps(told))
    merge.merge(adapter, model, tmp_path / "merged")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    for name in names:
        stem = f"base_model.model.{name}"
        change = lora[f"{stem}.lora_B.weight"] @ lora[f"{stem}.lora_A.weight"]
        np.testing.assert_allclose(after[f"{name}.weight"], before[f"{name}.weight"] + change, rtol=1e-5)


def test_bfloat16_is_rounded_once_to_the_nearest() -> None:
    values = np.array(
        [1.0, 1.00390625, 1.01171875, -3.1415927, 0.0], np.float32
    )  # the 2nd and 3rd lie in the middle
    again = merge._floats(merge._bytes(values, "BF16"), "BF16", "x")
    np.testing.assert_array_equal(again, np.array([1.0, 1.0, 1.015625, -3.140625, 0.0], np.float32))


def test_what_cannot_be_merged_is_said_and_leaves_nothing(made: Made, adapter: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    save_file({name: value.astype(np.int8) for name, value in tensors.items()}, other / "model.safetensors")
    with pytest.raises(InvalidInput, match="quantised"):
        merge.merge(adapter, other, tmp_path / "merged")
    (adapter / "positions.json").write_text(json.dumps({"rope_scaling": None}))
    merge.merge(adapter, made.model, tmp_path / "plain")
    (adapter / "positions.json").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "plain"]
