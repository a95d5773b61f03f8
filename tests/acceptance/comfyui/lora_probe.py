"""What ComfyUI makes of a checkpoint with a LoRA on it, for the tests to compare with.

Run by ComfyUI's own Python, in its folder:  python lora_probe.py CHECKPOINT LORA INPUTS OUTPUTS

INPUTS holds `noise` and, for a checkpoint without text encoders, `states` and `pooled`. OUTPUTS gets the sigmas
and timesteps, the latents of a few Euler steps, the picture and the text states; `refused` counts the keys that
were not taken.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))
checkpoint, lora, inputs, outputs = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]
from comfy.cli_args import args  # noqa: E402

args.cpu = True
args.fp32_text_enc = True  # in half precision the LoRA is rounded away from ours by 5e-4
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

STEPS = 4
refused = []


class Listener(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if "lora key not loaded" in record.getMessage():
            refused.append(record.getMessage())


logging.getLogger().addHandler(Listener())
torch.set_num_threads(1)
given = load_file(inputs)
made: dict[str, torch.Tensor] = {}
model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
    checkpoint, output_vae="states" not in given, output_clip="states" not in given
)
model, clip = comfy.sd.load_lora_for_models(model, clip, comfy.utils.load_torch_file(lora), 1.0, 1.0)
if "states" in given:
    states, pooled = given["states"], given["pooled"]
    extra = {"width": 64, "height": 64}
else:
    tokens = clip.tokenize("a red fox, 设计")
    states, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
    extra = {}
    made["states"] = states
condition = [[states, {"pooled_output": pooled, **extra}]]
noise = given["noise"]
sampler = comfy.samplers.KSampler(
    model, steps=STEPS, device=torch.device("cpu"), sampler="euler", scheduler="normal"
)
made["sigmas"] = sampler.sigmas
made["timesteps"] = model.model.model_sampling.timestep(sampler.sigmas[:-1])
made["latents"] = comfy.sample.sample(
    model,
    noise,
    STEPS,
    1.0,
    "euler",
    "normal",
    condition,
    condition,
    torch.zeros_like(noise),
    seed=0,
    disable_pbar=True,
)
if vae is not None:
    made["picture"] = vae.decode(made["latents"])
made["refused"] = torch.tensor(len(refused))
print("\n".join(refused[:5]))
save_file({name: tensor.contiguous() for name, tensor in made.items()}, outputs)
