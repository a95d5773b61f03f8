"""How many CPU threads a pass takes: a decode step, or one that reads texts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PROBE_EVERY = 32  # steps
PROBE_STEPS = 2


class StepThreads:
    """All threads, or one alone while others keep the cores busy; the answers are the same.

    A step is hundreds of products of some microseconds each. Threads that share them wait for one another after each
    one: on idle cores two take half the time of one, but a thread that has lost its core keeps all others waiting,
    and then one alone is the fastest. Now and then a few steps are taken the other way, and the faster way is kept.

    Args:
        most: What one step may take; also what is set between the steps.
        probe_every: Steps between two probes.
    """

    def __init__(self, most: int, probe_every: int = PROBE_EVERY) -> None:
        self.most, self.count, self._probe_every = most, most, probe_every
        self._usual: list[tuple[int, float]] = []  # rows and seconds of the last steps
        self._tried: list[float] = []
        self._until_probe = probe_every

    @property
    def next(self) -> int:
        """How many the next step takes: the usual count, or in a probe the other one."""
        return self._other() if self._until_probe <= 0 else self.count

    @contextmanager
    def step(self, rows: int) -> Iterator[None]:
        if self.most == 1:
            yield
            return
        torch.set_num_threads(self.next)
        began = time.perf_counter()
        try:
            yield
        finally:
            torch.set_num_threads(self.most)
        self.took(rows, time.perf_counter() - began)

    def took(self, rows: int, seconds: float) -> None:
        """Count a step; at the end of a probe keep the faster way."""
        self._until_probe -= 1
        if self._until_probe >= 0:
            self._usual = [*self._usual, (rows, seconds)][-PROBE_STEPS:]
            return
        if any(rows != of for of, _ in self._usual):  # steps of different sizes say nothing: try again later
            self._begin_again()
            return
        self._tried.append(seconds)
        if len(self._tried) == PROBE_STEPS:
            if min(self._tried) < min(usual for _, usual in self._usual):
                self.count = self._other()
            self._begin_again()

    def _begin_again(self) -> None:
        self._usual, self._tried, self._until_probe = [], [], self._probe_every

    def _other(self) -> int:
        return 1 if self.count > 1 else self.most
