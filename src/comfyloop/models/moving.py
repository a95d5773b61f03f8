"""Tensors moved from one memory to another: the same objects with the same bits, whoever holds them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from comfyloop.models import devices

OWN_MEMORY = ("cuda", "xpu")
"""Devices with a memory of their own; the others compute in the processor's."""


@torch.inference_mode(False)
@torch.no_grad()
def move(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Have tensors be on `device`. What shares memory shares it there, too."""
    for together in sharing(tensors):
        first = together[0]
        there = _room(first.untyped_storage().nbytes(), device, first.device)
        there.copy_(whole_memory(first))
        for tensor in together:
            lay(tensor, there)


def sharing(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Those that are parts of the same memory, together; without those that have none."""
    shared: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            shared.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    return list(shared.values())


def whole_memory(tensor: Tensor) -> Tensor:
    """All of the memory that a tensor is a part of, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def lay(tensor: Tensor, memory: Tensor) -> None:
    """Have a tensor be the same part of another memory."""
    place = torch.empty(0, dtype=tensor.dtype, device=memory.device)
    tensor.data = place.set_(
        memory.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def _room(size: int, device: torch.device, other: torch.device) -> Tensor:
    pinned = device.type == "cpu" and other.type in OWN_MEMORY
    try:
        return torch.empty(size, dtype=torch.uint8, device=device, pin_memory=pinned)
    except RuntimeError as error:
        if not pinned or devices.is_out_of_memory(error):
            raise
        return torch.empty(size, dtype=torch.uint8)  # what may be pinned has an end
