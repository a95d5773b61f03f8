"""What tests of training runs are made of: a small data set, and what is the same when a run is repeated."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from comfyloop.train.run.directory import RunDirectory, Status, TrainState
from comfyloop.train.runners import local

THINGS = ["pillow", "lamp", "kettle", "scarf", "mug", "candle", "bowl", "towel", "basket", "vase", "clock"]
# What must be the same when a run is repeated or resumed; the rest of a line is about time and memory.
CURVE = ("step", "epoch", "loss", "answer_token_accuracy", "grad_norm", "learning_rate", "holdout_loss")


def rows(images: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "id": f"s{i}",
            "messages": [
                {"role": "user", "content": f"{'<image>' * images}Write a caption for a {thing}."},
                {"role": "assistant", "content": f"Meet the {thing}: made slowly."},
            ],
            **({"images": [f"images/{thing}.png"]} if images else {}),
        }
        for i, thing in enumerate(THINGS)
    ]


def curve(run: Path) -> list[dict[str, Any]]:
    return [{name: line[name] for name in CURVE} for line in RunDirectory(run).log_lines()]


def finish(run: Path, state: TrainState = TrainState.SUCCEEDED) -> Status:
    status = local.wait(run, timeout=120)
    assert status.state is state, (status, (run / "train.out").read_text())
    return status


def wait_until_held(run: Path) -> Status:
    deadline = time.monotonic() + 60
    while (status := local.poll(run)).state is not TrainState.HOLDING:
        assert not status.state.ended and time.monotonic() < deadline, status
        time.sleep(0.02)
    return status
