"""Continues a run that is out of memory with smaller micro-batches."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

from comfyloop.errors import RunFailed
from comfyloop.models import devices
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.base import RunSpec

Spec = TypeVar("Spec", bound=RunSpec)


def within_memory(work: Callable[[Spec], None], spec: Spec, log: RunLog, hint: str) -> None:
    """Do `work` with a spec; if memory does not suffice, repeat it with a spec of the same steps that needs less
    memory.

    It resumes from the last checkpoint: the steps and their samples stay the same.

    Args:
        hint: What to set so that it would do, when nothing is left to make smaller.

    Raises:
        RunFailed: Not even one sample at a time finds room. Whatever else `work` raises goes on.
    """
    while True:
        try:
            work(spec)
            return
        except Exception as error:
            if not devices.is_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        # out of the handler, so that nothing of what failed is kept by its traceback
        less = spec.smaller() if spec.world_size == 1 else None
        if less is None:
            raise RunFailed(f"Memory does not suffice for this run, with {_at_a_time(spec)}: {reason}.", hint)
        log.warn(
            f"Memory did not suffice for {_at_a_time(spec)}, so the run goes on with {_at_a_time(less)}: the same "
            "steps, computed more slowly."
        )
        gc.collect()
        devices.give_back(devices.choose())
        spec = less


def _at_a_time(spec: RunSpec) -> str:
    size = spec.per_device_train_batch_size
    more = " and gradient checkpointing" if spec.gradient_checkpointing else ""
    return f"{size} sample{'s' if size > 1 else ''} at a time{more}"
