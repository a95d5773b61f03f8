"""Train the denoiser on cached latents. A run that was stopped goes on where it was, a new one from shipped weights.

    python -m tools.starter.image.unet --work DIR --hours 6

Every few minutes it writes `DIR/unet/state.pt` (to go on from), `average.pt` (what ships) and a contact sheet.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from safetensors.numpy import load_file
from torch import Tensor, nn

from comfyloop.stable_diffusion import tokenizer as clip
from comfyloop.starter.image import denoiser, text

from . import sheet
from .data import DRAWN_STYLES, STYLES, Captions, Pictures, load, on, weight
from .export import begin_from
from .state import TrainingState

RATE, WARM_STEPS, DECAY, WEIGHT_DECAY = 8e-4, 100, 0.999, 0.01
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
BATCH = 32
CAPTION_DROPOUT = 0.1
MOST_SNR = 5.0
NOISIER = 0.4  # exponent: strong noise is drawn more often, for there the words decide
TOKENS = 16  # start, words, one end that stands for all of them
SAVE_SECONDS, SHEET_SECONDS = 240, 900


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
            found = self.tokenizer(caption).input_ids[1:-1][: TOKENS - 2]
            count = len(found) + 2
            states[row, :count] = self.encode(found)
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


@torch.no_grad()
def latents(work: Path, pictures: Pictures) -> Tensor:
    """float32 [picture, 4, SIDE / 8, SIDE / 8], zero where the style is not drawn; encoded once for each encoder."""
    side = denoiser.SIDE
    source, path = work / "vae" / "average.pt", work / "unet" / f"latents-{side}.pt"
    if path.exists() and path.stat().st_mtime > source.stat().st_mtime:
        kept: Tensor = torch.load(path, weights_only=True)
        return kept
    vae = AutoencoderTiny(scaling_factor=1.0)
    vae.load_state_dict(torch.load(source, weights_only=True))
    vae.to(torch.bfloat16)
    wanted = [i for i, style in enumerate(pictures.style) if STYLES[style] in DRAWN_STYLES]
    encoded = torch.zeros(len(pictures.pixels), 4, side // 8, side // 8)
    for start in range(0, len(wanted), 32):
        part = wanted[start : start + 32]
        pixels = torch.from_numpy(on((255, 255, 255), pictures.pixels[part])).permute(0, 3, 1, 2)
        scaled = F.interpolate(pixels.float() / 127.5 - 1, (side, side), mode="area")
        encoded[part] = vae.encode(scaled.to(torch.bfloat16)).latents.float()
    torch.save(encoded, path)
    return encoded


def weights_of_pictures(pictures: Pictures) -> list[float]:
    return [
        weight(pictures.concepts[concept].label) * DRAWN_STYLES.get(STYLES[style], 0.0)
        for concept, style in zip(pictures.concept, pictures.style, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.starter.image.unet", description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--cool", action="store_true", help="let the rate fall to zero over these hours")
    parser.add_argument(
        "--from", dest="begin", type=Path, help="shipped weights, where nothing was trained yet"
    )
    args = parser.parse_args()
    if args.begin:
        begin_from(args.begin, args.work)
    folder = args.work / "unet"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = load(args.work)
    stored = latents(args.work, pictures)
    captions, prompts = Captions(pictures.concepts), Prompts(args.work / "tokens.safetensors")
    shares = weights_of_pictures(pictures)
    kept = DDPMScheduler(**denoiser.schedule()).alphas_cumprod
    snr = kept / (1 - kept)
    # Min-SNR (Hang et al. 2023) for the picture's error, which never falls below the v-prediction weight:
    # plain noise prediction hardly learns what a picture shows, which is decided near pure noise.
    loss_weights = (snr + 1).clamp(max=MOST_SNR) / snr

    torch.manual_seed(0)
    unet, attention = make_unet()
    if (folder / "average.pt").exists():
        unet.load_state_dict(torch.load(folder / "average.pt", weights_only=True))
    state = TrainingState(unet, args.rate, DECAY, WEIGHT_DECAY, FASTER, muon_except=EXACT)
    state.resume(folder / "state.pt")
    unet.to(memory_format=torch.channels_last)
    begun = saved = drawn = time.monotonic()
    start_step, losses = state.step, []
    while (spent := time.monotonic() - begun) < args.hours * 3600:
        picks = state.chance.choices(range(len(shares)), shares, k=BATCH)
        written = [
            ""
            if state.chance.random() < CAPTION_DROPOUT
            else captions.write(int(pictures.concept[i]), STYLES[pictures.style[i]], state.chance)
            for i in picks
        ]
        context, attention.bias = prompts(written)
        clean = stored[picks]
        noise = torch.randn_like(clean)
        # one timestep out of each of as many bands
        t = (((torch.arange(BATCH) + torch.rand(BATCH)) / BATCH) ** NOISIER * 1000).long().clamp(max=999)
        signal = kept[t].view(-1, 1, 1, 1)
        noisy = (signal.sqrt() * clean + (1 - signal).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        made = predict(unet, noisy, t, context)
        loss = (loss_weights[t] * (made - noise).square().mean((1, 2, 3))).mean()
        loss.backward()
        cooling = 1 - spent / (args.hours * 3600) if args.cool else 1.0
        state.update(args.rate * min(1.0, (state.step + 1) / WARM_STEPS) * cooling)
        losses.append(float(loss.detach()))
        if state.step % 25 == 0:
            pace = spent / (state.step - start_step)
            print(
                f"step {state.step} loss {np.mean(losses[-200:]):.4f} {spent:.0f} s, {pace:.2f} s a step",
                flush=True,
            )
        now = time.monotonic()
        if now - saved > SAVE_SECONDS:
            saved = now
            state.save(folder / "state.pt")
            torch.save(state.averaged(), folder / "average.pt")
        if now - drawn > SHEET_SECONDS:
            drawn = now
            sheet.draw(args.work, folder / f"sheet-{state.step:06d}.png")
    state.save(folder / "state.pt")
    torch.save(state.averaged(), folder / "average.pt")
    sheet.draw(args.work, folder / f"sheet-{state.step:06d}.png")


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
        taken = tuple(skips[-len(block.resnets) :])
        del skips[-len(block.resnets) :]
        if getattr(block, "has_cross_attention", False):
            x = block(
                hidden_states=x, temb=embedded, res_hidden_states_tuple=taken, encoder_hidden_states=states
            )
        else:
            x = block(hidden_states=x, temb=embedded, res_hidden_states_tuple=taken)
    out: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
    return out


if __name__ == "__main__":
    main()
