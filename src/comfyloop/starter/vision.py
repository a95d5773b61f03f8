"""EfficientNet-lite0 as a model of transformers' own: the vision tower.

The lite variants have ReLU6 and no squeeze-excite. transformers' EfficientNet always has squeeze-excite,
so its gates are set to sigmoid(30), which is exactly 1 in float32 and in bfloat16.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import EfficientNetConfig, EfficientNetForImageClassification

from .reader import Block

CHANNELS = 1280
CLASSES = 1000
BLOCKS = 16
IMAGE_SIZE = 224
IMAGE_MEAN = 127 / 255
IMAGE_STD = 128 / 255


def config(labels: int = 2, reader: list[Block] | None = None) -> EfficientNetConfig:
    """`reader`: further blocks, each a stage of its own."""
    tower_config = EfficientNetConfig(
        image_size=IMAGE_SIZE,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_act="relu6",
        hidden_dim=CHANNELS,
        batch_norm_eps=1e-3,
        dropout_rate=0.2,
        # the neutral squeeze-excite layers take as little room as they can
        squeeze_expansion_ratio=1e-3,
        num_labels=labels,
    )
    for block in reader or ():
        tower_config.in_channels = [*tower_config.in_channels, block.inputs]
        tower_config.out_channels = [*tower_config.out_channels, block.project.shape[0]]
        tower_config.kernel_sizes = [*tower_config.kernel_sizes, block.kernel.shape[-1]]
        tower_config.strides = [*tower_config.strides, block.stride]
        tower_config.num_block_repeats = [*tower_config.num_block_repeats, 1]
        tower_config.expand_ratios = [*tower_config.expand_ratios, block.expand_ratio]
    if reader:
        # keeps the last block's kernel of one pixel from being shifted
        tower_config.depthwise_padding = [*tower_config.depthwise_padding, BLOCKS + len(reader) - 1]
    tower_config.hidden_size = CHANNELS  # FastVLM asks its vision tower for this name
    return tower_config


def neutral_gates(blank: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every squeeze-excite layer of a model, multiplying by one."""
    gates = {name: torch.zeros_like(value) for name, value in blank.items() if ".squeeze_excite." in name}
    for name, value in gates.items():
        if name.endswith(".expand.bias"):
            value += 30.0
    return gates


def convert(checkpoint: Path) -> dict[str, Tensor]:
    """The package's checkpoint under transformers' names, classifier included."""
    source: dict[str, Tensor] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    out = neutral_gates(EfficientNetForImageClassification(config(labels=CLASSES)).state_dict())

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
    out["efficientnet.encoder.top_conv.weight"] = source["_conv_head.weight"]
    norm("efficientnet.encoder.top_bn", "_bn1")
    out["classifier.weight"], out["classifier.bias"] = source["_fc.weight"], source["_fc.bias"]
    return out
