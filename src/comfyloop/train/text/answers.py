"""Log-probabilities of the answers of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from comfyloop.train.data.examples import Example
from comfyloop.train.kernels.losses import Targets, answer_log_probs
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.forward import answer_states
from comfyloop.train.text.models import Loaded

EVALUATION_TOKENS = 2048
"""Tokens of one pass without gradients: nothing is kept for them, so more fit than in training."""


@dataclass(frozen=True)
class Answers:
    """A answer tokens of n samples, in order."""

    log_probs: Tensor  # [A] nats, float32, with a gradient
    right: Tensor  # [A] bool: the token is the model's first choice
    lengths: tuple[int, ...]  # n: answer tokens of each sample

    @property
    def sums(self) -> Tensor:
        """[n] log-probability of each whole answer."""
        return torch.stack([part.sum() for part in torch.split(self.log_probs, list(self.lengths))])


class AnswerReader(nn.Module):
    """The model and its head as one module, around which FSDP2 and DeepSpeed gather weights."""

    def __init__(self, model: Loaded) -> None:
        super().__init__()
        self.trained = model.module
        self._model = model

    def forward(self, features: ImageFeatures, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """[A] log-probability of each answer token in nats, [A] whether it is the model's first choice."""
        states, labels = answer_states(self._model, features, examples)
        head = self._model.head
        if not any(example.targets for example in examples):
            return answer_log_probs(states, head, labels)
        soft = torch.cat([torch.full((e.answer.numel(),), e.targets is not None) for e in examples])
        soft = soft.to(labels.device)
        hard_places, soft_places = (~soft).nonzero()[:, 0], soft.nonzero()[:, 0]
        soft_targets = [example.targets for example in examples if example.targets is not None]
        targets = Targets(
            torch.cat([some.ids for some in soft_targets]).to(labels.device),
            torch.cat([some.shares for some in soft_targets if some.shares is not None]).to(labels.device),
        )
        parts = [
            answer_log_probs(states[hard_places], head, labels[hard_places]),
            answer_log_probs(states[soft_places], head, targets),
        ]
        back = torch.argsort(torch.cat([hard_places, soft_places]))
        log_probs, right = (torch.cat(both)[back] for both in zip(*parts, strict=True))
        return log_probs, right


def read_answers(model: Loaded, features: ImageFeatures, examples: Sequence[Example]) -> Answers:
    """The log-probabilities of the answers of some samples."""
    log_probs, right = (model.spread or AnswerReader(model))(features, examples)
    return Answers(log_probs, right, tuple(example.answer.numel() for example in examples))
