"""Which device, and which precision it has by itself: `is_bf16_supported()` counts emulation, and must not be asked."""

from __future__ import annotations

import types

import pytest
import torch

from comfyloop import platforms
from comfyloop.errors import ModelError
from comfyloop.models import devices

CUDA, MPS, XPU = torch.device("cuda"), torch.device("mps"), torch.device("xpu")


@pytest.mark.parametrize(
    ("capability", "best"),
    [
        ((7, 0), torch.float16),  # Volta
        ((7, 5), torch.float16),  # Turing
        ((8, 0), torch.bfloat16),
        ((8, 6), torch.bfloat16),  # RTX 3090
        ((12, 0), torch.bfloat16),
    ],
)
def test_a_card_computes_in_what_it_has_circuits_for(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], best: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # emulated on the first two
    assert devices.precision(CUDA) is best
    assert devices.precision(CUDA, "float32") is torch.float32


@pytest.mark.parametrize(
    ("chip", "best"),
    [("gfx906:sramecc+", torch.float16), ("gfx1030", torch.float16), ("gfx1100", torch.bfloat16),
     ("gfx90a:xnack-", torch.bfloat16), ("gfx942", torch.bfloat16)],
)  # fmt: skip
def test_amd_cards_under_rocm(monkeypatch: pytest.MonkeyPatch, chip: str, best: torch.dtype) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    about = types.SimpleNamespace(gcnArchName=chip)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: about)
    assert devices.precision(CUDA) is best


@pytest.mark.parametrize(
    ("chip", "new_enough", "best"),
    [("Apple M1 Pro", True, torch.float16), ("Apple M2", True, torch.bfloat16), ("Apple M2", False, torch.float16)],
)  # fmt: skip
def test_macs(monkeypatch: pytest.MonkeyPatch, chip: str, new_enough: bool, best: torch.dtype) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: new_enough)
    monkeypatch.setattr(platforms, "processor_name", lambda: chip)
    assert devices.precision(MPS) is best
    assert devices.precision(XPU) is torch.bfloat16


def test_the_accelerator_comes_before_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: MPS)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    assert devices.choose() == MPS
    assert devices.choose("cpu") == devices.CPU
    assert devices.choose("mps:0").index == 0


@pytest.mark.parametrize("asked", ["cuda", "cuda:1", "mps", "cpu:3", "gpu", "cuda:x"])
def test_a_device_that_is_not_there_is_refused_in_words(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    with pytest.raises(ModelError, match=asked):
        devices.choose(asked)


def test_the_processors_memory_and_random_numbers() -> None:
    memory = devices.memory(devices.CPU)
    assert 0 < memory.free <= memory.total
    assert devices.random_state(devices.CPU) is None
    assert devices.name(devices.CPU) == "the processor"
    devices.give_back(devices.CPU)
