"""The processes (ranks) of one run: their identity, how they connect, and how they agree.

The environment variables are torchrun's, so `torchrun` on several machines and `launch` on this one are equivalent.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from comfyloop.errors import InvalidInput
from comfyloop.train.run.directory import RunDirectory, TrainState
from comfyloop.train.specs.base import RunSpec

LEADER_SECONDS = 30
"""How long a rank that must refuse the run lets rank 0 refuse it first."""

ACCELERATORS = {"cuda": "nccl", "xpu": "xccl"}
"""What ranks talk through, by the kind of device that they compute on."""


@dataclass(frozen=True)
class Rank:
    """Which process of a run this is. Rank 0 writes the status, the log and what is left behind."""

    number: int = 0
    world_size: int = 1
    local: int = 0  # among those of this machine: which GPU is its own
    launched: bool = False  # by torchrun, by `launch`, by a Ray driver

    @property
    def leads(self) -> bool:
        return self.number == 0

    @classmethod
    def here(cls) -> Rank:
        """The rank from the environment; the only rank if it is not set."""
        try:
            return cls(
                int(os.environ["RANK"]),
                int(os.environ["WORLD_SIZE"]),
                int(os.environ.get("LOCAL_RANK", "0")),
                True,
            )
        except KeyError:
            return cls()

    def log_directory(self, run: RunDirectory) -> RunDirectory:
        """Where this rank writes its status and log: the run itself, or `ranks/N` in it."""
        if self.leads:
            return run
        own = RunDirectory(run.path / "ranks" / str(self.number))
        own.path.mkdir(parents=True, exist_ok=True)
        return own


class RankLost(Exception):
    """Another process of the run is gone, so this one cannot continue. The run can be resumed from its last
    checkpoint."""


def refuse_other_size(world_size: int, rank: Rank) -> None:
    """Raises InvalidInput when there are more or fewer processes than the spec says.

    Torchrun ends all ranks as soon as one has failed: the others wait, so that rank 0 can write down why.
    """
    if rank.world_size != world_size:
        if not rank.leads:
            time.sleep(LEADER_SECONDS)
        raise InvalidInput(
            f"The run is to be trained by {world_size} processes and was started with {rank.world_size}.",
            f"Start it with --nproc-per-node (times --nnodes) = {world_size}, or set world_size in spec.json.",
        )


def join(spec: RunSpec, rank: Rank) -> None:
    """Connect to the other ranks, and check that their number is correct and that they can communicate.

    Raises:
        RankLost: Not all came within spec.rank_timeout seconds.
    """
    import torch
    import torch.distributed as dist

    from comfyloop.models import devices

    backend = "cpu:gloo"
    device = devices.choose()
    if device.type in ACCELERATORS:
        torch.accelerator.set_device_index(rank.local)
        backend += f",{device.type}:{ACCELERATORS[device.type]}"
    with lost_ranks():
        dist.init_process_group(backend, timeout=timedelta(seconds=spec.rank_timeout))
        count = torch.ones((), dtype=torch.int64)
        dist.all_reduce(count)
    if int(count) != spec.world_size:
        raise InvalidInput(
            f"{int(count)} processes answered where {spec.world_size} should.", "Start the run again."
        )


def agree(code: int) -> int:
    """The maximum over all ranks. All ranks must call this at the same point."""
    import torch
    import torch.distributed as dist

    greatest = torch.tensor(code, dtype=torch.int64)
    with lost_ranks():
        dist.all_reduce(greatest, dist.ReduceOp.MAX)
    return int(greatest)


def leave() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class lost_ranks:  # noqa: N801, a context manager is read as a verb
    """Turns what torch.distributed raises when another rank is gone into RankLost."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError) and is_loss(error):
            raise RankLost(first_line(error)) from error


_SIGNS = ("connection closed by peer", "connection reset", "broken pipe", "timed out", "timeout", "connect() ",
          "socket", "nccl", "gloo", "wait_for_connection", "store")  # fmt: skip


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another rank does not answer."""
    import torch.distributed as dist

    if isinstance(error, RankLost | dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def why_lost(run: RunDirectory, world_size: int) -> str:
    """The other ranks' last error messages; empty if there are none."""
    for number in range(1, world_size):
        status = RunDirectory(Path(run.path) / "ranks" / str(number)).read_status()
        if status.state is TrainState.FAILED:
            return f"Rank {number} of {world_size} failed: {status.error}"
    return ""
