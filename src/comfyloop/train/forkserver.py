"""`python -m comfyloop.train.forkserver SOCKET MODEL DTYPE SIDES MINUTES`: the process from which runs are forked.

It imports what a run imports (SIDES is `text` or `text+image`), reads the base weights of the text side (memory-mapped,
so they are the page cache's until a run touches them), and waits. It keeps to the rules of `prefork/forking.py`, and
ends when the service's end of the socket is closed, or after MINUTES without a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from comfyloop import platforms
from comfyloop.train.libraries import import_image_side, import_once
from comfyloop.train.prefork.forking import count_threads, end_with, settle

NICE = 10
"""As low as a run is by default; a fork cannot rise again."""
FIRST_TO_GO = 800
"""The first to go when memory runs out: it is only a convenience."""


def main(arguments: list[str]) -> int:
    fd, minutes = int(arguments[0]), float(arguments[4])
    model, dtype, sides = arguments[1:4]
    with socket.socket(fileno=fd) as service:
        platforms.step_back(NICE, FIRST_TO_GO)
        if Path(model).is_dir():
            os.environ["HF_HUB_OFFLINE"] = "1"
        load(model, dtype)
        if "image" in sides:
            import_image_side()
        settle()
        platforms.forks.forget_children()
        try:
            service.send(b'{"ready": true}')
            serve(service, 60 * minutes)
        except OSError:
            pass  # the service is gone
    return 0


def load(model: str, dtype: str) -> None:
    """Do the start-up work of every run that can be done in advance."""
    import_once()
    from comfyloop.errors import ComfyLoopError
    from comfyloop.train.prefork import preloaded
    from comfyloop.train.prefork.trainer import room_for
    from comfyloop.train.text import models

    with contextlib.suppress(ComfyLoopError):  # the run will say what is wrong with the model
        description = models.describe(model)
        preloaded.hold(description, "description", model)
        if Path(model).is_dir() and room_for(model):
            precision = _dtype(dtype)
            base = models.read_weights(model, description, precision, None)
            preloaded.hold(base, "weights", model, precision, None)


def _dtype(precision: str) -> Any:
    """The precision that a run will most likely choose, found without touching CUDA. A run that chooses another
    reads the weights again."""
    import torch

    from comfyloop.models import devices

    if precision == "auto" and Path("/dev/nvidiactl").exists():
        return torch.bfloat16
    return devices.precision(devices.CPU, precision)


def serve(service: socket.socket, idle_seconds: float) -> None:
    """Fork a run for each request, until the service is gone or has been silent for too long."""
    service.settimeout(idle_seconds)
    while True:
        try:
            data, descriptors = platforms.forks.receive(service, 2**16, 3)
        except TimeoutError:
            return
        if not data:
            return
        request = json.loads(data)
        if not request:
            continue  # only to put off the end
        answer = _fork(service, request, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        service.send(json.dumps(answer).encode())


def _fork(service: socket.socket, request: dict[str, Any], lock: int, output: int, go: int) -> dict[str, Any]:
    if (threads := count_threads()) > 1:
        return {"refused": f"the warm trainer has {threads} threads, which a fork would lose"}
    if request["nice"] < (own := platforms.forks.priority()):
        return {"refused": f"the run asks for niceness {request['nice']} and the warm trainer has {own}"}

    def run() -> int:
        service.close()
        if not os.read(go, 1):  # the service did not hear of this fork, and starts the run otherwise
            return 1
        os.close(go)
        return _run(request, lock, output)

    return {"pid": platforms.forks.Fork(lambda: end_with(run), apart=True).pid}


def _run(request: dict[str, Any], lock: int, output: int) -> int:
    """What `python -m comfyloop.train RUN_DIR` does in a process of its own."""
    from comfyloop.train import __main__ as train
    from comfyloop.train.run.directory import LOCK_VARIABLE

    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.update(request["environment"])
    os.environ[LOCK_VARIABLE] = str(lock)
    return train.main([request["run"]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
