"""Out of memory is no end: the run goes on with less at a time, and its steps stay the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from comfyloop.errors import RunFailed
from comfyloop.models import devices
from comfyloop.train.data.reading import fingerprint
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.run.plan import Plan
from comfyloop.train.run.within_memory import within_memory
from comfyloop.train.specs.text import TrainSpec

SPEC = TrainSpec(
    model="a model", train="train.jsonl", per_device_train_batch_size=6, gradient_accumulation_steps=2
)


def takes_all_memory() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def try_with(tmp_path: Path, fits: TrainSpec | None) -> tuple[list[TrainSpec], RunLog]:
    """A run that fits when it is told as `fits` says, and never for None."""
    tried: list[TrainSpec] = []
    log = RunLog(RunDirectory(tmp_path))

    def work(spec: TrainSpec) -> None:
        tried.append(spec)
        if spec != fits:
            takes_all_memory()

    within_memory(work, SPEC, log, "Buy a larger one.")
    return tried, log


def test_what_the_allocator_says_is_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        takes_all_memory()
    assert devices.is_out_of_memory(raised.value)
    assert devices.is_out_of_memory(MemoryError())
    assert devices.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert devices.is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 5.2 GB)"))
    assert not devices.is_out_of_memory(RuntimeError("The size of tensor a (3) must match"))
    assert not devices.is_out_of_memory(ValueError("out of memory"))


def test_it_goes_on_with_fewer_samples_at_a_time_and_says_so(tmp_path: Path) -> None:
    halved = SPEC.smaller()
    tried, log = try_with(tmp_path, halved)
    assert [(s.per_device_train_batch_size, s.gradient_accumulation_steps) for s in tried] == [(6, 2), (3, 4)]
    (said,) = log.status.warnings
    assert said == (
        "Memory did not suffice for 6 samples at a time, so the run goes on with 3 samples at a time: the same "
        "steps, computed more slowly."
    )


def test_when_nothing_is_left_to_make_smaller_a_sentence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="with 1 sample at a time and gradient checkpointing") as raised:
        try_with(tmp_path, None)
    assert raised.value.hint == "Buy a larger one."


def test_other_faults_are_no_reason_to_try_again(tmp_path: Path) -> None:
    tried: list[TrainSpec] = []

    def work(spec: TrainSpec) -> None:
        tried.append(spec)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        within_memory(work, SPEC, RunLog(RunDirectory(tmp_path)), "")
    assert tried == [SPEC]


def test_a_smaller_run_takes_the_same_steps_and_goes_on_from_the_same_checkpoints() -> None:
    less, specs = SPEC, [SPEC]
    while (smaller := less.smaller()) is not None:
        specs.append(less := smaller)
    assert less.per_device_train_batch_size == 1 and less.gradient_checkpointing
    plans = [Plan.of(spec, 30) for spec in specs]
    assert len({plan.total_steps for plan in plans}) == 1
    for step in range(plans[0].total_steps):
        assert len({tuple(i for b in plan.micro_batches(step) for i in b) for plan in plans}) == 1
    assert len({fingerprint(spec, []) for spec in specs}) == 1
    other = SPEC.model_copy(update={"gradient_accumulation_steps": 3})
    assert fingerprint(other, []) != fingerprint(SPEC, [])
