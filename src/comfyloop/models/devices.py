"""Selects the device: the accelerator that this build of torch supports (CUDA, ROCm, Metal, XPU), else the CPU; its
memory, and the precisions that it supports in hardware."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import psutil
import torch

from comfyloop.errors import ModelError
from comfyloop.models.memory import Machine

CPU = torch.device("cpu")

HALF = torch.float16
BRAIN = torch.bfloat16

_ROCM_BFLOAT16 = re.compile(r"gfx(90[8a]|94|95|11|12)")
"""AMD's chips that multiply bfloat16: CDNA, and RDNA from its third generation."""


@dataclass(frozen=True)
class Memory:
    """Bytes. On a Mac the CPU and its GPU share them."""

    total: int
    free: int


def choose(name: str = "auto") -> torch.device:
    """The accelerator, else the CPU; or the requested device: cpu, cuda, cuda:1, mps, xpu.

    Raises:
        ModelError: There is none of that name.
    """
    best = torch.accelerator.current_accelerator(check_available=True) or CPU
    if name == "auto":
        return best
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"{name!r} is no device.", "Use auto, cpu, cuda, cuda:1, mps or xpu.") from None
    count = 1 if device.type == "cpu" else torch.accelerator.device_count() if device.type == best.type else 0
    if (device.index or 0) >= count:
        devices = (
            "cpu" if best == CPU else f"cpu and {best.type} (0 to {torch.accelerator.device_count() - 1})"
        )
        raise ModelError(f"This machine, or its build of torch, has no {name}.", f"There is {devices}.")
    return device


def name(device: torch.device) -> str:
    """What a person calls it."""
    if device.type in ("cuda", "xpu"):
        return str(_module(device).get_device_name(device))
    return {"cpu": "the processor", "mps": "Apple's GPU"}.get(device.type, device.type)


def native(device: torch.device) -> tuple[torch.dtype, ...]:
    """The precisions that a device supports in hardware, the best for a model first.

    torch reports "support" for bfloat16 even where it is emulated: on Volta and Turing at a fraction of float16's
    speed.
    """
    match device.type:
        case "cuda" if torch.version.hip:
            brain = _ROCM_BFLOAT16.match(torch.cuda.get_device_properties(device).gcnArchName) is not None
        case "cuda":
            brain = torch.cuda.get_device_capability(device) >= (8, 0)
        case "xpu":
            brain = True
        case "mps":
            brain = torch.backends.mps.is_macos_or_newer(14, 0) and not _is_first_apple_chip()
        case _:  # no processor multiplies float16 as fast as it should
            return (BRAIN, torch.float32) if _cpu_has_bfloat16() else (torch.float32,)
    return (BRAIN, HALF, torch.float32) if brain else (HALF, torch.float32)


def precision(device: torch.device, name: str = "auto") -> torch.dtype:
    """The best native precision, unless one is requested by name."""
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    return native(device)[0]


def memory(device: torch.device) -> Memory:
    """The total memory and the free memory."""
    if device.type in ("cuda", "xpu"):
        free, total = _module(device).mem_get_info(device)
        return Memory(total, free)
    system = psutil.virtual_memory()
    if device.type == "mps":
        most = torch.mps.recommended_max_memory()
        return Memory(most, min(most - torch.mps.driver_allocated_memory(), system.available))
    return Memory(system.total, system.available)


def machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """It as a plan of its memory knows it."""
    return Machine(
        name=name(device),
        kind=device.type,
        total=memory(device).total,
        each=dtype.itemsize,
        four_bits=device.type in ("cpu", "cuda", "xpu") and find_spec("bitsandbytes") is not None,
    )


def most_taken(device: torch.device) -> int:
    """Bytes of its memory that this process has had at most; of the processor's, that it has now."""
    if device.type in ("cuda", "xpu"):
        return int(_module(device).max_memory_reserved(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    return int(psutil.Process().memory_info().rss)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(
        words in said for words in ("out of memory", "not enough memory", "can't allocate memory")
    )


def give_back(device: torch.device) -> None:
    """Release cached memory of this process to others."""
    if device.type != "cpu":
        _module(device).empty_cache()
        if hasattr(torch.accelerator, "empty_host_cache"):  # pinned memory, which is kept as well
            torch.accelerator.empty_host_cache()


def random_state(device: torch.device) -> torch.Tensor | None:
    """The state of an accelerator's generator; None if there is only the CPU's."""
    return None if device.type == "cpu" else _module(device).get_rng_state()


def set_random_state(device: torch.device, state: torch.Tensor) -> None:
    _module(device).set_rng_state(state)


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device)


def _cpu_has_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _is_first_apple_chip() -> bool:
    """M1 has no bfloat16."""
    from comfyloop.platforms import processor_name

    return processor_name().startswith("Apple M1")
