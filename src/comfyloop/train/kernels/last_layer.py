"""Restricts the last decoder layer: everything after its attention is computed only at positions that predict an
answer token, since no later layer uses the others."""

from __future__ import annotations

from typing import Any

from torch import Tensor

PLAIN = {
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
    "SmolLM3DecoderLayer",
    "Qwen2VLDecoderLayer",
    "Qwen2_5_VLDecoderLayer",
}
"""Classes of transformers that norm, attend, add, norm, go through the MLP, add, and give hidden states alone."""


def keep_answers_only(whole: Any) -> bool:
    """Make the last layer of a model of those classes return states at `predicting` only; whether the model is
    supported.

    `predicting` [A] is an argument of the model below its head, which then returns [1, A, hidden]; without it
    nothing changes.
    """
    layers = getattr(whole.get_decoder(), "layers", None)
    if not layers or type(layers[-1]).__name__ not in PLAIN:
        return False
    layer, as_transformers_does = layers[-1], layers[-1].forward

    def forward(hidden_states: Tensor, predicting: Tensor | None = None, **kwargs: Any) -> Any:
        if predicting is None:
            return as_transformers_does(hidden_states, **kwargs)
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
        residual = hidden_states.index_select(1, predicting) + attended.index_select(1, predicting)
        return residual + layer.mlp(layer.post_attention_layernorm(residual))

    layer.forward = forward
    return True
