"""Supervised fine-tuning: a LoRA learns to write the corrected answers. Reads top to bottom."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comfyloop.errors import RunFailed
from comfyloop.train import checkpoints
from comfyloop.train.adapters import save_adapter
from comfyloop.train.batches import Plan, by_length, pack
from comfyloop.train.checkpoints import RandomState
from comfyloop.train.control import Cancelled, Control, Terminated
from comfyloop.train.encode import Encoder, Example, encode_rows
from comfyloop.train.features import ImageFeatures
from comfyloop.train.log import RunLog
from comfyloop.train.losses import answer_cross_entropy
from comfyloop.train.models import Loaded, describe, load
from comfyloop.train.rows import read_rows, refuse_or_skip
from comfyloop.train.schedule import learning_rate
from comfyloop.train.spec import TrainSpec
from comfyloop.train.status import RunDirectory

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
    parameters = model.trainable
    optimizer = torch.optim.AdamW(
        [p for _, p in parameters], lr=spec.learning_rate, weight_decay=spec.weight_decay
    )
    control.check()

    log.phase("looking at the images")
    for example in (*train, *holdout):
        if example.images:
            features.of(example)
            control.check()

    plan = Plan(
        samples=len(train),
        batch_size=spec.per_device_train_batch_size,
        accumulation=spec.gradient_accumulation_steps,
        epochs=spec.epochs,
        max_steps=spec.max_steps,
        seed=spec.seed,
    )
    total = plan.total_steps
    fingerprint = _fingerprint(spec, train)
    done = checkpoints.restore_newest(directory.checkpoints, parameters, optimizer, fingerprint)
    log.begin(
        done,
        total,
        trainable=sum(p.numel() for _, p in parameters),
        total=sum(p.numel() for p in model.peft.parameters()),
    )
    if done == 0 and holdout:
        log.step(step=0, epoch=0.0, holdout_loss=holdout_loss(model, features, holdout, control))

    model.train()
    began, began_at = time.monotonic(), done
    for step in range(done, total):
        step_began, held_before = time.monotonic(), control.held_seconds
        random_state = RandomState.now()
        rate = learning_rate(step, total, spec)
        for group in optimizer.param_groups:
            group["lr"] = rate

        micro_batches = [[train[i] for i in indices] for indices in plan.micro_batches(step)]
        answer_tokens = sum(example.answer.numel() for batch in micro_batches for example in batch)
        loss = right = 0.0
        try:
            for batch in micro_batches:
                control.check()
                outcome = answer_loss(model, features, batch)
                (outcome.total / answer_tokens).backward()  # type: ignore[no-untyped-call]
                loss += float(outcome.total.detach()) / answer_tokens
                right += float(outcome.right)
        except (Cancelled, Terminated):
            # The step is given up whole: nothing of it has reached the weights.
            checkpoints.save(directory.checkpoints, step, parameters, optimizer, random_state, fingerprint)
            raise
        if not math.isfinite(loss):
            raise RunFailed(
                f"The loss of step {step + 1} is {loss}: training has diverged.",
                f"Lower learning_rate (now {spec.learning_rate:g}) and start a new run.",
            )
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in parameters], spec.max_grad_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        now = step + 1
        seconds = time.monotonic() - step_began - (control.held_seconds - held_before)
        look = bool(holdout) and (now % spec.eval_steps == 0 or now == total)
        held_out = holdout_loss(model, features, holdout, control) if look else None
        if now % spec.save_steps == 0 and now < total:
            checkpoints.save(
                directory.checkpoints, now, parameters, optimizer, RandomState.now(), fingerprint
            )
        log.step(
            step=now,
            epoch=round(now / plan.steps_per_epoch, 4),
            loss=loss,
            answer_token_accuracy=right / answer_tokens,
            grad_norm=float(norm),
            learning_rate=rate,
            samples_per_s=sum(map(len, micro_batches)) / seconds,
            answer_tokens_per_s=answer_tokens / seconds,
            padded_share=0.0,  # packed rows have no padding
            holdout_loss=held_out,
            eta_seconds=(time.monotonic() - began - control.held_seconds) / (now - began_at) * (total - now),
        )

    log.phase("saving the adapter")
    save_adapter(model.peft, directory.adapter)


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


def read_examples(
    directory: RunDirectory, file: str, encoder: Encoder, spec: TrainSpec, log: RunLog, control: Control
) -> list[Example]:
    """All rows of a file as examples. Raises DataError that names every line that cannot be one."""
    path = directory.resolve(file)
    rows, bad = read_rows(path)
    examples = encode_rows(encoder, rows, bad, each=control.check)
    refuse_or_skip(path, len(examples), bad, spec.skip_bad, spec.max_bad_share)
    for row in bad:
        log.say(f"left out {path.name}:{row.line} (sample {row.id}): {row.reason}")
    log.say(f"{path.name}: {len(examples)} samples, {sum(map(len, examples))} tokens")
    return examples


def _fingerprint(spec: TrainSpec, examples: Sequence[Example]) -> str:
    """What a checkpoint depends on: the data, and every value that moves the loss."""
    told = spec.model_dump_json(
        exclude={"train", "holdout", "threads", "memory_gb", "nice", "save_steps", "eval_steps"}
    )
    digest = hashlib.sha256(told.encode())
    for example in examples:
        digest.update(example.input_ids.numpy().tobytes() + example.answer.numpy().tobytes())
    return digest.hexdigest()
