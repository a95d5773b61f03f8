"""Starts the ranks of a run on this machine and ensures that they end together."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

from comfyloop import platforms
from comfyloop.errors import InvalidInput
from comfyloop.train.parallel.ranks import why_lost
from comfyloop.train.prefork.forking import end_with, settle
from comfyloop.train.run.directory import LOCK_VARIABLE, RunDirectory, TrainState
from comfyloop.train.specs.base import RunSpec

GRACE_SECONDS = 10.0
"""For the other ranks to end by themselves once one has ended."""


def launch(
    directory: RunDirectory,
    spec: RunSpec,
    lock: int,
    load: Callable[[bool], None],
    work: Callable[[], int],
) -> int:
    """Execute the run of a directory with spec.world_size ranks, forked from this process; the exit code of the
    run.

    The status is written by rank 0, except for what it cannot know: that a rank was killed, or why another rank
    failed.

    Args:
        load: Imports what all ranks need, those of quantised weights too where it is told so.
        work: Does one rank's part, as its environment says which; its exit code.
    """
    if not platforms.can_fork():
        raise InvalidInput(
            f"This run asks for {spec.world_size} processes, which are started together under Linux only.",
            "Set world_size (train_processes in the settings) to 1, or start the run by torchrun.",
        )
    for number in range(1, spec.world_size):  # what they said in an earlier try
        (directory.path / "ranks" / str(number) / "status.json").unlink(missing_ok=True)
    if "torch" not in sys.modules:  # else this is a fork of the warm trainer already
        load(getattr(spec, "quant_method", None) is not None)
        settle()
    port = _free_port()
    ranks = [_rank(spec, number, lock, port, work) for number in range(spec.world_size)]

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            rank.signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    while all(rank.poll() is None for rank in ranks):
        time.sleep(0.05)
    deadline = time.monotonic() + GRACE_SECONDS
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    codes = [rank.poll() for rank in ranks]
    for rank in ranks:
        rank.kill()
    return _last_word(directory, spec, codes)


def _rank(spec: RunSpec, number: int, lock: int, port: int, work: Callable[[], int]) -> platforms.forks.Fork:
    """One rank as a fork of this process, which has imported the libraries for all of them."""
    variables = {
        "RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": spec.world_size, "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, LOCK_VARIABLE: lock,
    }  # fmt: skip

    def rank() -> None:
        os.environ.update({name: str(value) for name, value in variables.items()})
        end_with(work)

    return platforms.forks.Fork(rank)


def _last_word(directory: RunDirectory, spec: RunSpec, codes: list[int | None]) -> int:
    """The exit code of the run; also writes its status if rank 0 could not.

    Args:
        codes: Exit codes; negative: killed by that signal; None: had to be ended, as the others were gone.
    """
    status = directory.read_status()
    killed = next((number for number, code in enumerate(codes) if code is not None and code < 0), None)
    if killed is not None and status.state not in {TrainState.SUCCEEDED, TrainState.CANCELLED}:
        name = platforms.signal_name(codes[killed] or 0)
        error = (
            f"Rank {killed} of {spec.world_size} was killed ({name}) at step {status.step} of "
            f"{status.total_steps}, and the others ended with it. Start the run again: it goes on from its "
            "last checkpoint."
        )
        # Not an end: what was killed can go on, so whoever looks finds the run dead, not failed.
        directory.write_status(status.model_copy(update={"state": TrainState.RUNNING, "error": error}))
        print(error, flush=True)
        return 1
    if not status.state.ended and (error := why_lost(directory, spec.world_size)):
        directory.write_status(status.model_copy(update={"state": TrainState.FAILED, "error": error}))
        print(error, flush=True)
    return codes[0] if codes[0] is not None else 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
