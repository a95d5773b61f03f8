"""The teacher of `sdft`: the model itself, some steps behind, with the wanted answer in its context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from comfyloop.train.data.batches import in_groups
from comfyloop.train.data.examples import Example
from comfyloop.train.data.reading import Demonstrated
from comfyloop.train.kernels.losses import Targets, likely_tokens
from comfyloop.train.run.control import Control
from comfyloop.train.run.updates import OptimizerStep
from comfyloop.train.text.answers import EVALUATION_TOKENS, read_answers
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.forward import answer_states
from comfyloop.train.text.models import Loaded

MOST_ASKED = 24
"""Samples by which it is told whether the teacher is one."""


class Teacher:
    """A moving average of the weights in training.

    Make it before a checkpoint is restored: it is kept in the run's checkpoints.

    Args:
        rate: How far it follows a step; 1: it is the student.
    """

    def __init__(self, model: Loaded, updates: OptimizerStep, rate: float) -> None:
        self._model, self._updates, self._rate = model, updates, rate
        self._weights: list[tuple[str, nn.Parameter]] = []
        if rate < 1:
            self._weights = [
                (f"teacher.{name}", nn.Parameter(parameter.detach().clone(), requires_grad=False))
                for name, parameter in updates.parameters
            ]
            updates.beside = self._weights

    @torch.no_grad()
    def follow(self) -> None:
        """Move towards the current weights. Called between a step's gradients and its update, so that a checkpoint
        before or after it is consistent."""
        for (_, own), (_, parameter) in zip(self._weights, self._updates.parameters, strict=False):
            own.lerp_(parameter.to(own), self._rate)

    @torch.no_grad()
    def teach(
        self, features: ImageFeatures, shown: Sequence[Example], students: Sequence[Example], most: int
    ) -> list[Example]:
        """The students' answers with the teacher's distribution at each of their tokens as targets.

        Args:
            shown: The same answers after conversations that hold the wanted one.
            most: Tokens that are kept at each place.
        """
        self._model.eval()
        with self._speaking():
            states, _ = answer_states(self._model, features, shown)
            likely = likely_tokens(states, self._model.head, most)
        self._model.train()
        taught, start = [], 0
        for student in students:
            rows = slice(start, start := start + student.answer.numel())
            ids, shares = likely.rows(rows)
            assert shares is not None
            taught.append(replace(student, targets=Targets(ids.cpu(), shares.cpu())))
        return taught

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """A context in which the model has the teacher's weights."""
        weights = [weight for _, weight in self._model.trainable][: len(self._weights)]
        before = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight, (_, own) in zip(weights, self._weights, strict=True):
                weight.copy_(own)
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, was in zip(weights, before, strict=True):
                    weight.copy_(was)


@torch.no_grad()
def helped(
    model: Loaded, features: ImageFeatures, items: Sequence[Demonstrated], control: Control
) -> tuple[float, float] | None:
    """Mean log-probability of wanted answers, in nats a token, without them in the conversation and with them.

    A model that does not find an answer more likely after it was shown it cannot teach. None if there are no such
    samples.
    """
    with_teacher = [item for item in items if item.teacher is not None][:MOST_ASKED]
    if not with_teacher:
        return None
    model.eval()
    means = []
    for examples in (
        [item.example for item in with_teacher],
        [item.teacher for item in with_teacher if item.teacher],
    ):
        total = 0.0
        for indices in in_groups(examples, EVALUATION_TOKENS):
            control.check()
            total += float(read_answers(model, features, [examples[i] for i in indices]).sums.sum())
        means.append(total / sum(example.answer.numel() for example in examples))
    return means[0], means[1]
