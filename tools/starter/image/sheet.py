"""Draw forty prompts on one sheet, to be looked at by a person.

python -m tools.starter.image.sheet --work DIR --out sheet.png [prompt …]
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler
from PIL import Image, ImageDraw
from torch import Tensor

from comfyloop.starter.image import denoiser

from .model import Prompts, make_unet, predict
from .prompts import PROMPTS

STEPS, GUIDANCE = 24, 4.0
TILE = 128  # pixels, on the sheet


@torch.no_grad()
def paint(work: Path, prompts: list[str], *, seed: int = 0, guidance: float = GUIDANCE) -> list[Image.Image]:
    """Pictures by the averaged weights in the work folder."""
    unet, attention = make_unet()
    unet.load_state_dict(torch.load(work / "unet" / "average.pt", weights_only=True))
    unet.to(torch.bfloat16).eval()
    vae = AutoencoderTiny(scaling_factor=1.0)
    vae.load_state_dict(torch.load(work / "vae" / "average.pt", weights_only=True))
    encode = Prompts(work / "tokens.safetensors")
    scheduler = EulerDiscreteScheduler(**denoiser.schedule())
    chance = torch.Generator().manual_seed(seed)
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), 20):
        part = prompts[start : start + 20]
        scheduler.set_timesteps(STEPS)
        context, attention.bias = encode([*part, *[""] * len(part)])
        shape = (len(part), 4, denoiser.SIDE // 8, denoiser.SIDE // 8)
        latents = torch.randn(shape, generator=chance) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([latents, latents]), t)
            wanted, anything = predict(unet, both, t.repeat(len(both)), context).chunk(2)
            latents = scheduler.step(anything + guidance * (wanted - anything), t, latents).prev_sample
        pictures += [to_image(pixels) for pixels in vae.decode(latents).sample]
    return pictures


def to_image(pixels: Tensor) -> Image.Image:
    """`pixels` in -1..1 [3, H, W]."""
    return Image.fromarray(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def contact_sheet(pictures: list[Image.Image], labels: list[str], columns: int = 8) -> Image.Image:
    side, line = TILE, 14
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * (side + 4), rows * (side + line + 4)), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left, top = i % columns * (side + 4), i // columns * (side + line + 4)
        canvas.paste(picture, (left, top + line))
        pen.text((left + 3, top + 1), label[:22], fill="black")
    return canvas


def draw(
    work: Path, out: Path, prompts: list[str] | None = None, *, seed: int = 0, guidance: float = GUIDANCE
) -> None:
    wanted = prompts or list(PROMPTS)
    pictures = paint(work, wanted, seed=seed, guidance=guidance)
    contact_sheet([p.resize((TILE, TILE), Image.Resampling.BICUBIC) for p in pictures], wanted).save(out)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.starter.image.sheet", description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("prompts", nargs="*")
    args = parser.parse_args()
    draw(args.work, args.out, args.prompts, seed=args.seed, guidance=args.guidance)


if __name__ == "__main__":
    main()
