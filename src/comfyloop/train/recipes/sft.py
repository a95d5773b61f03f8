"""Supervised fine-tuning: a LoRA learns to write the corrected answers. Reads top to bottom."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comfyloop.train.data.batches import in_groups
from comfyloop.train.data.examples import Example
from comfyloop.train.data.reading import fingerprint, read_examples
from comfyloop.train.parallel import make_updates
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory, write_atomically
from comfyloop.train.run.log import RunLog
from comfyloop.train.run.plan import Plan
from comfyloop.train.run.training import Training
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.answers import EVALUATION_TOKENS, read_answers
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.forward import prepare
from comfyloop.train.text.models import Loaded, describe, load
from comfyloop.train.text.replay import entropy, hold_to_base


def run(directory: RunDirectory, spec: TrainSpec, log: RunLog, control: Control) -> None:
    """Train as `spec` says and write `directory.adapter`, or `directory.model` under full training.

    Raises:
        DataError, ModelError, InvalidInput, NotFound: before a step is taken.
        Cancelled, Terminated: a valid checkpoint has been left.
        RunFailed: the loss is no longer a number.
    """
    torch.manual_seed(spec.seed)

    log.phase("reading the data")
    description = describe(spec.model, spec.rope_scaling)
    encoder = description.encoder(spec)
    train = read_examples(directory, spec.train, encoder, spec, log, control)
    holdout = read_examples(directory, spec.holdout, encoder, spec, log, control) if spec.holdout else []

    log.phase("loading the model")
    parent = directory.resolve(spec.adapter.init_from) if spec.adapter.init_from else None
    model = load(spec, description, parent)
    control.check()
    features = prepare(model, spec, [*train, *holdout], log, control)
    plan = Plan.of(spec, len(train), [example.part for example in train])
    mark = fingerprint(spec, train)
    if spec.replay_kl:
        train = hold_to_base(model, features, train, spec, log, control)

    def look() -> dict[str, float]:
        return {"holdout_loss": holdout_loss(model, features, holdout, control)}

    updates = make_updates(model, spec)
    training = Training(directory, spec, log, control, updates, plan, mark)
    last_seen: dict[str, float] = {}
    for step in training.steps(look if holdout else None):
        answer_tokens = sum(train[i].answer.numel() for i in step.samples)
        for indices in step.micro_batches():
            outcome = answer_loss(model, features, [train[i] for i in indices], spec.replay_kl)
            step.backward(outcome.total / answer_tokens)
            step.add(
                loss=float(outcome.total.detach()) / answer_tokens,
                answer_token_accuracy=float(outcome.right) / answer_tokens,
            )
            seen = {train[i].id: loss for i, loss in zip(indices, outcome.means, strict=True)}
            step.saw(seen)
            last_seen |= seen
        step.finish(answer_tokens)

    log.phase("saving the result")
    if last_seen:
        write_atomically(directory.row_losses, json.dumps(last_seen).encode())
    updates.save_result(directory.model if model.peft is None else directory.adapter)


@dataclass(frozen=True)
class AnswerLoss:
    total: Tensor  # sum over answer tokens, in nats, with a gradient: cross-entropy, and divergence in replay
    right: Tensor  # answer tokens that were the model's first choice
    means: list[float]  # of each sample, nats a token


def answer_loss(
    model: Loaded, features: ImageFeatures, examples: Sequence[Example], replay_kl: float = 1.0
) -> AnswerLoss:
    """Cross-entropy of the answers of some samples, KL for those with target distributions; replay is weighted by
    `replay_kl`."""
    answers = read_answers(model, features, examples)
    sums = -answers.sums - torch.tensor([entropy(example) for example in examples], device=model.device)
    weights = torch.tensor(
        [
            replay_kl if example.targets is not None and example.part == "replay" else 1.0
            for example in examples
        ],
        device=model.device,
    )
    lengths = torch.tensor(answers.lengths, device=model.device)
    return AnswerLoss((weights * sums).sum(), answers.right.sum(), (sums.detach() / lengths).tolist())


@torch.no_grad()
def holdout_loss(
    model: Loaded, features: ImageFeatures, examples: Sequence[Example], control: Control
) -> float:
    """Mean cross-entropy of the answer tokens of samples that are never trained on, in nats a token."""
    model.eval()
    total = 0.0
    for indices in in_groups(examples, EVALUATION_TOKENS):
        control.check()
        total += float(answer_loss(model, features, [examples[i] for i in indices]).total)
    model.train()
    return total / sum(example.answer.numel() for example in examples)
