"""Batches of cached features with their subjects: drawings and synthesised photographs."""

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from . import data, imagenet, texts
from .synthesis import Top

# Three hundred ways to draw a person doing something would crowd out everything else.
DRAWINGS = 0.7  # the rest are synthesised photographs
GROUP_WEIGHTS = {"people-body": 0.2, "smileys-emotion": 0.6, "symbols": 0.5}


@dataclass
class Bank:
    top: Top
    inner: Tensor  # (n, 9, 320) half
    training: tuple[list[int], list[texts.Subject]]  # rows of `inner`, and what they show
    weights: list[float]
    synthetic: Tensor
    kinds: list[texts.Subject]
    classes: Tensor
    validation: tuple[list[int], list[texts.Subject]]
    style: tuple[list[int], list[texts.Subject]]
    held_out: tuple[list[int], list[texts.Subject]]

    def batch(self, size: int, rng: random.Random) -> tuple[Tensor, list[texts.Subject]]:
        """Features (n, 9, 1280) and what they show."""
        rows, subjects = self.training
        drawings = round(size * DRAWINGS)
        drawn = rng.choices(range(len(rows)), self.weights, k=drawings)
        made = [rng.randrange(len(self.synthetic)) for _ in range(size - drawings)]
        inner = torch.cat([self.inner[[rows[i] for i in drawn]], self.synthetic[made]]).float()
        about = [subjects[i] for i in drawn] + [self.kinds[int(self.classes[i])] for i in made]
        return self.features(inner, rng), about

    def mixed_batch(
        self, size: int, rng: random.Random
    ) -> tuple[Tensor, list[texts.Subject], Tensor, Tensor]:
        """A batch in which each picture is blended with another: features, subjects, partners and shares."""
        features, subjects = self.batch(size, rng)
        partners = torch.randperm(len(features))
        shares = torch.distributions.Beta(0.3, 0.3).sample((len(features), 1))
        blended = features * shares[..., None] + features[partners] * (1 - shares[..., None])
        return blended, subjects, partners, shares

    def features(self, inner: Tensor, rng: random.Random | None = None) -> Tensor:
        if rng is not None:
            # small changes of the inner map: other noise every time the same picture comes by
            noise = torch.randn(inner.shape) * self.top.spread * rng.uniform(0, 0.35)
            inner = inner * (1 + 0.15 * (torch.rand(len(inner), 1, 1) - 0.5)) + noise
        return self.top.features(inner)


def load(work: Path, checkpoint: Path) -> Bank:
    found = data.concepts(work)
    training, validation, held_out = ({c.code for c in part} for part in data.split(found))
    common = Counter(tag for c in found if c.code in training for tag in c.tags)
    by_code = {c.code: c for c in found}
    rows = [line.split() for line in (work / "features.txt").read_text().splitlines()]

    def pick(codes: set[str], styles: tuple[str, ...], views: range) -> tuple[list[int], list[texts.Subject]]:
        chosen = [
            i
            for i, (code, style, view) in enumerate(rows)
            if code in codes and style in styles and int(view) in views
        ]
        return chosen, [texts.emoji_subject(by_code[rows[i][0]], common) for i in chosen]

    inner = load_file(work / "features.safetensors")["features"]
    drawings = pick(training, data.TRAIN_STYLES, range(9))
    groups = [by_code[rows[i][0]].group for i in drawings[0]]
    synthetic = load_file(work / "synthetic.safetensors")
    plain = ("noto", "twemoji")
    return Bank(
        top=Top(checkpoint),
        inner=inner,
        training=drawings,
        weights=[GROUP_WEIGHTS.get(group, 1.0) for group in groups],
        synthetic=synthetic["inner"],
        kinds=[texts.photo_subject(kind) for kind in imagenet.kinds(work)],
        classes=synthetic["classes"],
        validation=pick(validation, plain, range(1)),
        style=pick(training, (data.TEST_STYLE,), range(1)),
        held_out=pick(held_out, plain, range(1)),
    )
