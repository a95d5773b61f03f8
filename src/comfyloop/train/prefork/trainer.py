"""The warm trainer, seen from the service: a process that has done the start-up work of every run.

`forkserver` has imported the libraries and read the base weights; a run is forked from it and shares both, so it
takes its first step in a second or two. If anything is wrong with it, the run is started cold instead, and the log
says why. Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

import comfyloop
from comfyloop import platforms
from comfyloop.train.run.control import ask_for_large_pages
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.specs.image import ImageTrainSpec
from comfyloop.train.specs.joint import JointSpec
from comfyloop.train.specs.judge import JudgeSpec
from comfyloop.train.specs.text import TrainSpec

log = logging.getLogger(__name__)

AnySpec = TrainSpec | ImageTrainSpec | JointSpec | JudgeSpec

LOADING_SECONDS = 120.0
"""How long a run waits for a warm trainer that is still loading: a cold start would load the same."""
ANSWER_SECONDS = 10.0
MESSAGE_BYTES = 2**16


class WarmTrainer:
    """Keeps at most one warm process, for the most recently requested base model.

    Args:
        minutes: It lets its memory go after so long without a run.
    """

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._lock = threading.Lock()
        self._process: _WarmProcess | None = None

    @property
    def pid(self) -> int | None:
        """Of the warm process, None when there is none."""
        process = self._process
        return process.pid if process is not None and process.is_alive() else None

    def prepare(self, model: str, dtype: str, images: bool = False) -> None:
        """Prepare a warm process for runs on a base model, in a precision as named in a spec. Returns at once.

        Args:
            images: There will be runs with an image side, too.
        """
        if not self._lock.acquire(blocking=False):
            return  # a run is being started from it now
        try:
            process = self._process
            if process is not None and process.is_alive() and process.serves(model, dtype, images):
                process.keep()
                return
            self._drop()
            self._process = _WarmProcess(model, dtype, images, self._minutes)
        except OSError as error:
            log.warning("No warm trainer could be started (%s): runs start cold.", error)
        finally:
            self._lock.release()

    def fork(
        self, run: RunDirectory, spec: AnySpec, lock: int, output: int, environment: Mapping[str, str]
    ) -> int | None:
        """Start a run from the warm process.

        Args:
            lock: Descriptor of the run's lock, which the run takes over.
            output: Descriptor of `train.out`.
            environment: Variables to set in it.

        Returns:
            Its process id. None: it is not running and never will; start it cold.
        """
        with self._lock:
            process = self._process
            if process is None:
                return None
            try:
                if _is_quantised(spec):  # PEFT was told that there is no bitsandbytes
                    raise NotWarm(
                        "its weights are quantised, and the warm trainer has not imported what that needs"
                    )
                return process.fork(run, spec, lock, output, environment)
            except NotWarm as reason:
                log.info("The run %s starts cold: %s.", run.path.name, reason)
                if not process.is_alive() or not process.is_current():
                    self._drop()
                return None

    def close(self) -> None:
        """End the warm process. Runs that were forked from it go on."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


class NotWarm(Exception):
    """Why a run cannot be forked, as the end of a sentence."""


class _WarmProcess:
    """One forkserver and the socket to it; the forkserver exits when this end of the socket is closed, even by a
    crash."""

    def __init__(self, model: str, dtype: str, images: bool, minutes: float) -> None:
        self._model, self._dtype, self._images = model, dtype, images
        self._stamp = stamp(model)
        self._ready = False
        ours, theirs = platforms.forks.socket_pair()
        self._socket = ours
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "comfyloop.train.forkserver", str(theirs.fileno()), model, dtype,
                 "text+image" if images else "text", str(minutes)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=ask_for_large_pages(os.environ),
                pass_fds=(theirs.fileno(),),
                **platforms.apart(),  # Ctrl-C is for the service; this ends with the service's socket
            )  # fmt: skip
        self.pid = self._child.pid

    def is_alive(self) -> bool:
        return self._child.poll() is None

    def is_current(self) -> bool:
        return stamp(self._model) == self._stamp

    def serves(self, model: str, dtype: str, images: bool) -> bool:
        able = self._images or not images
        return able and (model, dtype) == (self._model, self._dtype) and self.is_current()

    def keep(self) -> None:
        """Postpone the moment at which it releases its memory."""
        with contextlib.suppress(OSError):
            platforms.forks.send_if_it_listens(self._socket, b"{}")

    def fork(
        self, run: RunDirectory, spec: AnySpec, lock: int, output: int, environment: Mapping[str, str]
    ) -> int:
        """Process id of the run. Raises NotWarm: then there is none, nor will be."""
        if not self._images and not isinstance(spec, TrainSpec):
            raise NotWarm("it has an image side, and the warm trainer has not imported what that needs")
        if not self.is_alive():
            raise NotWarm("the warm trainer has let its memory go, or was ended")
        if not self.is_current():
            raise NotWarm("the base model or the code has changed since the warm trainer read it")
        if not self._ready:
            self._receive(LOADING_SECONDS)
            self._ready = True
        # A fork does nothing until it reads a byte from this pipe, so without an answer there is no run.
        wait, go = os.pipe()
        try:
            request = {"run": str(run.path), "nice": spec.nice, "environment": dict(environment)}
            try:
                platforms.forks.send(self._socket, json.dumps(request).encode(), [lock, output, wait])
            except OSError as error:
                raise NotWarm(f"the warm trainer does not listen ({error.strerror})") from None
            answer = self._receive(ANSWER_SECONDS)
            if "pid" not in answer:
                raise NotWarm(answer.get("refused", "the warm trainer does not know how"))
            os.write(go, b"1")
            return int(answer["pid"])
        except BrokenPipeError:
            raise NotWarm("the fork ended at once") from None
        finally:
            os.close(wait)
            os.close(go)

    def _receive(self, seconds: float) -> dict[str, Any]:
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(MESSAGE_BYTES)
        except TimeoutError:
            self.end()
            raise NotWarm(f"the warm trainer did not answer within {seconds:g} s") from None
        except OSError as error:
            raise NotWarm(f"the warm trainer does not answer ({error.strerror})") from None
        if not data:
            self._child.wait()
            raise NotWarm("the warm trainer was ended")
        answer: dict[str, Any] = json.loads(data)
        return answer

    def end(self) -> None:
        self._socket.close()
        self._child.kill()
        self._child.wait()


def _is_quantised(spec: AnySpec) -> bool:
    text = spec.text if isinstance(spec, JointSpec) else spec
    return isinstance(text, TrainSpec) and text.quant_method is not None


def stamp(model: str) -> str:
    """A fingerprint of everything that a warm process depends on: this package's code, the libraries, the model's
    files."""
    digest = hashlib.sha256()
    for name in ("torch", "transformers", "peft", "tokenizers", "safetensors", "diffusers"):
        with contextlib.suppress(PackageNotFoundError):
            digest.update(f"{name} {version(name)}\n".encode())
    for file in (*_files(Path(comfyloop.__file__).parent.rglob("*.py")), *_files(Path(model).glob("*"))):
        with contextlib.suppress(OSError):
            about = file.stat()
            digest.update(f"{file} {about.st_size} {about.st_mtime_ns} {about.st_ino}\n".encode())
    return digest.hexdigest()


def _files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file())


def room_for(model: str) -> bool:
    """Whether this machine has room to preload a model's weights for a run that may never come: twice their size
    must be free."""
    size = sum(file.stat().st_size for file in _files(Path(model).glob("*.safetensors")))
    return bool(2 * size < psutil.virtual_memory().available)
