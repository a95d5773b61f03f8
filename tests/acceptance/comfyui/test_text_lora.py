"""A text adapter in ComfyUI itself: its loader takes every key, and its text encoder answers as PEFT's model does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from comfyloop.registry import comfyui_text
from tests.unit.serve.embedded.conftest import save_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("COMFYUI_DIR") or not os.environ.get("COMFYUI_PYTHON"),
        reason="set COMFYUI_DIR to a checkout of ComfyUI and COMFYUI_PYTHON to its Python",
    ),
]
PROBE = Path(__file__).with_name("text_lora_probe.py")


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_text_encoder_answers_as_the_adapter_does_beside_its_base_model(dora: bool, tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=128, tie_word_embeddings=True, initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "base")
    everything = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    ours = save_adapter(
        Qwen3ForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter", target_modules=everything,
        use_dora=dora,
    )  # fmt: skip
    tokens = torch.tensor([[5, 17, 3, 99, 150, 42]])
    save_file({"tokens": tokens}, tmp_path / "inputs")
    assert not comfyui_text.write(tmp_path / "adapter", "qwen3", tmp_path / "lora.safetensors")

    places = [tmp_path / name for name in ("base", "lora.safetensors", "inputs", "outputs")]
    environment = os.environ | {
        "PYTHONPATH": os.environ.get("COMFYUI_PYTHONPATH", ""), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [os.environ["COMFYUI_PYTHON"], str(PROBE), *map(str, places)],
        cwd=os.environ["COMFYUI_DIR"], env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("this ComfyUI generates no text or is from before March 2026")
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(tmp_path / "outputs")
    assert found["refused"] == 0, done.stdout
    with torch.no_grad():
        want = ours(tokens).logits[:, -1]
        answer = ours.generate(input_ids=tokens, do_sample=False, max_new_tokens=12, eos_token_id=None)[0, 6:]
        with ours.disable_adapter():
            plain = ours(tokens).logits[:, -1]
    assert (found["without"] - plain).abs().max() < 1e-3
    assert (found["with"] - want).abs().max() < 1e-3 < (want - plain).abs().max()
    assert found["answer"].tolist() == answer.tolist()
