"""A held run gives its memory back, and goes on with the same bits: in a process of its own, all of which moves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from comfyloop.models import moving
from comfyloop.train.run import aside
from comfyloop.train.run.aside import Aside, here

way, file = sys.argv[1], Path(sys.argv[2])
if way == "card":  # from the processor's memory to itself, by the way that a card's goes
    moving.OWN_MEMORY = aside.OWN_MEMORY = ("cpu",)
torch.manual_seed(1)
model = nn.Sequential(nn.Linear(256, 256), nn.Dropout(0.1), nn.Linear(256, 256))
model[2].weight = model[0].weight  # tied
rows = torch.randn(512, 256)
view = rows[7]
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
held = Aside(1.0, file)
losses, sizes, left = [], [], []
for step in range(6):
    for part in range(2):
        loss = (model(rows[part::2]) ** 2).mean()
        loss.backward()
        losses.append(loss.item().hex())
        del loss
        if way != "never" and step in (2, 3) and part == 0:  # gradients are there, and the optimiser's averages
            sizes.append(held.step_aside())
            left.append(sum(t.nbytes for t in here(torch.device("cpu"))))
            held.come_back()
            assert view.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr()
            assert model[2].weight is model[0].weight
    optimizer.step()
    optimizer.zero_grad()
weights = model[0].weight.detach().double().sum().item().hex()
print(json.dumps({"losses": losses, "weights": weights, "sizes": sizes, "left": left, "file": file.exists()}))
"""


def trained(way: str, tmp_path: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", SCRIPT, way, str(tmp_path / "parked.bin")]
    told: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return told


def test_what_a_run_has_comes_back_bit_for_bit(tmp_path: Path) -> None:
    whole = trained("never", tmp_path)
    for way in ("card", "file"):
        held = trained(way, tmp_path)
        assert (held["losses"], held["weights"]) == (whole["losses"], whole["weights"])
        assert min(held["sizes"]) >= 256 * 256 * 4 * 4 + 512 * 256 * 4, "weights, gradient, averages, rows"
        assert held["file"] is False
    assert max(held["left"]) < 2**16, "the small ones stay"


def test_a_run_steps_aside_by_itself_where_the_card_has_a_memory_of_its_own(tmp_path: Path) -> None:
    import torch

    from comfyloop.train.run.aside import BY_ITSELF, Aside

    assert Aside(None, tmp_path / "p", torch.device("cuda")).after == BY_ITSELF
    for device in ("cpu", "mps"):
        assert Aside(None, tmp_path / "p", torch.device(device)).after == 0.0
    assert Aside(2.0, tmp_path / "p", torch.device("cpu")).after == 2.0


def test_it_waits_for_room_and_asks_meanwhile_what_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from comfyloop.train.run import aside
    from comfyloop.train.run.control import Cancelled

    monkeypatch.setattr(aside, "LOOK_SECONDS", 0.0)
    full = [True, True]

    def move(*_: Any) -> None:
        if full and full.pop():
            raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(aside, "move", move)
    held = aside.Aside(1.0, tmp_path / "p", torch.device("cpu"))
    asked: list[int] = []
    held.come_back(lambda: asked.append(1))
    assert len(asked) == 2

    def cancel() -> None:
        raise Cancelled

    full[:] = [True]
    with pytest.raises(Cancelled):
        held.come_back(cancel)


def test_without_a_place_for_it_the_run_keeps_its_memory_and_says_so(tmp_path: Path) -> None:
    import torch

    from comfyloop.train.run.aside import Aside

    said: list[str] = []
    kept = torch.arange(2**16)
    held = Aside(1.0, tmp_path / "missing" / "parked.bin", torch.device("cpu"), said.append)
    assert held.step_aside() == 0
    assert not held.is_aside and held.after == 0
    assert said[0].startswith("The run keeps its memory while it is held: ")
    assert kept.sum().item() == 2**15 * (2**16 - 1)
