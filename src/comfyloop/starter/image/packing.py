"""Large tensors in eight bits for shipping: int8 with one float16 scale for each output channel."""

import numpy as np
from numpy.typing import NDArray

SMALL = 20_000  # elements; smaller tensors, and the first and last convolution, stay float16
SCALE = ".scale"

Tensors = dict[str, NDArray[np.generic]]


def pack(weights: dict[str, NDArray[np.float32]]) -> Tensors:
    packed: Tensors = {}
    for name, weight in weights.items():
        if weight.ndim < 2 or weight.size < SMALL:
            packed[name] = weight.astype(np.float16)
            continue
        rows = weight.reshape(len(weight), -1)
        scale = np.maximum(np.abs(rows).max(1, keepdims=True) / 127, 1e-6).astype(np.float16)
        packed[name] = (
            np.rint(rows / scale.astype(np.float32)).clip(-127, 127).astype(np.int8).reshape(weight.shape)
        )
        packed[name + SCALE] = scale[:, 0]
    return packed


def unpack(packed: Tensors) -> dict[str, NDArray[np.float16]]:
    weights = {}
    for name, weight in packed.items():
        if name.endswith(SCALE):
            continue
        wide = weight.astype(np.float32)
        if weight.dtype == np.int8:
            wide *= packed[name + SCALE].astype(np.float32).reshape(-1, *[1] * (weight.ndim - 1))
        weights[name] = wide.astype(np.float16)
    return weights
