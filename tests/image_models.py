"""Tiny image models of the real classes with random weights, as single files in Stability's layout.

The text encoders keep CLIP's vocabulary and widths, which tell the family; they have two layers.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from comfyloop.stable_diffusion import tokenizer
from comfyloop.stable_diffusion.layout import UNET_PREFIX, UNetShape, rename, unet_modules

SIDE = 64  # pixels


def text_config(width: int, **others: object) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=width // 64,
        projection_dim=width, bos_token_id=49406, eos_token_id=49407, **others,
    )  # fmt: skip


def tiny_unet(family: str) -> tuple[UNet2DConditionModel, UNetShape]:
    attends = (False, True)
    common = {
        "sample_size": SIDE // 8,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
    }
    if family == "sd15":
        unet = UNet2DConditionModel(**common, cross_attention_dim=768, attention_head_dim=8)
    else:
        unet = UNet2DConditionModel(
            **common,
            cross_attention_dim=2048,
            attention_head_dim=(1, 1),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    return unet, UNetShape(1, attends)


def tiny_kl(scaling: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=scaling,
    )


def unet_tensors(unet: UNet2DConditionModel, shape: UNetShape) -> dict[str, Tensor]:
    modules = {nested: single for single, nested in unet_modules(shape).items()}
    return {UNET_PREFIX + rename(name, modules): tensor for name, tensor in unet.state_dict().items()}


def taesd_tensors(vae: AutoencoderTiny) -> dict[str, Tensor]:
    out = {}
    for name, tensor in vae.state_dict().items():
        side, _, number, rest = name.split(".", 3)
        out[f"first_stage_model.taesd_{side}.{int(number) + (side == 'decoder')}.{rest}"] = tensor
    return out | {
        "first_stage_model.vae_scale": torch.tensor(0.18215),
        "first_stage_model.vae_shift": torch.tensor(0.0),
    }


def kl_tensors(vae: AutoencoderKL) -> dict[str, Tensor]:
    out = {}
    for name, tensor in vae.state_dict().items():
        single = name
        if match := re.match(r"encoder\.down_blocks\.(\d)\.(resnets|downsamplers)\.(\d)\.(.*)", name):
            level, kind, number, rest = match.groups()
            place = f"block.{number}" if kind == "resnets" else "downsample"
            single = f"encoder.down.{level}.{place}.{rest}"
        elif match := re.match(r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)\.(.*)", name):
            level, kind, number, rest = match.groups()
            place = f"block.{number}" if kind == "resnets" else "upsample"
            single = f"decoder.up.{3 - int(level)}.{place}.{rest}"
        elif match := re.match(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
            side, kind, number, rest = match.groups()
            single = f"{side}.mid.{f'block_{int(number) + 1}' if kind == 'resnets' else 'attn_1'}.{rest}"
        single = single.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if ".attn_1." in single:
            for diffusers, ldm in (
                ("group_norm", "norm"),
                ("to_q", "q"),
                ("to_k", "k"),
                ("to_v", "v"),
                ("to_out.0", "proj_out"),
            ):
                single = single.replace(f".attn_1.{diffusers}.", f".attn_1.{ldm}.")
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        out[f"first_stage_model.{single}"] = tensor
    return out


def clip_tensors(model: CLIPTextModel, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}text_model.{n.removeprefix('text_model.')}": t for n, t in model.state_dict().items()}


def open_clip_tensors(model: CLIPTextModelWithProjection, prefix: str) -> dict[str, Tensor]:
    state = {n.removeprefix("text_model."): t for n, t in model.state_dict().items()}
    out = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T,
    }
    for i in range(model.config.num_hidden_layers):
        layer, block = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            out[f"{block}.attn.in_proj_{kind}"] = torch.cat(
                [state[f"{layer}.self_attn.{n}_proj.{kind}"] for n in "qkv"]
            )
            for theirs, ours in (
                ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
            ):  # fmt: skip
                out[f"{block}.{theirs}.{kind}"] = state[f"{layer}.{ours}.{kind}"]
    return {prefix + name: tensor for name, tensor in out.items()}


def make_tiny_sd15(place: Path, *, vae: bool = True) -> Path:
    """An SD1.5-shaped file with a TAESD-shaped VAE."""
    torch.manual_seed(1)
    tensors = unet_tensors(*tiny_unet("sd15"))
    tensors |= clip_tensors(CLIPTextModel(text_config(768)), "cond_stage_model.transformer.")
    if vae:
        tensors |= taesd_tensors(AutoencoderTiny())
    return write(tensors, place)


def make_tiny_sdxl(place: Path) -> Path:
    """An SDXL-shaped file with a variational VAE and both text encoders."""
    torch.manual_seed(2)
    second = CLIPTextModelWithProjection(text_config(1280, hidden_act="gelu"))
    tensors = unet_tensors(*tiny_unet("sdxl"))
    tensors |= clip_tensors(CLIPTextModel(text_config(768)), "conditioner.embedders.0.transformer.")
    tensors |= open_clip_tensors(second, "conditioner.embedders.1.model.")
    tensors |= kl_tensors(tiny_kl(0.13025))
    return write(tensors, place)


def write(tensors: dict[str, Tensor], place: Path) -> Path:
    metadata = {"format": "pt", "modelspec.resolution": f"{SIDE}x{SIDE}"}
    halves = {name: t.half().contiguous() if t.ndim else t for name, t in tensors.items()}
    save_file(halves, place, metadata=metadata)
    return place


def make_tiny_flow(place: Path, family: str) -> Path:
    """A diffusers folder of SD3 (without T5, which is left out for want of memory) or of Flux."""
    torch.manual_seed(3)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), layers_per_block=1, latent_channels=16,
        scaling_factor=1.5, shift_factor=0.06,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    narrow = {"hidden_size": 32, "num_attention_heads": 4, "projection_dim": 32}
    config = CLIPTextConfig(**{**text_config(64).to_dict(), **narrow})
    if family == "sd3":
        transformer = SD3Transformer2DModel(
            sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=64,
            caption_projection_dim=32, pooled_projection_dim=64, pos_embed_max_size=16,
        )  # fmt: skip
        whole = StableDiffusion3Pipeline(
            transformer, scheduler, vae, CLIPTextModelWithProjection(config), tokenizer.load(),
            CLIPTextModelWithProjection(config), tokenizer.load(pad_token="!"), None, None,
        )  # fmt: skip
    else:
        transformer = FluxTransformer2DModel(
            in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
        )  # fmt: skip
        t5 = T5EncoderModel(T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, vocab_size=40))
        letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
        vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters]
        reader = T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)
        whole = FluxPipeline(scheduler, vae, CLIPTextModel(config), tokenizer.load(), t5, reader, transformer)
    whole.save_pretrained(place)
    return place
