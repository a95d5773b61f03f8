"""Write an SD1.5-shaped checkpoint with random weights, and two LoRAs for it, that ComfyUI loads as the real thing.

ComfyUI tells SD1.5 by `model_channels` 320 and `context_dim` 768; depth is free, so the UNet has one block a level.

Run by ComfyUI's own Python, in its folder:  python tiny_checkpoint.py MODELS_FOLDER LORA_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))
folder, loras = Path(sys.argv[1]), Path(sys.argv[2])
sys.argv = [sys.argv[0], "--cpu"]
from comfy.cli_args import args  # noqa: E402

args.cpu = True
import comfy.lora  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.taesd.taesd import TAESD  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

chance = torch.Generator().manual_seed(1)


def random(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Fresh weights of these shapes: ComfyUI leaves those of a new module uninitialised."""
    made = {}
    for name, tensor in state.items():
        if "position_ids" in name or tensor.ndim == 0:
            made[prefix + name] = tensor
        elif name.endswith("bias"):
            made[prefix + name] = torch.zeros(tensor.shape, dtype=torch.float16)
        elif tensor.ndim == 1:
            made[prefix + name] = torch.ones(tensor.shape, dtype=torch.float16)
        else:
            spread = (tensor[0].numel() or 1) ** -0.5
            made[prefix + name] = (torch.randn(tensor.shape, generator=chance) * spread).half()
    return made


unet = UNetModel(
    image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[1, 1], channel_mult=[1, 1],
    transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1], transformer_depth_middle=1, context_dim=768,
    num_heads=8, use_spatial_transformer=True, legacy=False, device="cpu", dtype=torch.float32,
)  # fmt: skip
clip = comfy.sd1_clip.SDClipModel(device="cpu", dtype=torch.float32)
checkpoint = {
    **random(unet.state_dict(), "model.diffusion_model."),
    **random(clip.transformer.state_dict(), "cond_stage_model.transformer."),
    **random(TAESD(latent_channels=4).state_dict(), "first_stage_model."),
}
checkpoint["first_stage_model.vae_scale"] = torch.tensor(0.18215)
checkpoint["first_stage_model.vae_shift"] = torch.tensor(0.0)
folder.mkdir(parents=True, exist_ok=True)
save_file(checkpoint, folder / "tiny.safetensors")

model, *_ = comfy.sd.load_checkpoint_guess_config(
    str(folder / "tiny.safetensors"), output_clip=False, output_vae=False
)
names = comfy.lora.model_lora_keys_unet(model.model, {})
state = model.model.state_dict()
loras.mkdir(parents=True, exist_ok=True)
for number in (1, 2):
    tensors = {}
    for name, key in names.items():
        if not name.startswith("lora_unet_") or "attn" not in name or state[key].ndim != 2:
            continue
        rows, columns = state[key].shape
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, columns, generator=chance) * 0.05
        tensors[f"{name}.lora_up.weight"] = torch.randn(rows, 4, generator=chance) * 0.05
        tensors[f"{name}.alpha"] = torch.tensor(4.0)
    assert tensors
    save_file(tensors, loras / f"v{number}.safetensors")
save_file({"base_model.model.to_q.lora_A.weight": torch.zeros(4, 4)}, loras / "peft.safetensors")
