"""The training loop, the same for every recipe: the order of samples, resuming, checkpoints, the log.

A recipe iterates over the steps and computes the loss of each micro-batch::

    training = Training(directory, spec, log, control, updates, plan, fingerprint)
    for step in training.steps(look):
        for indices in step.micro_batches():
            step.backward(loss of these samples / number of samples in step.samples)
            step.add(loss=...)
        step.finish(answer_tokens)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from comfyloop.errors import RunFailed
from comfyloop.models import devices
from comfyloop.train.run.checkpoints import RandomState
from comfyloop.train.run.control import Cancelled, Control, Terminated
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.learnt import refuse_unlearnt
from comfyloop.train.run.log import RunLog
from comfyloop.train.run.plan import Plan
from comfyloop.train.run.schedule import learning_rate
from comfyloop.train.run.updates import OptimizerStep
from comfyloop.train.specs.base import RunSpec
from comfyloop.train.specs.text import TrainSpec

Look = Callable[[], dict[str, float]]
"""Measures the model on the hold-out: values for the log, `holdout_loss` among them."""


class Training:
    def __init__(
        self,
        directory: RunDirectory,
        spec: RunSpec,
        log: RunLog,
        control: Control,
        updates: OptimizerStep,
        plan: Plan,
        fingerprint: str,
    ) -> None:
        """Start the run from its newest valid checkpoint, or from the beginning if there is none.

        Args:
            plan: Which samples make which step.
            fingerprint: What a checkpoint depends on; one with another fingerprint is refused.
        """
        self.spec, self.log, self.control, self.updates = spec, log, control, updates
        self.checkpoints = directory.checkpoints
        self.fingerprint = fingerprint
        self.plan = plan
        self.look: Look | None = None
        self.best = _Best(spec.early_stopping_patience, updates)
        control.decide_together(updates.agree)
        self.began_at = updates.restore_checkpoint(self.checkpoints, fingerprint)
        self.worked = control.stopwatch()
        log.begin(self.began_at, self.plan.total_steps, *updates.model.count_parameters())

    def steps(self, look: Look | None) -> Iterator[Step]:
        """The remaining steps. `look` is called before the first, periodically, and at the end.

        Raises:
            RunFailed: After the last step: the loss of a text run did not fall.
        """
        self.look = look
        if self.began_at == 0 and look is not None:
            self.log.step(step=0, epoch=0.0, **look())
        self.updates.model.train()
        self.worked = self.control.stopwatch()
        for number in range(self.began_at, self.plan.total_steps):
            yield Step(self, number)
            if self.best.is_over:
                self.log.say(f"stopped at step {number + 1}: the hold-out no longer gets better")
                break
        self.best.put_back()
        if isinstance(self.spec, TrainSpec):  # the loss of pictures is of noise drawn anew each step
            lines = list(self.log.lines())
            losses = [line["loss"] for line in lines if line["loss"] is not None]
            held_out = [line["holdout_loss"] for line in lines if line["holdout_loss"] is not None]
            refuse_unlearnt(self.spec, losses, self.plan.steps_per_epoch, held_out)

    def save(self, step: int, random_state: RandomState) -> None:
        self.updates.save_checkpoint(self.checkpoints, step, random_state, self.fingerprint)


class _Best:
    """Early stopping: keeps the weights with the lowest hold-out loss. A resumed run starts over.

    Args:
        patience: Looks without a lower one after which the run is over; 0: nothing is kept or stopped.
    """

    def __init__(self, patience: int, updates: OptimizerStep) -> None:
        self._patience, self._updates = patience, updates
        self._loss, self._since = math.inf, 0
        self._weights: list[Tensor] = []

    def see(self, loss: float) -> None:
        if not self._patience:
            return
        if loss < self._loss:
            self._loss, self._since = loss, 0
            self._weights = [parameter.detach().clone() for _, parameter in self._updates.parameters]
        else:
            self._since += 1

    @property
    def is_over(self) -> bool:
        return bool(self._patience) and self._since >= self._patience

    def put_back(self) -> None:
        if self._since:
            for (_, parameter), best in zip(self._updates.parameters, self._weights, strict=True):
                parameter.data.copy_(best)
            self._updates.write_back()


class Step:
    """One optimiser step: the micro-batches first, then `finish`.

    Attributes:
        number: From 0.
        samples: Indices of all samples of this step, those of other processes too: what a mean is over.
        weight: Of the present micro-batch: 0 where it belongs to other processes and this one only keeps pace.
    """

    def __init__(self, training: Training, number: int) -> None:
        self._training = training
        self.number = number
        self._random_state = RandomState.now()
        self._worked = training.control.stopwatch()
        batches = training.plan.micro_batches(number)
        self.samples = [index for batch in batches for index in batch]
        self._mine = training.updates.share(batches)
        self._shares: dict[str, float] = {}
        self._rows: dict[str, float] = {}
        self._last = False
        self.weight = 1.0

    def check(self) -> None:
        """Return, or wait while the run is held; for work that a step does before its micro-batches.

        Raises:
            Cancelled, Terminated: The step is given up whole, with a checkpoint of what was before it.
        """
        try:
            self._training.control.check()
        except (Cancelled, Terminated):
            self._training.save(self.number, self._random_state)
            raise

    def micro_batches(self) -> Iterator[list[int]]:
        """Indices of the samples of each micro-batch that this process computes.

        Raises:
            Cancelled, Terminated: As `check`.
        """
        for number, share in enumerate(self._mine, start=1):
            self.check()
            self.weight, self._last = share.weight, number == len(self._mine)
            yield share.indices

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's share of the loss."""
        self._training.updates.backward(self.weight * loss, last=self._last)

    def add(self, **shares: float) -> None:
        """What a micro-batch adds to the step's values for the log: `loss`, and others."""
        for name, share in shares.items():
            self._shares[name] = self._shares.get(name, 0.0) + self.weight * share

    def saw(self, losses: dict[str, float]) -> None:
        """The loss of each sample of a micro-batch, by its id; kept beside the log."""
        self._rows |= losses

    def total(self, share: float) -> float:
        """A value added up over all processes, of which `share` is this one's."""
        return self._training.updates.total({"value": share})["value"]

    def finish(self, answer_tokens: int | None = None, **extra_values: float) -> None:
        """Change the weights, write a line of the log, and a checkpoint when it is time.

        Args:
            answer_tokens: In all samples of the step, for the log's rate; pictures have none.
            extra_values: Values for the log that are not made of shares.

        Raises:
            RunFailed: The loss is no longer a number.
        """
        training, spec = self._training, self._training.spec
        values = training.updates.total(self._shares) | extra_values
        now, total = self.number + 1, training.plan.total_steps
        if not math.isfinite(values["loss"]):
            raise RunFailed(
                f"The loss of step {now} is {values['loss']}: training has diverged.",
                f"Lower learning_rate (now {spec.learning_rate:g}) and start a new run.",
            )
        rate = learning_rate(self.number, total, spec)
        norm = training.updates.update(rate)
        seconds = self._worked()
        if training.look is not None and (now % spec.eval_steps == 0 or now == total):
            holdout_values = training.look()
            training.best.see(holdout_values["holdout_loss"])
            values |= holdout_values
        training.log.step(
            step=now,
            epoch=round(now / training.plan.steps_per_epoch, 4),
            grad_norm=norm if math.isfinite(norm) else None,  # a step that overflowed was left out
            learning_rate=rate,
            samples_per_s=len(self.samples) / seconds,
            answer_tokens_per_s=answer_tokens / seconds if answer_tokens is not None else None,
            padded_share=0.0,  # packed rows have no padding, and pictures of one size none either
            eta_seconds=training.worked() / (now - training.began_at) * (total - now),
            **values,
        )
        training.log.takes(devices.most_taken(training.updates.model.device))
        if self._rows:
            training.log.rows(now, self._rows)
        # After the line of the log: a kill between the two drops the line with the step, not the line alone.
        if now % spec.save_steps == 0 and now < total:
            training.save(now, RandomState.now())
