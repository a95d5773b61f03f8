"""Preference pairs: of two answers, the chosen one should become more likely (Rafailov et al. 2023).

Reads top to bottom. Rows carry the answer that was chosen and `rejected_response`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from comfyloop.train.data.batches import in_groups
from comfyloop.train.data.examples import Example
from comfyloop.train.data.reading import Pair, fingerprint, read_pairs
from comfyloop.train.kernels.losses import dpo_loss
from comfyloop.train.parallel import make_updates
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.run.plan import Plan
from comfyloop.train.run.training import Training
from comfyloop.train.specs.text import PreferenceSpec, TrainSpec
from comfyloop.train.text.answers import EVALUATION_TOKENS, read_answers
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.forward import prepare
from comfyloop.train.text.models import Loaded, describe, load
from comfyloop.train.text.reference import reference_log_probs


def run(directory: RunDirectory, spec: TrainSpec, log: RunLog, control: Control) -> None:
    """Train as `spec` says. Leaves, and raises, what the recipe `sft` does."""
    torch.manual_seed(spec.seed)

    log.phase("reading the data")
    description = describe(spec.model, spec.rope_scaling)
    encoder = description.encoder(spec)
    train = read_pairs(directory, spec.train, encoder, spec, log, control)
    holdout = read_pairs(directory, spec.holdout, encoder, spec, log, control) if spec.holdout else []

    log.phase("loading the model")
    parent = directory.resolve(spec.adapter.init_from) if spec.adapter.init_from else None
    model = load(spec, description, parent)
    control.check()
    features = prepare(model, spec, both([*train, *holdout]), log, control)

    log.phase("asking the reference")
    plan = Plan.of(spec, len(train))
    reference_pairs = [*(train[i] for i in plan.used()), *holdout]
    sums = reference_log_probs(directory, spec, model, features, both(reference_pairs), control)
    reference = dict(zip(reference_pairs, sums.view(-1, 2), strict=True))

    def look() -> dict[str, float]:
        values = holdout_values(model, features, holdout, reference, spec.preference, control)
        return {f"holdout_{name}": value for name, value in values.items()}

    updates = make_updates(model, spec)
    training = Training(directory, spec, log, control, updates, plan, fingerprint(spec, both(train)))
    for step in training.steps(look if holdout else None):
        pairs = [train[i] for i in step.samples]
        chosen_tokens = sum(pair.chosen.answer.numel() for pair in pairs)
        for indices in step.micro_batches():
            batch = [train[i] for i in indices]
            losses, values = compare(model, features, batch, reference, spec.preference)
            step.backward(losses.sum() / len(pairs))
            step.add(**{name: float(value.sum()) / len(pairs) for name, value in values.items()})
        step.finish(chosen_tokens + sum(pair.rejected.answer.numel() for pair in pairs))

    log.phase("saving the result")
    updates.save_result(directory.model if model.peft is None else directory.adapter)


def both(pairs: Sequence[Pair]) -> list[Example]:
    return [example for pair in pairs for example in (pair.chosen, pair.rejected)]


def compare(
    model: Loaded,
    features: ImageFeatures,
    pairs: Sequence[Pair],
    reference: dict[Pair, Tensor],
    preference: PreferenceSpec,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of some pairs, [n] with a gradient, and the logged values of each, [n] without one.

    A reward is beta times the log-probability of an answer, less that under the reference.
    """
    examples = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    answers = read_answers(model, features, examples)
    chosen, rejected = answers.sums.chunk(2)
    before_chosen, before_rejected = torch.stack([reference[pair] for pair in pairs]).unbind(1)
    chosen_tokens, rejected_tokens = torch.tensor(answers.lengths, device=chosen.device).chunk(2)
    losses = dpo_loss(
        chosen - before_chosen,
        rejected - before_rejected,
        (chosen_tokens, rejected_tokens),
        loss_type=preference.loss_type,
        beta=preference.beta,
        label_smoothing=preference.label_smoothing,
    )
    if preference.rpo_alpha:
        losses = losses - preference.rpo_alpha * chosen / chosen_tokens
    rewards = preference.beta * (chosen - before_chosen), preference.beta * (rejected - before_rejected)
    values = {
        "loss": losses,
        "rewards/chosen": rewards[0],
        "rewards/rejected": rewards[1],
        "rewards/margins": rewards[0] - rewards[1],
        "rewards/accuracies": (rewards[0] > rewards[1]).float(),
        "logps/chosen": chosen,
        "logps/rejected": rejected,
    }
    return losses, {name: value.detach() for name, value in values.items()}


@torch.no_grad()
def holdout_values(
    model: Loaded,
    features: ImageFeatures,
    pairs: Sequence[Pair],
    reference: dict[Pair, Tensor],
    preference: PreferenceSpec,
    control: Control,
) -> dict[str, float]:
    """Loss, margin and accuracy over pairs that are never trained on."""
    model.eval()
    totals = {"loss": 0.0, "rewards/margins": 0.0, "rewards/accuracies": 0.0}
    for indices in in_groups([pair.chosen for pair in pairs], EVALUATION_TOKENS // 2):
        control.check()
        _, values = compare(model, features, [pairs[i] for i in indices], reference, preference)
        totals = {name: total + float(values[name].sum()) for name, total in totals.items()}
    model.train()
    return {name: total / len(pairs) for name, total in totals.items()}
