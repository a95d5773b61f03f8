"""The configuration of a Stable Diffusion model, read off the shapes of its single-file checkpoint.

Such a file carries no configuration, and fetching one from a hub needs a network. Everything but the number of
attention heads and the scheduler follows from the tensors; those two follow from the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from comfyloop.errors import ModelError

from .kinds import refuse_other_inputs
from .layout import UNET_PREFIX, UNetShape

Family = Literal["sd15", "sd2", "sdxl"]
Shapes = Mapping[str, tuple[int, ...]]

WIDTHS: Mapping[int, Family] = {768: "sd15", 1024: "sd2", 2048: "sdxl"}
"""Families by the width of the text states that their UNet attends to."""
VAE_PREFIX = "first_stage_model."
CLIP_PREFIXES = (
    "cond_stage_model.transformer.text_model.",
    "conditioner.embedders.0.transformer.text_model.",
    "cond_stage_model.transformer.",  # NovelAI's first models and their merges
)
OPEN_CLIP_PREFIXES = (
    "cond_stage_model.model.",
    "conditioner.embedders.1.model.",
    "conditioner.embedders.0.model.",  # SD2 as Stability's later code saves it
)

_TRANSFORMERS = {  # a tensor that tells a single file of another family, and that family
    "double_blocks.0.img_attn.qkv.weight": "Flux",
    "joint_blocks.0.context_block.attn.qkv.weight": "Stable Diffusion 3",
}


def count(shapes: Shapes, prefix: str) -> int:
    """How many numbered children `prefix` has: `prefix.0…`, `prefix.1…` and so on."""
    number = 0
    while any(name.startswith(f"{prefix}.{number}.") for name in shapes):
        number += 1
    return number


def family(shapes: Shapes) -> Family:
    """Raises ModelError when the file is not a checkpoint of Stable Diffusion 1, 2 or XL, saying what it is."""
    for name, other in _TRANSFORMERS.items():
        if any(key.endswith(name) for key in shapes):
            raise ModelError(
                f"It is a {other} model in a single file, of which the text encoders are not a part.",
                "Name its diffusers folder instead.",
            )
    first = shapes.get(f"{UNET_PREFIX}input_blocks.0.0.weight")
    if first is None:
        raise _no_checkpoint(shapes)
    if any(".time_stack." in name for name in shapes):
        raise ModelError("It is a video model.", "Name a checkpoint of SD1.5, SD2 or SDXL.")
    refuse_other_inputs(first[1], shapes.get(f"{UNET_PREFIX}out.2.weight", (4,))[0])
    width = _context_width(shapes)
    if width not in WIDTHS:
        raise unknown_width(width)
    found = WIDTHS[width]
    if found != "sdxl" and f"{UNET_PREFIX}label_emb.0.0.weight" in shapes:
        raise ModelError(
            "It is an unCLIP model, whose UNet is also told a picture.", "Name a text-to-image model."
        )
    return found


def _no_checkpoint(shapes: Shapes) -> ModelError:
    """What a file without a checkpoint's UNet is."""
    if any(".lora_down." in name or ".lora_A." in name for name in shapes):
        return ModelError("It is a LoRA, not a checkpoint.", "Name the checkpoint it belongs to.")
    if "input_blocks.0.0.weight" in shapes:
        return ModelError(
            "It is a UNet alone, without text encoders and VAE.",
            "Name a whole checkpoint; ComfyUI's CheckpointSave node puts one together.",
        )
    if "down_blocks.0.resnets.0.conv1.weight" in shapes:
        return ModelError(
            "It is the UNet of a diffusers folder, without text encoders and VAE.", "Name the whole folder."
        )
    return ModelError(
        f"It has no UNet of Stable Diffusion: no tensor is called {UNET_PREFIX}input_blocks.0.0.weight.",
        "Name a checkpoint of SD1.5, SD2 or SDXL, or a diffusers folder.",
    )


def unknown_width(width: object) -> ModelError:
    refiner = " (SDXL's refiner has 1280, and draws nothing by itself)" if width == 1280 else ""
    return ModelError(
        f"Its UNet attends to text states of width {width}, which no known family has{refiner}.",
        "Name a checkpoint of SD1.5 (768), SD2 (1024) or SDXL (2048).",
    )


def _context_width(shapes: Shapes) -> int:
    keys = [n for n in shapes if n.startswith(UNET_PREFIX) and n.endswith("attn2.to_k.weight")]
    if not keys:
        raise ModelError("Its UNet has no cross-attention: it takes no text.", "Name a text-to-image model.")
    return shapes[keys[0]][1]


