"""Tiny models of the kinds that the decoder takes otherwise than the usual one."""

from __future__ import annotations

from typing import Any

import torch


def with_a_sliding_window() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=24,
        initializer_range=0.3,
    )
    return MistralForCausalLM(config).eval()


def with_positions_in_two_dimensions() -> tuple[Any, list[int], dict[str, Any]]:
    """A model, and a prompt of it with one picture: token ids, and what a processor makes of the picture."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 120,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            "initializer_range": 0.3,
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4},
        image_token_id=110,
        video_token_id=111,
        vision_start_token_id=112,
        vision_end_token_id=113,
    )
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval()
    grid = torch.tensor([[1, 8, 8]])
    ids = [3, 4, 112, *[110] * 16, 113, *range(5, 60)]
    inputs = {
        "pixel_values": torch.randn(64, 3 * 2 * 4 * 4),
        "image_grid_thw": grid,
        "mm_token_type_ids": torch.tensor([[int(i == 110) for i in ids]]),
    }
    return model, ids, inputs
