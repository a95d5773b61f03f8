"""The starter's text encoder: CLIP ViT-L/14's shape, with a table of word meanings instead of CLIP's weights.

The token table carries the meaning (int8, made by `train.tokens`); a fixed rotation widens it from 128 to 768
numbers. What says nothing (start, end, which is padding too, articles, commas) is one direction apart from all
words. The first layer's attention adds to each token the mean of the words so far, so that all the padding says
what the prompt says: most of a prompt is padding, and a denoiser that first has to find the words in it learns them
very slowly. The last projections of all else are zero, so that layers pass their input on, and the rest of their
weights are small random numbers from NumPy's PCG64: whoever trains a LoRA on the text encoder finds gradients.
Positions are zero: a prompt is nearly a bag of words.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCABULARY, WIDTH, LAYERS, HEADS, INNER, POSITIONS = 49408, 768, 12, 12, 3072, 77
START, END = 49406, 49407
TOKEN_WIDTH = 128
SEED = 20_26
SO_FAR = 3.0  # weight of the words so far against the token itself
UNHEARD = -30.0  # attention score of what says nothing


def config() -> dict[str, Any]:
    """What transformers' CLIPTextConfig takes."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "hidden_act": "quick_gelu",
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": END,
        "projection_dim": WIDTH,
    }


def axes() -> NDArray[np.float64]:
    """float64 [TOKEN_WIDTH + 1, WIDTH], orthonormal rows that sum to zero, as a layer norm wants them: those of
    the words, and that of what says nothing."""
    drawn = np.random.Generator(np.random.PCG64(SEED)).standard_normal((WIDTH, TOKEN_WIDTH + 1))
    rows, _ = np.linalg.qr(drawn - drawn.mean(0))
    return np.ascontiguousarray(rows.T)


def token_embeddings(table: NDArray[np.int8]) -> NDArray[np.float16]:
    """float16 [VOCABULARY, WIDTH], each row with mean 0 and standard deviation 1."""
    rows = table.astype(np.float64)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    *words, apart = axes()
    wide: NDArray[np.float64] = np.where(length, rows / np.where(length, length, 1) @ np.stack(words), apart)
    scaled: NDArray[np.float16] = (wide * np.sqrt(WIDTH)).astype(np.float16)
    return scaled


def listening(head_width: int = WIDTH // HEADS) -> dict[str, NDArray[np.float16]]:
    """The first layer's attention: every head asks for words, and adds SO_FAR times their mean."""
    apart = axes()[-1]
    key, query = np.zeros((WIDTH, WIDTH)), np.zeros(WIDTH)
    # a score is the product of the heads' first numbers over the root of their width; what says nothing is of length
    # root WIDTH along `apart`, words have nothing of it
    key[::head_width] = apart
    query[::head_width] = UNHEARD * np.sqrt(head_width / WIDTH)
    words_alone = np.eye(WIDTH) - np.outer(apart, apart)
    return {
        "k_proj.weight": key.astype(np.float16),
        "q_proj.weight": np.zeros((WIDTH, WIDTH), np.float16),
        "q_proj.bias": query.astype(np.float16),
        "v_proj.weight": words_alone.astype(np.float16),
        "out_proj.weight": (SO_FAR * np.eye(WIDTH)).astype(np.float16),
    }


def weights(table: NDArray[np.int8]) -> dict[str, NDArray[np.float16]]:
    """The state dict of transformers' CLIPTextModel, float16."""
    draw = np.random.Generator(np.random.PCG64(SEED + 1))

    def random(rows: int, columns: int) -> NDArray[np.float16]:
        drawn: NDArray[np.float32] = draw.standard_normal((rows, columns), np.float32)
        scaled: NDArray[np.float16] = (drawn * columns**-0.5).astype(np.float16)
        return scaled

    def zeros(*shape: int) -> NDArray[np.float16]:
        return np.zeros(shape, np.float16)

    out = {
        "text_model.embeddings.token_embedding.weight": token_embeddings(table),
        "text_model.embeddings.position_embedding.weight": zeros(POSITIONS, WIDTH),
    }
    norms = ["text_model.final_layer_norm"]
    for i in range(LAYERS):
        layer = f"text_model.encoder.layers.{i}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        for name in ("q_proj", "k_proj", "v_proj"):
            out[f"{layer}.self_attn.{name}.weight"] = random(WIDTH, WIDTH)
        out[f"{layer}.self_attn.out_proj.weight"] = zeros(WIDTH, WIDTH)
        out[f"{layer}.mlp.fc1.weight"] = random(INNER, WIDTH)
        out[f"{layer}.mlp.fc2.weight"] = zeros(WIDTH, INNER)
        for name, size in (
            ("self_attn.q_proj", WIDTH),
            ("self_attn.k_proj", WIDTH),
            ("self_attn.v_proj", WIDTH),
            ("self_attn.out_proj", WIDTH),
            ("mlp.fc1", INNER),
            ("mlp.fc2", WIDTH),
        ):
            out[f"{layer}.{name}.bias"] = zeros(size)
    for norm in norms:
        out[f"{norm}.weight"], out[f"{norm}.bias"] = np.ones(WIDTH, np.float16), zeros(WIDTH)
    first = "text_model.encoder.layers.0.self_attn"
    return out | {f"{first}.{name}": weight for name, weight in listening().items()}
