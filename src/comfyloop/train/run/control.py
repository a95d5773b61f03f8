"""Control of a training process by a person or the service: hold, cancel, terminate, limit memory."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from enum import IntEnum
from types import FrameType
from typing import Protocol

import psutil

from comfyloop import platforms
from comfyloop.train.run.directory import RunDirectory

MEMORY_EXIT_CODE = 21
FIRST_TO_GO = 500
"""How much sooner than others a trainer is ended when memory runs out, of 1000."""


class Cancelled(Exception):
    """The file `cancel` is there."""


class Terminated(Exception):
    """SIGTERM or SIGINT: the machine or the service shuts down; the run can be resumed later."""


class _Wish(IntEnum):
    """Requests to the trainer; the greatest one takes precedence."""

    GO_ON = 0
    HOLD = 1
    CANCEL = 2
    TERMINATE = 3


class StepsAside(Protocol):
    """What gives a run's memory back while it is held (`aside.py`)."""

    after: float
    """Seconds on hold after which it does; 0: never."""
    is_aside: bool

    def step_aside(self) -> int: ...

    def come_back(self, go_on: Callable[[], object]) -> None: ...


class Control:
    """Checked between micro-steps: returns, waits while the run is held, or raises.

    Args:
        leads: Look for the file `cancel`: one of several processes does, and tells the others.
    """

    def __init__(self, run: RunDirectory, on_hold: Callable[[bool], None], *, leads: bool = True) -> None:
        self._run = run
        self._on_hold = on_hold
        self._leads = leads
        self._signalled = False
        self._agree: Callable[[int], int] | None = None
        self.held_seconds = 0.0
        self._aside: StepsAside | None = None
        self._on_aside: Callable[[int, float], None] = lambda size, seconds: None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signal)

    def decide_together(self, agree: Callable[[int], int]) -> None:
        """From now on every process of the run checks at the same points, and all follow a request to any of them.

        Args:
            agree: The greatest of the numbers that the processes call it with.
        """
        self._agree = agree

    def give_memory_back(self, aside: StepsAside, on_aside: Callable[[int, float], None]) -> None:
        """From now on a hold that lasts has the run step aside; `on_aside` is told how many bytes it has given back
        (0: it has them again), and the seconds that it took."""
        self._aside, self._on_aside = aside, on_aside

    def check(self) -> None:
        """Return, or wait while the file `hold` exists. Raises Cancelled or Terminated."""
        if self._wish() is not _Wish.HOLD:
            return
        began = time.monotonic()
        self._on_hold(True)
        try:
            while self._wish() is _Wish.HOLD:
                self._step_aside(time.monotonic() - began)
                time.sleep(0.1)
        finally:
            if self._aside is not None and self._aside.is_aside:
                back = time.monotonic()
                self._aside.come_back(self._wish)
                self._on_aside(0, time.monotonic() - back)
        self._on_hold(False)
        self.held_seconds += time.monotonic() - began

    def _step_aside(self, held: float) -> None:
        aside = self._aside
        if aside is None or aside.is_aside or not aside.after:
            return
        if held >= aside.after or self._run.aside_file.exists():
            began = time.monotonic()
            if size := aside.step_aside():
                self._on_aside(size, time.monotonic() - began)

    def stopwatch(self) -> Callable[[], float]:
        """A function that returns the seconds since this call, without time on hold."""
        began, held_before = time.monotonic(), self.held_seconds
        return lambda: time.monotonic() - began - (self.held_seconds - held_before)

    def _wish(self) -> _Wish:
        wish = _Wish.GO_ON
        if self._signalled:
            wish = _Wish.TERMINATE
        elif self._leads and self._run.cancel_file.exists():
            wish = _Wish.CANCEL
        elif self._run.hold_file.exists():
            wish = _Wish.HOLD
        if self._agree is not None:
            wish = _Wish(self._agree(wish))
        if wish is _Wish.CANCEL:
            raise Cancelled
        if wish is _Wish.TERMINATE:
            raise Terminated
        return wish

    def _signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True


def use_threads(threads: int) -> int:
    """Set the number of CPU threads; 0: all cores this process may use. Best before torch is imported."""
    count = threads or platforms.cores()
    os.environ["OMP_NUM_THREADS"] = str(count)
    os.environ["MKL_NUM_THREADS"] = str(count)
    # Threads that have nothing to do sleep. Spinning ones, the default, stall each other as soon as
    # anything else wants the cores: measured on two busy cores, 22 s a step instead of 1.9 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if (torch := sys.modules.get("torch")) is not None:  # in a fork of the warm trainer
        torch.set_num_threads(count)
    return count


def ask_for_large_pages(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a training process to be started, so that GNU's allocator asks for pages of 2 MiB.

    A step allocates and frees gigabytes. With pages of 4 KiB the first step alone spent a second on 130,000 page
    faults (SmolLM2-135M); with large pages it takes 400 faults and no more memory.
    """
    tunables = environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" not in tunables:
        tunables = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
    return {**environ, "GLIBC_TUNABLES": tunables}


def watch_memory(limit_gb: float, on_exceeded: Callable[[str], None]) -> None:
    """Terminate this process with an error message when its resident memory exceeds the limit.

    It polls instead of using a kernel limit: RLIMIT_AS counts address space, of which torch reserves many times
    what it uses, and control groups are not writable for an ordinary user.
    """
    if limit_gb <= 0:
        return
    limit = limit_gb * 2**30
    process = psutil.Process()

    def watch() -> None:
        while True:
            rss = process.memory_info().rss
            if rss > limit:
                on_exceeded(
                    f"The training process used {rss / 2**30:.1f} GiB of memory, more than its limit of "
                    f"{limit_gb:g} GiB. Raise memory_gb (train_memory_gb in the settings), lower "
                    "per_device_train_batch_size or max_pixels, or set gradient_checkpointing."
                )
                os._exit(MEMORY_EXIT_CODE)
            time.sleep(0.25)

    threading.Thread(target=watch, name="memory watch", daemon=True).start()
