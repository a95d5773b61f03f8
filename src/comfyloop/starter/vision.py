"""EfficientNet-lite0 as a model of transformers' own: the vision tower.

The lite variants have ReLU6 and no squeeze-excite. transformers' EfficientNet always has squeeze-excite,
so its gates are set to sigmoid(30), which is exactly 1 in float32 and in bfloat16.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import EfficientNetConfig, EfficientNetForImageClassification

CHANNELS = 1280
CLASSES = 1000
BLOCKS = 16
# The last stage's stride of 2 keeps positions 1, 3 and 5 of its 7 x 7 map: 9 image tokens instead of 49.
STRIDES = [1, 2, 2, 2, 1, 2, 2]
IMAGE_TOKENS = 9
IMAGE_SIZE = 224
IMAGE_MEAN = 127 / 255
IMAGE_STD = 128 / 255


def config(strides: list[int] | None = None, labels: int = 2) -> EfficientNetConfig:
    made = EfficientNetConfig(
        image_size=IMAGE_SIZE,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_act="relu6",
        hidden_dim=CHANNELS,
        batch_norm_eps=1e-3,
        dropout_rate=0.2,
        num_labels=labels,
    )
    if strides:
        made.strides = strides
    made.hidden_size = CHANNELS  # FastVLM asks its vision tower for this name
    return made


def convert(checkpoint: Path) -> dict[str, Tensor]:
    """The package's checkpoint under transformers' names, classifier included."""
    source: dict[str, Tensor] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    blank = EfficientNetForImageClassification(config(labels=CLASSES)).state_dict()
    out: dict[str, Tensor] = {}

    def norm(to: str, name: str) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            out[f"{to}.{part}"] = source[f"{name}.{part}"]
        out[f"{to}.num_batches_tracked"] = torch.tensor(0)

    out["efficientnet.embeddings.convolution.weight"] = source["_conv_stem.weight"]
    norm("efficientnet.embeddings.batchnorm", "_bn0")
    for i in range(BLOCKS):
        to, name = f"efficientnet.encoder.blocks.{i}", f"_blocks.{i}"
        if f"{name}._expand_conv.weight" in source:
            out[f"{to}.expansion.expand_conv.weight"] = source[f"{name}._expand_conv.weight"]
            norm(f"{to}.expansion.expand_bn", f"{name}._bn0")
        out[f"{to}.depthwise_conv.depthwise_conv.weight"] = source[f"{name}._depthwise_conv.weight"]
        norm(f"{to}.depthwise_conv.depthwise_norm", f"{name}._bn1")
        out[f"{to}.projection.project_conv.weight"] = source[f"{name}._project_conv.weight"]
        norm(f"{to}.projection.project_bn", f"{name}._bn2")
        for gate in ("reduce.weight", "reduce.bias", "expand.weight", "expand.bias"):
            out[f"{to}.squeeze_excite.{gate}"] = torch.zeros_like(blank[f"{to}.squeeze_excite.{gate}"])
        out[f"{to}.squeeze_excite.expand.bias"] += 30.0
    out["efficientnet.encoder.top_conv.weight"] = source["_conv_head.weight"]
    norm("efficientnet.encoder.top_bn", "_bn1")
    out["classifier.weight"], out["classifier.bias"] = source["_fc.weight"], source["_fc.bias"]
    return out
