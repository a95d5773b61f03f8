"""Looks at the machine and says in words what is missing and how to mend it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from comfyloop import platforms, starter, tokens
from comfyloop.client.addresses import reached
from comfyloop.client.client import Client
from comfyloop.errors import ComfyLoopError, ModelError
from comfyloop.models.memory import GIB
from comfyloop.serve.api.origin import is_loopback
from comfyloop.serve.api.server import bind
from comfyloop.settings import Settings, files_read
from comfyloop.stable_diffusion.look import look
from comfyloop.store import open_store, projects, url_of
from comfyloop.train.specs.needs import QLORA, ZERO


class MachineCheck(NamedTuple):
    name: str
    ok: bool
    sentence: str


def examine(settings: Settings, *, within: bool = False) -> list[MachineCheck]:
    """Every check, each a finding; none of them changes anything but for making the home directory.

    Args:
        within: The service itself asks: whether it can be reached is no question.
    """
    return [check(settings) for check in CHECKS if not (within and check is _service)]


def _python(settings: Settings) -> MachineCheck:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    return MachineCheck(
        "python", ok, f"Python {version}." + ("" if ok else " ComfyLoop needs 3.11 or newer.")
    )


def _libraries(settings: Settings) -> MachineCheck:
    wanted = ("torch", "transformers", "peft", "safetensors", "fastapi", "sqlalchemy")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        return MachineCheck(
            "libraries", False, f"Missing: {', '.join(missing)}. Install ComfyLoop again with pip."
        )
    torch, transformers = (importlib.metadata.version(n) for n in ("torch", "transformers"))
    return MachineCheck("libraries", True, f"torch {torch}, transformers {transformers}.")


def _processor(settings: Settings) -> MachineCheck:
    cores = os.cpu_count() or 1
    gpus = list(Path("/dev").glob("nvidia[0-9]*"))
    if gpus:
        return MachineCheck("processor", True, f"{len(gpus)} NVIDIA GPU(s) and {cores} cores.")
    if (name := platforms.processor_name()).startswith("Apple M"):
        return MachineCheck("processor", True, f"{name}: its GPU and {cores} cores share the memory.")
    brain = platforms.processor_has_bfloat16()
    if brain is None:
        return MachineCheck("processor", True, f"{name}, {cores} cores.")
    if brain:
        return MachineCheck(
            "processor", True, f"{cores} cores with bf16; no GPU: the starter is the right size."
        )
    return MachineCheck(
        "processor", True, f"{cores} cores without bf16 and no GPU: training runs in fp32, slowly."
    )


def _memory(settings: Settings) -> MachineCheck:
    gib = psutil.virtual_memory().available / GIB
    ok = gib >= 6
    more = "" if ok else " The starter with training wants 6: close something, or expect swapping."
    return MachineCheck("memory", ok, f"{gib:.1f} GiB free.{more}")


def _disk(settings: Settings) -> MachineCheck:
    at = settings.home
    while not at.exists():
        at = at.parent
    gib = shutil.disk_usage(at).free / GIB
    ok = gib >= 2
    more = "" if ok else " Runs and versions want 2: free some space or set COMFYLOOP_HOME to another disk."
    return MachineCheck("disk", ok, f"{gib:.1f} GiB free at {settings.home}.{more}")


def _database(settings: Settings) -> MachineCheck:
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        open_store(settings).close()
    except (ComfyLoopError, OSError) as error:
        return MachineCheck("database", False, f"{error}")
    sqlite = url_of(settings).get_backend_name() == "sqlite"
    kind = "SQLite " + sqlite3.sqlite_version if sqlite else "PostgreSQL"
    return MachineCheck("database", True, f"{kind}, writable.")


def _training(settings: Settings) -> MachineCheck:
    """Libraries that the settings of training ask for, or that one of them would."""
    needs = [QLORA] if settings.quant_method == "bnb" else []
    needs += [ZERO] if settings.train_processes > 1 and settings.train_parallel != "fsdp2" else []
    own = settings.train_engine == "comfyloop"
    missing = [f"{need.complaint} {need.hint}" for need in needs if own and not need.is_met]
    if missing:
        return MachineCheck("training", False, " ".join(missing))
    if settings.engine == "embedded" and settings.quant_method != settings.engine_quant_method:
        trains, serves = (
            "four bits" if method else "whole weights"
            for method in (settings.quant_method, settings.engine_quant_method)
        )
        return MachineCheck(
            "training",
            True,
            f"Learns on {trains} what is served on {serves}; the gate judges what is served. To have both alike set "
            f"engine_quant_method = {json.dumps(settings.quant_method)}.",
        )
    if not QLORA.is_met:
        return MachineCheck("training", True, f"LoRA and whole weights; {QLORA.complaint} {QLORA.hint}")
    return MachineCheck("training", True, "LoRA, QLoRA and whole weights.")


def _model(settings: Settings) -> MachineCheck:
    if settings.model != "starter":
        return MachineCheck(
            "model", True, f"Base model {settings.model}; it is loaded when the service starts."
        )
    path = starter.model_directory(settings.cache_dir)
    if path.exists():
        return MachineCheck("model", True, f"The starter is in {path}.")
    return MachineCheck(
        "model", True, "The starter is put together at the first start (110 MB, about a minute)."
    )


def _image_model(settings: Settings) -> MachineCheck:
    """What the image models are: the set one, which new projects get, and those that projects have."""
    new = (settings.image_model, settings.image_vae, settings.image_prediction)
    owners_of = {new: "new projects"} if settings.image_model else {}
    with contextlib.suppress(ComfyLoopError, OSError), open_store(settings) as store, store.read() as conn:
        for project in projects.list_all(conn):
            if project.image_model:
                own = settings.of(project)
                what_it_is = (project.image_model, own.image_vae, own.image_prediction)
                others = owners_of.get(what_it_is)
                owners_of[what_it_is] = f"{others}, {project.name}" if others else project.name
    if not owners_of:
        return MachineCheck(
            "image model",
            True,
            "No image model is set: projects learn texts alone. COMFYLOOP_IMAGE_MODEL names one for new projects.",
        )
    ok, sentences = True, []
    for (model, vae, prediction), owners in owners_of.items():
        try:
            what = look(model, vae, prediction)
        except ModelError as error:
            ok, what = False, str(error)
        sentences.append(f"{model} ({owners}): {what}")
    return MachineCheck("image model", ok, " ".join(sentences))


def _service(settings: Settings) -> MachineCheck:
    url = f"http://{reached(settings.host)}:{settings.port}"
    with Client(url, settings.token or tokens.stored(settings.home), timeout=10) as client:
        try:
            client.call("GET", "/healthz")
        except ComfyLoopError:
            pass
        else:
            if client.ready():
                return MachineCheck("service", True, f"Running at {url}, ready.")
            return MachineCheck(
                "service", False, f"Running at {url}, not ready: see {url}/readyz for the reason."
            )
    try:
        bind(settings.host, settings.port).close()
    except ComfyLoopError as error:
        return MachineCheck("service", False, str(error))
    return MachineCheck("service", True, f"Not running; {url} is free. Start it with `comfyloop up`.")


def _settings(settings: Settings) -> MachineCheck:
    files = [
        f"{file.path}" + (f" without {', '.join(file.ignored)}" * bool(file.ignored)) for file in files_read()
    ]
    if not files:
        return MachineCheck("settings", True, "No settings file; defaults and COMFYLOOP_* variables.")
    return MachineCheck(
        "settings",
        True,
        f"Read from {' and '.join(files)}."
        + (" A folder's file may not set these." if any(file.ignored for file in files_read()) else ""),
    )


def _access(settings: Settings) -> MachineCheck:
    """Who can reach the service, and who can read its data."""
    if settings.home.exists() and not platforms.is_private(settings.home):
        return MachineCheck(
            "access",
            False,
            f"Other users of this machine can look into {settings.home}. Run: chmod 700 {settings.home}",
        )
    token = settings.token or tokens.stored(settings.home)
    if is_loopback(settings.host):
        token_clause = "a token is asked" if settings.token else "no token is asked"
        return MachineCheck(
            "access", True, f"This machine alone reaches {settings.host}, and {token_clause}."
        )
    how = "a token is asked" if token else "`comfyloop up` makes a token, and shows it"
    pages = f"; pages of {', '.join(settings.allowed_origins)} may use it" if settings.allowed_origins else ""
    return MachineCheck(
        "access", True, f"Other machines reach {settings.host}: {how}{pages}. It is not encrypted."
    )


CHECKS: tuple[Callable[[Settings], MachineCheck], ...] = (
    _python,
    _libraries,
    _processor,
    _memory,
    _disk,
    _database,
    _training,
    _model,
    _image_model,
    _settings,
    _access,
    _service,
)
