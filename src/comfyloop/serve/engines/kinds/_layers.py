"""Layers that vLLM adapts, and what is built like it."""

LAYERS = frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "query_key_value", "wqkv", "wo"),
        *("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "w1", "w2", "w3"),
        *("c_attn", "c_proj", "c_fc", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    )
)
