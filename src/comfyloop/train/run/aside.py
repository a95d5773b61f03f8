"""A run that is held gives its memory back, and goes on where it was, bit for bit.

What a run has on its device is many things' own: weights, gradients, the optimiser's averages, a teacher's, features.
All of them are tensors that this process can name, and each stays the object that it is; only its memory is elsewhere
for a while. Of a card with a memory of its own that is the processor's. Where both have one memory it is a file in the
run's directory. A held run stands between two micro-steps, so nothing that it still computes is among it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from comfyloop import platforms
from comfyloop.errors import StorageError
from comfyloop.models import devices
from comfyloop.models.devices import CPU
from comfyloop.models.moving import OWN_MEMORY, move, sharing, whole_memory
from comfyloop.train.run.directory import disk_error

BY_ITSELF = 3.0
"""Seconds on hold after which a run steps aside that has a card with a memory of its own."""
SMALL = 2**16
"""Bytes of what is not worth a place in a file."""
LOOK_SECONDS = 0.5


class _Part(NamedTuple):
    """Which part of its memory a tensor was."""

    tensor: Tensor
    offset: int
    size: torch.Size
    stride: tuple[int, ...]


class Aside:
    """What a run has on its device, there or elsewhere.

    Args:
        after: Seconds on hold after which it steps aside; 0: never; None: `BY_ITSELF` where the device has a
            memory of its own, else never.
        file: Where it waits where it has not.
        device: That it is trained on.
        warn: Told why it cannot step aside; then it keeps its memory.
    """

    def __init__(
        self,
        after: float | None,
        file: Path,
        device: torch.device | None = None,
        warn: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._device = device or devices.choose()
        self._own = self._device.type in OWN_MEMORY
        self.after = (BY_ITSELF if self._own else 0.0) if after is None else after
        self._file, self._warn = file, warn
        self._moved: list[Tensor] = []
        self._written: list[tuple[list[_Part], int]] = []
        self.is_aside = False

    def step_aside(self) -> int:
        """Give the memory back; how many bytes. 0: there is no place for it, and the run keeps it from now on."""
        groups = sharing(here(self._device))
        try:
            if self._own:
                self._moved = [tensor for group in groups for tensor in group]
                size = sum(map(_bytes, groups))
                move(self._moved, CPU)
            else:
                size = self._write([group for group in groups if _bytes(group) >= SMALL])
        except Exception as error:
            if not isinstance(error, StorageError) and not devices.is_out_of_memory(error):
                raise
            self.come_back()
            self.after = 0.0
            said = error.message if isinstance(error, StorageError) else str(error)
            self._warn(f"The run keeps its memory while it is held: {said}")
            return 0
        del groups
        self.is_aside = True
        gc.collect()
        devices.give_back(self._device)
        platforms.give_memory_back()
        return size

    def come_back(self, go_on: Callable[[], object] = lambda: None) -> None:
        """Have everything again, as soon as there is room: others may have taken it.

        Args:
            go_on: Called while it waits for room; may raise.
        """
        while True:
            try:
                move([t for t in self._moved if t.device.type == CPU.type], self._device)
                break
            except Exception as error:
                if not devices.is_out_of_memory(error):
                    raise
            devices.give_back(self._device)
            go_on()
            time.sleep(LOOK_SECONDS)
        self._read()
        self._moved, self.is_aside = [], False
        devices.give_back(self._device)  # the pinned memory in which they waited

    @torch.no_grad()
    def _write(self, groups: list[list[Tensor]]) -> int:
        size = 0
        try:
            with self._file.open("wb") as file:
                for group in groups:
                    memory = whole_memory(group[0]).cpu().numpy()
                    file.write(memory.data)
                    size += memory.nbytes
                    parts = [_Part(t, int(t.storage_offset()), t.size(), t.stride()) for t in group]
                    self._written.append((parts, memory.nbytes))
                    del memory
        except OSError as error:  # nothing has been let go yet
            self._written = []
            self._file.unlink(missing_ok=True)
            raise disk_error(self._file, error) from error
        for parts, _ in self._written:
            for part in parts:
                part.tensor.data = torch.empty(0, dtype=part.tensor.dtype, device=self._device)
        return size

    @torch.no_grad()
    def _read(self) -> None:
        if not self._written:
            return
        with self._file.open("rb") as file:
            for parts, size in self._written:
                memory = torch.from_numpy(np.fromfile(file, np.uint8, size)).to(self._device)
                for tensor, *shape in parts:
                    place = torch.empty(0, dtype=tensor.dtype, device=self._device)
                    tensor.data = place.set_(memory.untyped_storage(), *shape)
        self._written = []
        self._file.unlink()


def _bytes(group: list[Tensor]) -> int:
    return group[0].untyped_storage().nbytes()


def here(device: torch.device) -> list[Tensor]:
    """Every tensor of this process that is on `device`, with its gradient."""
    gc.unfreeze()  # what a fork of the warm trainer was given is among it
    found: dict[int, Tensor] = {}
    for thing in gc.get_objects():
        if not issubclass(type(thing), Tensor) or issubclass(type(thing), DTensor):
            continue
        for tensor in _with_gradient(thing):
            if tensor.device.type == device.type and tensor.layout is torch.strided:
                found[id(tensor)] = tensor
    return list(found.values())


def _with_gradient(tensor: Tensor) -> Iterator[Tensor]:
    if tensor.is_inference():  # may not be changed
        return
    yield tensor
    if tensor.is_leaf and tensor.grad is not None:
        yield tensor.grad
