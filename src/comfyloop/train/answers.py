"""What the model thinks of the answers of some samples, computed as one packed row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comfyloop.train.batches import pack
from comfyloop.train.encode import Example
from comfyloop.train.features import ImageFeatures
from comfyloop.train.losses import answer_log_probs
from comfyloop.train.models import Loaded

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


def read_answers(model: Loaded, features: ImageFeatures, examples: Sequence[Example]) -> Answers:
    """The log-probabilities of the answers of some samples."""
    row = pack(examples, model.device)
    hidden = model.hidden_states(
        input_ids=row.input_ids,
        position_ids=row.position_ids,
        sample_lengths=row.lengths,
        **features.packed(examples),
    )
    log_probs, right = answer_log_probs(hidden[0, row.predicting], model.head, row.labels)
    return Answers(log_probs, right, tuple(example.answer.numel() for example in examples))
