"""What an engine says of itself, and what several are started with."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from comfyloop.models.adapter_check import Limits
from comfyloop.serve.engines import guard
from comfyloop.serve.engines.client import VLLM, Dialect
from comfyloop.serve.engines.protocol import Launch
from comfyloop.settings import Settings


@dataclass(frozen=True)
class Start:
    """What a process is started with: a directory or hub id, and adapters (name -> directory)."""

    model: str
    port_file: Path
    adapters: Mapping[str, str]
    python: str = sys.executable


@dataclass(frozen=True)
class EngineKind:
    """
    Attributes:
        name: That of its file, and of the setting `engine`.
        launch: How its process is started.
        does: What it is, for the documentation.
        loads: Whether adapters can be loaded while it runs; otherwise it is swapped blue-green.
        environment: Its name in `environments.ENVIRONMENTS`; empty: it runs in ours.
        limits: What it takes of adapters; None: it says so itself when one is loaded.
        dialect: How it is told of adapters while it runs.
    """

    name: str
    launch: Callable[[Settings, Start], Launch]
    does: str
    loads: bool = True
    environment: str = ""
    limits: Callable[[Settings], Limits] | None = None
    dialect: Dialect = VLLM


def new_secret() -> str:
    return secrets.token_hex(32)  # nothing that a command line could take for an option


def guarded(argv: list[str], port: int, environment: Mapping[str, str], secret: str) -> Launch:
    """The program under a process of ours, which ends it when this one is gone."""
    return Launch([sys.executable, guard.__file__, str(os.getpid()), *argv], port, environment, secret)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
