"""Wanted and unwanted answers: the former should become more likely, the latter less (Ethayarajh et al. 2024).

Reads top to bottom. Rows carry `label`: true or false.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comfyloop.train.data.batches import in_groups
from comfyloop.train.data.examples import Example
from comfyloop.train.data.reading import Labelled, fingerprint, read_labelled
from comfyloop.train.kernels.losses import kto_loss
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
    train = read_labelled(directory, spec.train, encoder, spec, log, control)
    holdout = read_labelled(directory, spec.holdout, encoder, spec, log, control) if spec.holdout else []

    log.phase("loading the model")
    parent = directory.resolve(spec.adapter.init_from) if spec.adapter.init_from else None
    model = load(spec, description, parent)
    control.check()
    features = prepare(model, spec, both([*train, *holdout]), log, control)

    log.phase("asking the reference")
    plan = Plan.of(spec, len(train))
    reference_items = [*(train[i] for i in plan.used()), *holdout]
    sums = reference_log_probs(directory, spec, model, features, both(reference_items), control)
    reference = dict(zip(reference_items, sums.view(-1, 2), strict=True))

    def look() -> dict[str, float]:
        values = holdout_values(model, features, holdout, reference, spec.preference, control)
        return {f"holdout_{name}": value for name, value in values.items()}

    updates = make_updates(model, spec)
    mark = fingerprint(spec, both(train), [item.wanted for item in train])
    training = Training(directory, spec, log, control, updates, plan, mark)
    for step in training.steps(look if holdout else None):
        items = [train[i] for i in step.samples]
        drift = 0.0
        for indices in step.micro_batches():
            drift += step.weight * divergence(model, features, [train[i] for i in indices], reference)
        kl = max(0.0, step.total(drift / len(items)))
        for indices in step.micro_batches():
            comparison = judge(model, features, [train[i] for i in indices], reference, kl, spec.preference)
            step.backward(comparison.losses.sum() / len(items))
            step.add(**comparison.shares_of(items))
        step.finish(sum(item.example.answer.numel() for item in items), kl=kl)

    log.phase("saving the result")
    updates.save_result(directory.model if model.peft is None else directory.adapter)


def both(items: Sequence[Labelled]) -> list[Example]:
    return [example for item in items for example in (item.example, item.mismatched)]


@dataclass(frozen=True)
class Judged:
    """Some answers, [n] each. A reward is beta times the log-probability, less that under the reference."""

    wanted: Tensor
    losses: Tensor  # with a gradient
    rewards: Tensor
    log_probs: Tensor

    def shares_of(self, items: Sequence[Labelled]) -> dict[str, float]:
        """The contribution of these answers to the means over `items`, which contain them."""
        chosen = sum(item.wanted for item in items)
        rejected = len(items) - chosen
        shares = {"loss": float(self.losses.detach().sum()) / len(items)}
        if chosen:
            shares["rewards/chosen"] = float(self.rewards[self.wanted].sum()) / chosen
            shares["logps/chosen"] = float(self.log_probs[self.wanted].sum()) / chosen
        if rejected:
            shares["rewards/rejected"] = float(self.rewards[~self.wanted].sum()) / rejected
            shares["logps/rejected"] = float(self.log_probs[~self.wanted].sum()) / rejected
        if chosen and rejected:
            shares["rewards/margins"] = shares["rewards/chosen"] - shares["rewards/rejected"]
        right = (self.rewards > 0) == self.wanted
        return shares | {"rewards/accuracies": float(right.sum()) / len(items)}


def judge(
    model: Loaded,
    features: ImageFeatures,
    items: Sequence[Labelled],
    reference: dict[Labelled, Tensor],
    kl: float,
    preference: PreferenceSpec,
) -> Judged:
    log_probs = read_answers(model, features, [item.example for item in items]).sums
    wanted = torch.tensor([item.wanted for item in items], device=log_probs.device)
    log_ratios = log_probs - torch.stack([reference[item][0] for item in items])
    losses = kto_loss(
        log_ratios,
        wanted,
        log_ratios.new_tensor(kl),
        beta=preference.beta,
        desirable_weight=preference.desirable_weight,
        undesirable_weight=preference.undesirable_weight,
    )
    return Judged(wanted, losses, preference.beta * log_ratios.detach(), log_probs.detach())


@torch.no_grad()
def divergence(
    model: Loaded, features: ImageFeatures, items: Sequence[Labelled], reference: dict[Labelled, Tensor]
) -> float:
    """How much more likely answers to other questions have become, in nats, summed over `items`.

    Its mean, where it is positive, estimates the divergence of the policy from the reference (section 4.1).
    """
    model.eval()
    log_probs = read_answers(model, features, [item.mismatched for item in items]).sums
    model.train()
    return float((log_probs - torch.stack([reference[item][1] for item in items])).sum())


@torch.no_grad()
def holdout_values(
    model: Loaded,
    features: ImageFeatures,
    items: Sequence[Labelled],
    reference: dict[Labelled, Tensor],
    preference: PreferenceSpec,
    control: Control,
) -> dict[str, float]:
    """Loss, margin and accuracy over answers that are never trained on."""
    groups = [[items[i] for i in g] for g in in_groups([i.example for i in items], EVALUATION_TOKENS)]
    drift = 0.0
    for group in groups:
        control.check()
        drift += divergence(model, features, group, reference)
    kl = max(0.0, drift / len(items))
    model.eval()
    totals: dict[str, float] = {}
    for group in groups:
        control.check()
        judged = judge(model, features, group, reference, kl, preference)
        for name, share in judged.shares_of(items).items():
            totals[name] = totals.get(name, 0.0) + share
    model.train()
    return {
        name: totals[name] for name in ("loss", "rewards/margins", "rewards/accuracies") if name in totals
    }
