"""The denoiser: how it begins, what it reads of a prompt, and a pass that keeps its ends in float32."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from safetensors.numpy import load_file
from torch import Tensor, nn

from comfyloop.stable_diffusion import tokenizer as clip
from comfyloop.starter.image import denoiser, text

# Zero at first, so that every residual block passes its input on (Ho et al. 2020).
BLANK = ("conv2", "conv_out")
# What the untrained denoiser answers with is what it was given: near pure noise that is the answer but for a small
# part, which is all that is left to learn, and which must not be lost in a badly carried whole. Ten channels carry it
# from the first convolution to the last, four latent channels with both signs, as SiLU(z) - SiLU(-z) = z, and two
# large constants that hold the last group norm's scale still.
CARRIED, CONSTANT = 10, 8.0
# What words say is a small part of each sum at first, padding being most of a prompt.
FASTER = {"attn2.to_v.weight": 4.0, "attn2.to_out.0.weight": 4.0}
EXACT = ("conv_in", "conv_out")  # see ExactConv2d; what they carry is no matter of matrices
TOKENS = 16  # start, words, one end that stands for all of them


class Prompts:
    """Captions as encoder states. All of the 60 and more padding tokens are alike: one of them stands for the
    rest, with the logarithm of their number added to its attention score."""

    def __init__(self, tokens: Path) -> None:
        self.tokenizer = clip.load()
        table = load_file(tokens)["tokens"]
        self.meant = table.any(-1)
        self.embeddings = torch.from_numpy(text.token_embeddings(table).astype(np.float32))

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Encoder states [B, TOKENS, 768] and attention biases [B, 1, TOKENS]."""
        states = torch.zeros(len(captions), TOKENS, text.WIDTH)
        bias = torch.full((len(captions), TOKENS), -torch.inf)
        for row, caption in enumerate(captions):
            token_ids = self.tokenizer(caption).input_ids[1:-1][: TOKENS - 2]
            count = len(token_ids) + 2
            states[row, :count] = self.encode(token_ids)
            bias[row, :count] = 0.0
            bias[row, count - 1] = float(np.log(text.POSITIONS - count + 1))
        return states, bias[:, None]

    def encode(self, words: list[int]) -> Tensor:
        """What the text encoder makes of start, words and one end: its first attention and its last norm."""
        own = self.embeddings[[text.START, *words, text.END]]
        heard = torch.tensor([False, *(bool(self.meant[word]) for word in words), False])[:, None]
        so_far = (own * heard).cumsum(0) / heard.cumsum(0).clamp(min=1)
        return F.layer_norm(own + text.SO_FAR * so_far, (text.WIDTH,))


class PlainAttention:
    """Attention in plain matrix products, on so few pixels faster than torch's fused kernel, with the bias."""

    def __init__(self) -> None:
        self.bias: Tensor | None = None

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, source), (attn.to_v, source))
        )
        scores = query @ key.transpose(-1, -2) * attn.scale
        if encoder_hidden_states is not None and self.bias is not None:
            scores = scores + self.bias[:, None].to(scores.dtype)
        mixed = scores.softmax(-1) @ value
        out: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


class ExactConv2d(nn.Conv2d):
    """In float32: near pure noise the picture is a small part of what goes in and of what comes out."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.conv2d(input.float(), self.weight.float(), bias, padding=self.padding)


class ExactEntry(ExactConv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).to(self.weight.dtype)


def make_unet() -> tuple[UNet2DConditionModel, PlainAttention]:
    unet = UNet2DConditionModel(**denoiser.config())
    for name, module in unet.named_modules():
        if name.endswith(BLANK):
            nn.init.zeros_(module.weight)
    carry_input(unet)
    attention = PlainAttention()
    unet.set_attn_processor(attention)
    for name, kind in (("conv_in", ExactEntry), ("conv_out", ExactConv2d)):
        getattr(unet, name).__class__ = kind
    return unet, attention


@torch.no_grad()
def carry_input(unet: UNet2DConditionModel) -> None:
    """Have an untrained `unet` give back its input, whose elements have variance 1 (see CARRIED)."""
    first, shortcut = unet.conv_in, unet.up_blocks[-1].resnets[-1].conv_shortcut
    norm, last = unet.conv_norm_out, unet.conv_out
    width, latent = first.out_channels, last.out_channels
    ours = slice(width - CARRIED, width)
    assert norm.num_channels // norm.num_groups == CARRIED == 2 * latent + 2
    for layer in (first, shortcut):
        layer.weight[ours], layer.bias[ours] = 0, 0
    for i in range(latent):
        for sign, channel in ((1, width - CARRIED + 2 * i), (-1, width - CARRIED + 2 * i + 1)):
            first.weight[channel, i, 1, 1] = sign
            last.weight[i, channel, 1, 1] = sign
    first.bias[-2], first.bias[-1] = CONSTANT, -CONSTANT
    # the last block reads what comes from below, then what the first convolution made
    for channel in range(width - CARRIED, width):
        shortcut.weight[channel, width + channel] = 1
    norm.weight[ours] = ((2 * CONSTANT**2 + 2 * latent) / CARRIED) ** 0.5


def predict(unet: UNet2DConditionModel, noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """`noisy` stays float32: only what follows the first convolution is rounded."""
    embedded = unet.time_embedding(unet.time_proj(t).to(unet.dtype))
    states = context.to(unet.dtype)
    x = unet.conv_in(noisy)
    skips = [x]
    for block in unet.down_blocks:
        if getattr(block, "has_cross_attention", False):
            x, outputs = block(hidden_states=x, temb=embedded, encoder_hidden_states=states)
        else:
            x, outputs = block(hidden_states=x, temb=embedded)
        skips += outputs
    x = unet.mid_block(x, embedded, encoder_hidden_states=states)
    for block in unet.up_blocks:
        block_skips = tuple(skips[-len(block.resnets) :])
        del skips[-len(block.resnets) :]
        if getattr(block, "has_cross_attention", False):
            x = block(
                hidden_states=x,
                temb=embedded,
                res_hidden_states_tuple=block_skips,
                encoder_hidden_states=states,
            )
        else:
            x = block(hidden_states=x, temb=embedded, res_hidden_states_tuple=block_skips)
    out: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
    return out
