"""A model's weights given back while nobody asks, and had again with the same bits.

The modules stay what they are, with all that hooks on to them; what they hold goes. Of a card with a memory of its own
it waits in the processor's, pinned, and a wake copies it back at the speed of the bus. Where processor and accelerator
share one memory there is no such place: the weights are dropped, and read anew from the files that they came from.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from comfyloop import platforms
from comfyloop.errors import ModelError
from comfyloop.models import devices
from comfyloop.models.devices import CPU
from comfyloop.models.moving import OWN_MEMORY, move

Level = Literal[1, 2]
"""vLLM's: 1 keeps the weights in the processor's memory, 2 does not keep them."""


class Weights:
    """Of one model.

    Args:
        read: Makes the model anew, as it was first loaded.
        folder: Where its files are.
    """

    def __init__(self, model: nn.Module, read: Callable[[], nn.Module], folder: Path) -> None:
        self._model, self._read, self._folder = model, read, folder
        self._device: torch.device = next(model.parameters()).device
        self._files = fingerprint(folder)
        self._moved: list[Tensor] | None = None  # what waits in the processor's memory
        self.given_back = False

    def give_back(self, level: Level = 1) -> None:
        """Nothing may refer to them but the model itself."""
        if level == 1 and self._device.type in OWN_MEMORY:
            tensors = [t for t in held(self._model) if t.device.type == self._device.type]
            try:
                move(tensors, CPU)
            except BaseException:
                move([t for t in tensors if t.device.type == "cpu"], self._device)
                raise
            self._moved = tensors
        else:
            _let_go(self._model)
        self.given_back = True
        gc.collect()
        devices.give_back(self._device)
        platforms.give_memory_back()

    def take_again(self) -> None:
        """Raises what torch raises where there is no room; then they are as far away as before.

        Raises:
            ModelError: The files are not those that they came from.
        """
        if self._moved is not None:
            try:
                move(self._moved, self._device)
            except BaseException:
                move([t for t in self._moved if t.device.type != "cpu"], CPU)
                raise
            self._moved = None
            devices.give_back(self._device)  # the pinned memory in which they waited
        else:
            if fingerprint(self._folder) != self._files:
                raise ModelError(
                    f"The files in {self._folder} have changed while the engine slept.",
                    "It starts anew, with the model that is there now.",
                )
            _put_in(self._model, self._read())
        self.given_back = False


def held(model: nn.Module) -> list[Tensor]:
    """Every tensor that a model is made of, once: weights, buffers, and the constants of those in four bits."""
    found: dict[int, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        found[id(tensor)] = tensor
        for constant in _constants(getattr(tensor, "quant_state", None)):
            found[id(constant)] = constant
    return list(found.values())


def _constants(state: Any) -> Iterator[Tensor]:
    for value in vars(state).values() if state is not None else ():
        if isinstance(value, Tensor):
            yield value
        elif type(value) is type(state):  # the constants are quantised themselves
            yield from _constants(value)


def _let_go(model: nn.Module) -> None:
    """Keep the shapes alone."""
    seen: dict[int, Tensor] = {}

    def shape(tensor: Tensor) -> Tensor:
        if id(tensor) not in seen:
            empty = torch.empty_like(tensor, device="meta")
            is_weight = isinstance(tensor, nn.Parameter)
            seen[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_weight else empty
        return seen[id(tensor)]

    with torch.inference_mode(False), torch.no_grad():
        for module in model.modules():
            own: dict[str, dict[str, Any]] = vars(module)
            for kept in (own["_parameters"], own["_buffers"]):
                for name, tensor in kept.items():
                    if tensor is not None:
                        kept[name] = shape(tensor)
            if "quant_state" in own:  # a layer in four bits, which takes its weight's when it is next used
                vars(module)["quant_state"] = None


def _put_in(model: nn.Module, fresh: nn.Module) -> None:
    """What another model of the same shape holds."""
    theirs = dict(fresh.named_modules())
    for name, module in model.named_modules():
        module._parameters.update(theirs[name]._parameters)
        module._buffers.update(theirs[name]._buffers)
        if hasattr(theirs[name], "quant_state"):
            module.quant_state = theirs[name].quant_state


def fingerprint(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Of the files that a model is read from, by which it is told that they are still the same."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".json"))
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
