"""On-policy self-distillation from edits: the model learns from itself given the edits (Shenfeld et al. 2026).

Reads top to bottom. The teacher is the same model with the edited answer in its context, the student the model
without it. The student samples an answer and, at each of its tokens, learns the teacher's next-token distribution:
KL(teacher || student) over the teacher's most likely tokens. The paper states the other direction; its published
code minimises this one. The model learns only what it would say itself, so it forgets less; but it learns only what
seeing the edit changes, so a model that is too small to use an example learns little. Replay is as in `sft`.
"""

from __future__ import annotations

import json

import torch

from comfyloop.train.data.examples import Example
from comfyloop.train.data.reading import fingerprint, read_demonstrated, read_examples
from comfyloop.train.parallel import make_updates
from comfyloop.train.recipes.sft import answer_loss, holdout_loss
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory, write_atomically
from comfyloop.train.run.log import RunLog
from comfyloop.train.run.plan import Plan
from comfyloop.train.run.training import Training
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.forward import prepare
from comfyloop.train.text.models import describe, load
from comfyloop.train.text.replay import hold_to_base
from comfyloop.train.text.sampled import Sampled
from comfyloop.train.text.teacher import Teacher, helped


def run(directory: RunDirectory, spec: TrainSpec, log: RunLog, control: Control) -> None:
    """Train as `spec` says. Leaves, and raises, what the recipe `sft` does."""
    torch.manual_seed(spec.seed)
    options = spec.distillation

    log.phase("reading the data")
    description = describe(spec.model, spec.rope_scaling)
    encoder = description.encoder(spec)
    items = read_demonstrated(directory, spec.train, encoder, spec, log, control)
    holdout = read_examples(directory, spec.holdout, encoder, spec, log, control) if spec.holdout else []
    train = [item.example for item in items]
    teachers = [item.teacher for item in items]
    every = [*train, *(teacher for teacher in teachers if teacher is not None)]

    log.phase("loading the model")
    parent = directory.resolve(spec.adapter.init_from) if spec.adapter.init_from else None
    model = load(spec, description, parent)
    control.check()
    features = prepare(model, spec, [*every, *holdout], log, control)
    plan = Plan.of(spec, len(train), [example.part for example in train])
    mark = fingerprint(spec, every)
    if spec.replay_kl:
        train = hold_to_base(model, features, train, spec, log, control)
    tell_of_teacher(log, helped(model, features, items, control))

    def look() -> dict[str, float]:
        return {"holdout_loss": holdout_loss(model, features, holdout, control)}

    updates = make_updates(model, spec)
    teacher = Teacher(model, updates, options.teacher_update_rate)
    training = Training(directory, spec, log, control, updates, plan, mark)
    prompts = [
        None if demonstration is None else example
        for example, demonstration in zip(train, teachers, strict=True)
    ]
    room = [
        encoder.max_positions - prompt_end(demonstration or own)
        for own, demonstration in zip(train, teachers, strict=True)
    ]
    sampled = Sampled(directory, model, encoder, plan, prompts, room, options, mark)
    last_seen: dict[str, float] = {}
    for step in training.steps(look if holdout else None):
        answers = sampled.of(step.number, step.check)
        students = {i: encoder.continued(train[i], tokens) for i, tokens in answers.items()}
        answer_tokens = sum(students.get(i, train[i]).answer.numel() for i in step.samples)
        for indices in step.micro_batches():
            taught_rows = [i for i in indices if i in students]
            if taught_rows:
                demonstrations = [encoder.continued(_shown(teachers[i]), answers[i]) for i in taught_rows]
                targets = teacher.teach(
                    features, demonstrations, [students[i] for i in taught_rows], options.distillation_topk
                )
                students |= dict(zip(taught_rows, targets, strict=True))
            batch = [students.get(i, train[i]) for i in indices]
            outcome = answer_loss(model, features, batch, spec.replay_kl)
            step.backward(outcome.total / answer_tokens)
            step.add(
                loss=float(outcome.total.detach()) / answer_tokens,
                answer_token_accuracy=float(outcome.right) / answer_tokens,
            )
            seen = {train[i].id: loss for i, loss in zip(indices, outcome.means, strict=True)}
            step.saw(seen)
            last_seen |= seen
        teacher.follow()
        step.finish(answer_tokens)

    log.phase("saving the result")
    if last_seen:
        write_atomically(directory.row_losses, json.dumps(last_seen).encode())
    updates.save_result(directory.model if model.peft is None else directory.adapter)


def tell_of_teacher(log: RunLog, means: tuple[float, float] | None) -> None:
    """Log how much more likely the model finds the wanted answers after it was shown them."""
    if means is None:
        return
    alone, with_answer = means
    log.say(
        f"the teacher: wanted answers at {alone:.2f} nats a token, {with_answer:.2f} once it was shown them"
    )
    if with_answer <= alone:
        log.warn(
            f"Shown the wanted answers, the model finds them no likelier ({alone:.2f} -> {with_answer:.2f} nats a "
            "token): it has nothing to teach itself. Set recipe = sft, or take a larger model."
        )


def prompt_end(example: Example) -> int:
    """The position at which its answer begins."""
    return int(example.positions[..., int(example.answer[0])].max())


def _shown(teacher: Example | None) -> Example:
    assert teacher is not None
    return teacher
