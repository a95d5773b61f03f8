"""The UNet's tensors under two names: those of single-file checkpoints and those of diffusers.

A single file (Stability's layout, which ComfyUI reads) counts blocks through `input_blocks`, `middle_block` and
`output_blocks`; diffusers nests them by level. The tables follow from a UNet's depth alone, so they also serve
models that are smaller than the published ones.
"""

from dataclasses import dataclass

UNET_PREFIX = "model.diffusion_model."

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@dataclass(frozen=True)
class UNetShape:
    """How many blocks there are, and which of them attend to the text.

    Attributes:
        layers: residual blocks of a level on the way down (one more on the way up).
        attention: for each level, whether its blocks have a transformer.
        middle: whether there is a middle block.
    """

    layers: int
    attention: tuple[bool, ...]
    middle: bool = True


def unet_modules(shape: UNetShape) -> dict[str, str]:
    """Module prefixes: single-file name to diffusers name. A transformer keeps its inner names."""
    levels, step = len(shape.attention), shape.layers + 1
    names = dict(ENDS)

    def resnet(single: str, nested: str) -> None:
        names.update({f"{single}.{a}": f"{nested}.{b}" for a, b in RESNET.items()})

    for level, attends in enumerate(shape.attention):
        for layer in range(shape.layers):
            single = f"input_blocks.{1 + level * step + layer}"
            resnet(f"{single}.0", f"down_blocks.{level}.resnets.{layer}")
            if attends:
                names[f"{single}.1"] = f"down_blocks.{level}.attentions.{layer}"
        if level < levels - 1:
            names[f"input_blocks.{(level + 1) * step}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    if shape.middle:
        resnet("middle_block.0", "mid_block.resnets.0")
        names["middle_block.1"] = "mid_block.attentions.0"
        resnet("middle_block.2", "mid_block.resnets.1")
    for level, attends in enumerate(reversed(shape.attention)):
        for layer in range(step):
            single = f"output_blocks.{level * step + layer}"
            resnet(f"{single}.0", f"up_blocks.{level}.resnets.{layer}")
            if attends:
                names[f"{single}.1"] = f"up_blocks.{level}.attentions.{layer}"
        if level < levels - 1:
            single = f"output_blocks.{level * step + shape.layers}.{2 if attends else 1}.conv"
            names[single] = f"up_blocks.{level}.upsamplers.0.conv"
    return names


def rename(tensor: str, modules: dict[str, str]) -> str:
    """A tensor's name with its longest known module prefix replaced; as it is where none is known."""
    parts = tensor.split(".")
    for length in range(len(parts) - 1, 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in modules:
            return ".".join([modules[prefix], *parts[length:]])
    return tensor
