"""``python -m comfyloop.serve.embedded --model DIR``: the engine process.

It serves HTTP at once (503 until the model is loaded), writes its port into `--port-file` in one piece when
it does, and leaves when it is told to (SIGTERM, SIGINT), when its parent is gone, or when the model fails::

    exit code 0   told to leave
    exit code 2   the command line is wrong
    exit code 6   the model failed while it served
    exit code 8   the model cannot be loaded
    exit code 12  it does not fit into memory
    exit code 13  the address cannot be listened on
    exit code 1   anything else

What went wrong is one sentence on stderr and in the file beside the port file that ends in ``.error``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from comfyloop import platforms
from comfyloop.durable import write_whole
from comfyloop.serve.embedded.options import EngineOptions
from comfyloop.serve.engines.protocol import SECRET_VARIABLE


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.port_file is not None:
        options.port_file.unlink(missing_ok=True)
        _error_file(options.port_file).unlink(missing_ok=True)
    try:
        listener = socket.create_server((options.host, options.port), backlog=256)
    except OSError as error:
        return _fail(options, f"{options.host}:{options.port} cannot be listened on: {error.strerror}.", 13)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Metal cannot do the processor does
    if "OMP_WAIT_POLICY" not in os.environ:  # before torch
        # Long enough for the next product of a decode step, which would else take twice the time; no longer, for on a
        # busy machine, and training is to run beside this, threads that spin as they do by default are 50 times slower.
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    sys.setswitchinterval(0.0005)  # the model thread waits for the lock at most so long after each operation
    return _serve(options, listener)


def _serve(options: EngineOptions, listener: socket.socket) -> int:
    import uvicorn

    from comfyloop.serve.embedded.app import create_app
    from comfyloop.serve.embedded.engine import EmbeddedEngine

    engine = EmbeddedEngine(options)
    config = uvicorn.Config(
        create_app(engine),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=int(options.drain_seconds) or 1,
    )
    server = uvicorn.Server(config)
    vars(server)["capture_signals"] = (
        contextlib.nullcontext
    )  # its own kill the process before it has tidied up

    def leave(*_: object) -> None:
        server.should_exit = True

    for told in (signal.SIGTERM, signal.SIGINT):
        signal.signal(told, leave)

    engine.on_end = leave
    engine.start()
    if options.parent_pid:
        threading.Thread(target=_watch_parent, args=(options.parent_pid, leave), daemon=True).start()
    if options.port_file is not None:
        port = listener.getsockname()[1]
        threading.Thread(target=_announce, args=(server, options.port_file, port), daemon=True).start()
    server.run(sockets=[listener])
    engine.stop()
    engine.join(timeout=options.drain_seconds)
    if options.port_file is not None:
        options.port_file.unlink(missing_ok=True)
    if engine.error is not None:
        return _fail(
            options, str(engine.error), 12 if "memory" in str(engine.error) else engine.error.exit_code
        )
    return 0


def parse(arguments: list[str] | None = None) -> EngineOptions:
    p = argparse.ArgumentParser(prog="python -m comfyloop.serve.embedded", description="The embedded engine.")
    p.add_argument("--model", required=True, help="Model directory or hub id.")
    p.add_argument("--served-model-name", default="base", help="Name of the base model in requests.")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=0, help="0 takes a free one.")
    p.add_argument("--port-file", type=Path, help="The bound port is written here.")
    p.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"], default="auto")
    p.add_argument("--quant-method", choices=["", "bnb"], default="", help="bnb: linear layers in four bits.")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu.")
    p.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores.")
    p.add_argument("--max-batch", type=int, default=8, help="Requests decoded together.")
    p.add_argument("--max-queue", type=int, default=64, help="Requests that may wait; beyond it 429.")
    p.add_argument(
        "--max-context", type=int, default=0, help="Tokens of prompt and answer; 0: the model's limit."
    )
    p.add_argument("--max-pixels", type=int, default=1_003_520, help="Images are scaled down to this.")
    p.add_argument("--max-image-pixels", type=int, default=64_000_000, help="Larger images are refused.")
    p.add_argument("--rope-scaling", default="", help="More positions: linear:2, dynamic:2, yarn:4.")
    p.add_argument("--prefix-mb", type=int, default=256, help="Memory for beginnings of prompts seen before.")
    p.add_argument("--image-mb", type=int, default=128, help="Memory for features of images seen before.")
    p.add_argument(
        "--packed-mb",
        type=int,
        default=1024,
        help="Memory for a copy of the weights in the order that a CPU reads.",
    )
    p.add_argument("--lora-modules", nargs="*", default=(), metavar="NAME=DIRECTORY", help="Adapters.")
    p.add_argument("--parent-pid", type=int, default=0, help="Leave when this process is gone.")
    p.add_argument(
        "--drain-seconds", type=float, default=5.0, help="For running requests, when told to leave."
    )
    return EngineOptions(**vars(p.parse_args(arguments)), secret=os.environ.pop(SECRET_VARIABLE, ""))


def _announce(server: object, file: Path, port: int) -> None:
    while not getattr(server, "started", False):
        time.sleep(0.01)
    write_whole(file, f"{port}\n")


def _watch_parent(pid: int, leave: object) -> None:
    while platforms.alive(pid):
        time.sleep(0.5)
    assert callable(leave)
    leave()
    time.sleep(10)
    os._exit(1)  # requests that do not end must not keep an orphan alive


def _error_file(port_file: Path) -> Path:
    return port_file.with_name(f"{port_file.name}.error")


def _fail(options: EngineOptions, sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)
    if options.port_file is not None:
        options.port_file.parent.mkdir(parents=True, exist_ok=True)
        _error_file(options.port_file).write_text(sentence + "\n", "utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
