"""The starter's denoiser: an SD1.5 UNet with two levels and one block a level, 37 million parameters.

ComfyUI takes a checkpoint for SD1.5's family when `model_channels` is 320 and `context_dim` 768; depth is free.
Such a checkpoint is read as predicting noise on the scaled-linear schedule, so that is what is trained.
"""

from typing import Any

CHANNELS = 320
SIDE = 96  # pixels, of the pictures that it draws


def config() -> dict[str, Any]:
    """What diffusers' UNet2DConditionModel takes."""
    return {
        "sample_size": SIDE // 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (CHANNELS, CHANNELS),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
    }


def schedule() -> dict[str, Any]:
    """Stable Diffusion's noise schedule, as diffusers' schedulers take it."""
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
    }
