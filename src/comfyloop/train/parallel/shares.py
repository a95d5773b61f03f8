"""Common parts of distributed training: the assignment of samples, and sums over all processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from comfyloop.train.parallel.ranks import agree, lost_ranks
from comfyloop.train.run import checkpoints
from comfyloop.train.run.updates import OptimizerStep, Share
from comfyloop.train.text.models import Loaded


def share(micro_batches: list[list[int]], *, one_by_one: bool) -> list[Share]:
    """Every world_size-th sample of each micro-batch, beginning with this rank's number.

    All ranks must run the model equally often, or they would deadlock: if a micro-batch has fewer samples than
    there are ranks, the other ranks compute one of its samples with weight 0.

    Args:
        one_by_one: Each sample goes through the model by itself, so the ranks must have equally many.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    if one_by_one:
        micro_batches = [
            indices[i : i + size] for indices in micro_batches for i in range(0, len(indices), size)
        ]
    shares = []
    for indices in micro_batches:
        mine = indices[rank::size]
        shares.append(Share(mine) if mine else Share(indices[:1], weight=0.0))
    return shares


def total(values: dict[str, float]) -> dict[str, float]:
    """Each value added up over all ranks."""
    names = sorted(values)
    sums = torch.tensor([values[name] for name in names], dtype=torch.float64)
    with lost_ranks():
        dist.all_reduce(sums)
    return dict(zip(names, sums.tolist(), strict=True))


class SharedOptimizerStep(OptimizerStep):
    """Updates by several ranks, each of which computes its share of every step."""

    loaded: Loaded

    def share(self, micro_batches: list[list[int]]) -> list[Share]:
        return share(micro_batches, one_by_one=bool(self.loaded.alone))

    def agree(self, wish: int) -> int:
        return agree(wish)

    def total(self, values: dict[str, float]) -> dict[str, float]:
        return total(values)


def save_together(folder: Path, step: int, fingerprint: str, write: Callable[[Path], None]) -> None:
    """A checkpoint to which each rank adds its files; rank 0 begins and commits it."""
    leads = dist.get_rank() == 0
    if leads:
        checkpoints.begin(folder, step)
    agree(0)
    making = folder / f".step-{step}.making"
    write(making)
    agree(0)
    if leads:
        checkpoints.commit(making, folder, step, fingerprint, dist.get_world_size())
    agree(0)


def newest_together(folder: Path, fingerprint: str) -> int:
    """The step of the checkpoint that rank 0 finds newest and valid, 0 when there is none."""
    step = checkpoints.newest(folder, fingerprint, dist.get_world_size()) if dist.get_rank() == 0 else 0
    return agree(step)


def rank_suffix() -> str:
    return f"-rank{dist.get_rank()}"


def full(tensor: Tensor) -> Tensor:
    """A sharded tensor put together on every rank; a plain one as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
