"""Supervised fine-tuning: a LoRA learns to write the corrected answers. Reads top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comfyloop.train.batches import by_length, pack
from comfyloop.train.control import Control
from comfyloop.train.data import fingerprint, read_examples
from comfyloop.train.encode import Example
from comfyloop.train.features import ImageFeatures
from comfyloop.train.log import RunLog
from comfyloop.train.losses import answer_cross_entropy
from comfyloop.train.models import Loaded, describe, load
from comfyloop.train.spec import TrainSpec
from comfyloop.train.status import RunDirectory
from comfyloop.train.training import Training
from comfyloop.train.updates import Updates

HOLDOUT_TOKENS = 2048
"""Tokens of one pass over hold-out samples: no gradients are kept, so more fit than in training."""


def run(directory: RunDirectory, spec: TrainSpec, log: RunLog, control: Control) -> None:
    """Train as `spec` says and leave `directory.adapter`.

    Raises:
        DataError, ModelError, InvalidInput, NotFound: before a step is taken.
        Cancelled, Terminated: a valid checkpoint has been left.
        RunFailed: the loss is no longer a number.
    """
    torch.manual_seed(spec.seed)

    log.phase("reading the data")
    description = describe(spec.model)
    encoder = description.encoder(spec)
    train = read_examples(directory, spec.train, encoder, spec, log, control)
    holdout = read_examples(directory, spec.holdout, encoder, spec, log, control) if spec.holdout else []

    log.phase("loading the model")
    parent = directory.resolve(spec.adapter.init_from) if spec.adapter.init_from else None
    model = load(spec, description, parent)
    features = ImageFeatures(model.whole, model.dtype, model.device)
    control.check()

    log.phase("looking at the images")
    for example in (*train, *holdout):
        if example.images:
            features.of(example)
            control.check()

    def look() -> dict[str, float]:
        return {"holdout_loss": holdout_loss(model, features, holdout, control)}

    updates = Updates(model, spec)
    training = Training(directory, spec, log, control, updates, len(train), fingerprint(spec, train))
    for step in training.steps(look if holdout else None):
        answer_tokens = sum(train[i].answer.numel() for i in step.samples)
        loss = right = 0.0
        for indices in step.micro_batches():
            outcome = answer_loss(model, features, [train[i] for i in indices])
            step.backward(outcome.total / answer_tokens)
            loss += float(outcome.total.detach()) / answer_tokens
            right += float(outcome.right) / answer_tokens
        step.finish(loss=loss, answer_token_accuracy=right, answer_tokens=answer_tokens)

    log.phase("saving the adapter")
    updates.save_result(directory.adapter)


@dataclass(frozen=True)
class Outcome:
    total: Tensor  # sum of cross-entropy over answer tokens, in nats, with a gradient
    right: Tensor  # answer tokens that were the model's first choice


def answer_loss(model: Loaded, features: ImageFeatures, examples: Sequence[Example]) -> Outcome:
    """Cross-entropy of the answers of some samples, computed as one packed row."""
    row = pack(examples, model.device)
    hidden = model.hidden_states(
        input_ids=row.input_ids,
        position_ids=row.position_ids,
        sample_lengths=row.lengths,
        **features.packed(examples),
    )
    return Outcome(*answer_cross_entropy(hidden[0, row.predicting], model.head, row.labels))


@torch.no_grad()
def holdout_loss(
    model: Loaded, features: ImageFeatures, examples: Sequence[Example], control: Control
) -> float:
    """Mean cross-entropy of the answer tokens of samples that are never trained on, in nats a token."""
    model.eval()
    total = 0.0
    for indices in by_length(examples, HOLDOUT_TOKENS):
        control.check()
        total += float(answer_loss(model, features, [examples[i] for i in indices]).total)
    model.train()
    return total / sum(example.answer.numel() for example in examples)