def unet(shapes: Shapes, kind: Family) -> tuple[dict[str, Any], UNetShape]:
    """Arguments of diffusers' UNet2DConditionModel, and the shape that its tensors' names follow from."""
    at = UNET_PREFIX
    first = shapes[f"{at}input_blocks.0.0.weight"]
    channels, depths, layers = [], [], []
    here = 0
    for block in range(1, count(shapes, f"{at}input_blocks")):
        single = f"{at}input_blocks.{block}"
        if f"{single}.0.op.weight" in shapes:
            layers.append(here)
            here = 0
            continue
        if here == 0:
            channels.append(shapes[f"{single}.0.out_layers.3.weight"][0])
            depths.append(count(shapes, f"{single}.1.transformer_blocks"))
        here += 1
    layers.append(here)
    if len(set(layers)) != 1:
        raise ModelError(
            f"Its UNet has {layers} residual blocks by level, and diffusers needs the same number in each.",
            "Name a diffusers folder.",
        )
    linear = any(
        n.endswith("1.proj_in.weight") and len(s) == 2 for n, s in shapes.items() if n.startswith(at)
    )
    attends = tuple(depth > 0 for depth in depths)
    middle = f"{at}middle_block.0.in_layers.0.weight" in shapes
    # diffusers calls the number of heads `attention_head_dim` here
    heads: Any = 8 if kind == "sd15" else tuple(max(1, c // 64) for c in channels)
    config: dict[str, Any] = {
        "in_channels": first[1],
        "out_channels": shapes.get(f"{at}out.2.weight", (4,))[0],
        "block_out_channels": tuple(channels),
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else None,
        "layers_per_block": layers[0],
        "transformer_layers_per_block": tuple(max(1, depth) for depth in depths),
        "cross_attention_dim": _context_width(shapes),
        "attention_head_dim": heads,
        "use_linear_projection": linear,
    }
    label = shapes.get(f"{at}label_emb.0.0.weight")
    if label is not None:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": label[1],
        }
    return config, UNetShape(layers=layers[0], attention=attends, middle=middle)


def has_vae(shapes: Shapes) -> bool:
    """Whether there is one that encodes, whole or tiny."""
    return any(
        name.startswith((f"{VAE_PREFIX}encoder.conv_in.", f"{VAE_PREFIX}taesd_encoder.")) for name in shapes
    )


def vae(shapes: Shapes, kind: Family) -> dict[str, Any] | None:
    """Arguments of diffusers' AutoencoderKL; None when the file holds none."""
    at = VAE_PREFIX
    if f"{at}encoder.conv_in.weight" not in shapes:
        return None
    levels = count(shapes, f"{at}encoder.down")
    channels = tuple(shapes[f"{at}encoder.down.{i}.block.0.conv2.weight"][0] for i in range(levels))
    latent = shapes[f"{at}decoder.conv_in.weight"][1]
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": latent,
        "block_out_channels": channels,
        "layers_per_block": count(shapes, f"{at}encoder.down.0.block"),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "scaling_factor": 0.13025 if kind == "sdxl" else 0.18215,
    }


def clip(shapes: Shapes) -> tuple[str, dict[str, Any]] | None:
    """Prefix of the first text encoder's tensors and arguments of transformers' CLIPTextConfig."""
    for prefix in CLIP_PREFIXES:
        if f"{prefix}embeddings.token_embedding.weight" in shapes:
            vocabulary, width = shapes[f"{prefix}embeddings.token_embedding.weight"]
            return prefix, _text_config(
                vocabulary,
                width,
                layers=count(shapes, f"{prefix}encoder.layers"),
                inner=shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0],
                positions=shapes[f"{prefix}embeddings.position_embedding.weight"][0],
            ) | {"hidden_act": "quick_gelu", "pad_token_id": 49407}
    return None


def open_clip(shapes: Shapes) -> tuple[str, dict[str, Any]] | None:
    """The same for SD2's encoder and SDXL's second one, which are OpenCLIP's."""
    for prefix in OPEN_CLIP_PREFIXES:
        if f"{prefix}token_embedding.weight" in shapes:
            vocabulary, width = shapes[f"{prefix}token_embedding.weight"]
            projection = shapes.get(f"{prefix}text_projection", (width, width))
            return prefix, _text_config(
                vocabulary,
                width,
                layers=count(shapes, f"{prefix}transformer.resblocks"),
                inner=shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0],
                positions=shapes[f"{prefix}positional_embedding"][0],
            ) | {"hidden_act": "gelu", "pad_token_id": 0, "projection_dim": projection[1]}
    return None


def _text_config(vocabulary: int, width: int, *, layers: int, inner: int, positions: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": positions,
        "projection_dim": width,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }
