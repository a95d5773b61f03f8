"""Draw the brand's pictures: Noto's emoji (Google, Apache-2.0) in the brand's colours on its paper.

python -m tools.draw_catalogue --work DIR [--out DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comfyloop.demo.brand import material
from comfyloop.demo.brand.material import Colour
from tools.starter import data

PACKAGES = {"noto": "@iconify-json/noto@1.2.9"}
SIDE = 384  # pixels
THING = 0.86  # of the side
LIGHT_ORANGE, DARK_TEAL = (250, 196, 130), (8, 50, 52)


def poster(drawing: Image.Image, palette: dict[str, Colour], side: int = SIDE) -> Image.Image:
    """A drawing with transparency on cream: its dark parts teal, its light ones orange."""
    paper = Image.new("RGB", (side, side), palette["cream"])
    thing = drawing.resize((round(THING * side),) * 2, Image.Resampling.LANCZOS)
    coloured = Image.fromarray(_in_palette(np.asarray(thing), palette), "RGBA")
    paper.paste(coloured, (round((1 - THING) / 2 * side),) * 2, coloured)
    return paper


def _in_palette(pixels: NDArray[np.uint8], palette: dict[str, Colour]) -> NDArray[np.uint8]:
    """uint8 [h, w, 4] with the same transparency, and colours that depend on lightness alone."""
    light = pixels[..., :3] @ np.array([0.299, 0.587, 0.114]) / 255
    darkest, lightest = np.quantile(light[pixels[..., 3] > 127], [0.02, 0.98])
    light = ((light - darkest) / max(lightest - darkest, 0.15)).clip(0, 1)
    steps = (0.0, 0.4, 0.62, 1.0)
    colours = (DARK_TEAL, palette["teal"], palette["orange"], LIGHT_ORANGE)
    mixed = [np.interp(light, steps, channel) for channel in zip(*colours, strict=True)]
    return np.dstack([*mixed, pixels[..., 3]]).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.draw_catalogue", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where npm packages are unpacked")
    parser.add_argument("--out", type=Path, default=material.FOLDER / "pictures")
    args = parser.parse_args()
    noto = data.fetch(args.work, PACKAGES)["noto"]
    brand = material.load()
    args.out.mkdir(parents=True, exist_ok=True)
    for product in [*brand.catalogue, *brand.corrections]:
        drawing = data.picture(f"svg:{noto}:{product.file}")
        poster(drawing, brand.palette).save(args.out / product.picture.name, quality=90, method=6)


if __name__ == "__main__":
    main()
