"""What a text encoder of ComfyUI's that generates text makes of a LoRA, for the tests to compare with.

Run by ComfyUI's own Python, in its folder:  python text_lora_probe.py MODEL LORA INPUTS OUTPUTS

MODEL is a folder with a small Qwen3. INPUTS holds `tokens`; OUTPUTS gets the logits behind the last of them, without
and with the LoRA, the greedy answer with it, and `refused`, how many keys were not taken. Exit code 77: this ComfyUI
generates no text, or does not know a text encoder's layers by the names that the LoRA has.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd()))
model, lora, inputs, outputs = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]
from comfy.cli_args import args  # noqa: E402

args.cpu = True
import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.text_encoders.llama as encoders  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

if not hasattr(encoders, "BaseGenerate") or ".transformer." not in inspect.getsource(
    comfy.lora.model_lora_keys_clip
):
    sys.exit(77)
refused = []


class Listener(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if "lora key not loaded" in record.getMessage():
            refused.append(record.getMessage())


logging.getLogger().addHandler(Listener())
torch.set_num_threads(1)
told = json.loads((Path(model) / "config.json").read_text())
names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
config = {name: told[name] for name in (*names, "num_key_value_heads")}
cpu = torch.device("cpu")


class Encoder(torch.nn.Module):
    """As ComfyUI holds the text encoder qwen3_06b: under its name, the model as `transformer`."""

    def __init__(self) -> None:
        super().__init__()
        self.qwen3_06b = torch.nn.Module()
        self.qwen3_06b.transformer = encoders.Qwen3_06B(config, torch.float32, cpu, comfy.ops.manual_cast)


whole = Encoder().eval()
language: Any = whole.qwen3_06b.transformer
weights = load_file(Path(model) / "model.safetensors")
missing = language.load_state_dict({k: v for k, v in weights.items() if k != "lm_head.weight"}, strict=False)
assert not missing.missing_keys and not missing.unexpected_keys, missing
tokens = load_file(inputs)["tokens"]


def logits() -> torch.Tensor:
    with torch.no_grad():
        return language.logits(language(tokens)[0]).float()[:, -1].contiguous()


made = {"without": logits()}
patcher = comfy.model_patcher.ModelPatcher(whole, load_device=cpu, offload_device=cpu)
known = comfy.lora.model_lora_keys_clip(whole, {})
found = comfy.lora.load_lora(comfy.lora_convert.convert_lora(load_file(lora)), known)
taken = patcher.add_patches(found, 1.0)
assert set(taken) == set(found), set(found) - set(taken)
patcher.patch_model(device_to=cpu)
made["with"] = logits()
with torch.no_grad():
    answer = language.generate(
        language.model.embed_tokens(tokens), do_sample=False, max_length=12, stop_tokens=[-1],
        execution_dtype=torch.float32,
    )  # fmt: skip
made["answer"] = torch.tensor(answer).reshape(-1)[-12:]
made["refused"] = torch.tensor(len(refused))
print("\n".join(refused[:5]))
save_file(made, outputs)
