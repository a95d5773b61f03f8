"""Vision features of photographs, without photographs.

No free photo collection is at hand, but the classifier knows what its 1,000 classes look like. The norms
inside the tower record the mean and the variance of the last convolution's input over the photographs it
was trained on; from that prior we draw features and let Langevin steps move each draw to where the
classifier sees a wanted class.

    python -m comfyloop.starter.train.synthesis --work DIR
"""

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from comfyloop.starter import packages, vision

SHARED = 0.5  # the part of the variance that all positions of one picture share
ROUNDS = 24  # features a class
STEPS = 40
STEP_SIZE = 0.06
PULL = 6.0  # weight of the classifier against the prior


class Top:
    """The tower's last convolution, folded with its norm, and the classifier."""

    def __init__(self, checkpoint: Path) -> None:
        weights = vision.convert(checkpoint)
        norm = {
            k: weights[f"efficientnet.encoder.top_bn.{k}"]
            for k in ("weight", "bias", "running_mean", "running_var")
        }
        scale = norm["weight"] / (norm["running_var"] + 1e-3).sqrt()
        self.weight = weights["efficientnet.encoder.top_conv.weight"][:, :, 0, 0] * scale[:, None]
        self.bias = norm["bias"] - norm["running_mean"] * scale
        self.rows, self.offsets = weights["classifier.weight"], weights["classifier.bias"]
        last = f"efficientnet.encoder.blocks.{vision.BLOCKS - 1}.projection.project_bn"
        self.mean, self.spread = weights[f"{last}.bias"], weights[f"{last}.weight"].abs()

    def features(self, inner: Tensor) -> Tensor:
        """(..., 320) before the last convolution -> (..., 1280), the tower's output."""
        return (inner @ self.weight.T + self.bias).clamp(0, 6)

    def log_probabilities(self, features: Tensor) -> Tensor:
        """(n, positions, 1280) -> (n, classes)"""
        return (features.mean(1) @ self.rows.T + self.offsets).log_softmax(-1)


def draw(top: Top, classes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One feature map a class: (n, 9, 320), and the probability that the classifier gives it."""
    n, width = len(classes), len(top.mean)
    shared = torch.randn(n, 1, width, generator=generator)
    local = torch.randn(n, vision.IMAGE_TOKENS, width, generator=generator)
    # some pictures are plain, some are not: each stops once the classifier is as sure as this
    wanted = torch.rand(n, generator=generator) * 0.6 + 0.35
    done = torch.zeros(n, dtype=torch.bool)
    sure = torch.zeros(n)
    for _ in range(STEPS):
        shared.requires_grad_(True)
        local.requires_grad_(True)
        inner = top.mean + top.spread * (SHARED**0.5 * shared + (1 - SHARED) ** 0.5 * local)
        score = top.log_probabilities(top.features(inner))[torch.arange(n), classes]
        grads = torch.autograd.grad(score.sum(), (shared, local))
        with torch.no_grad():
            sure = score.exp()
            done |= sure > wanted
            moving = (~done).float()[:, None, None]
            moved = []
            for value, grad in zip((shared, local), grads, strict=True):
                noise = torch.randn(value.shape, generator=generator) * (2 * STEP_SIZE) ** 0.5
                pull = PULL * (vision.IMAGE_TOKENS if value is local else 1.0)
                moved.append(value + moving * (STEP_SIZE * (pull * grad - value) + noise))
            shared, local = moved
    inner = top.mean + top.spread * (SHARED**0.5 * shared + (1 - SHARED) ** 0.5 * local)
    return inner.detach(), sure


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    top = Top(packages.extract(packages.VISION, packages.obtain(packages.VISION, work / "wheels"), work))
    generator = torch.Generator().manual_seed(1)
    inner, classes = [], []
    for round_ in range(ROUNDS):
        started = time.monotonic()
        for chunk in torch.split(torch.arange(vision.CLASSES), 100):
            made, sure = draw(top, chunk, generator)
            inner.append(made.half())
            classes.append(chunk)
        print(f"round {round_}: sure {sure.median():.2f}, {time.monotonic() - started:.0f} s", flush=True)
    save_file({"inner": torch.cat(inner), "classes": torch.cat(classes)}, work / "synthetic.safetensors")


if __name__ == "__main__":
    main()
