"""One running service: store, engines, router, controller and API, put together and taken apart in order."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from comfyloop import integrity, starter
from comfyloop.environments import environment, python_of, refuse_without_gpu
from comfyloop.errors import Conflict, DamagedVersion, InvalidInput, StorageError
from comfyloop.files import there
from comfyloop.loop import Controller, Stages
from comfyloop.loop.retention import Keeper
from comfyloop.models import adapter_check
from comfyloop.records import BASE, Project, Version
from comfyloop.records.base import is_device
from comfyloop.registry import hubs
from comfyloop.serve.api.services import Services
from comfyloop.serve.engines.blue_green import BlueGreenEngine
from comfyloop.serve.engines.kinds import KINDS, Start
from comfyloop.serve.engines.process import EngineProcess
from comfyloop.serve.engines.protocol import Engine, Launch
from comfyloop.serve.events import Events
from comfyloop.serve.routing.router import Router
from comfyloop.settings import IMAGE_STARTER, Settings
from comfyloop.stable_diffusion.look import look
from comfyloop.starter import image as image_starter
from comfyloop.store import Store, open_store, projects, versions

log = logging.getLogger(__name__)

STARTER = "starter"
LOCK_SECONDS = 2.0
"""For a service before us that is going."""

Progress = Callable[[str, float], None]


def model_path(settings: Settings, model: str, progress: Progress | None = None) -> str:
    """What is loaded for a base model as it is set: a starter's directory or file (built if need be), a path, or a hub
    id; `ms:` ids are downloaded from ModelScope, `hf:` ids are Hugging Face's."""
    if model == STARTER:
        return str(starter.ensure(settings.cache_dir, progress))
    if model == IMAGE_STARTER:
        return str(image_starter.ensure(settings.cache_dir, progress))
    found = there(model)
    return str(found.resolve()) if found is not None else hubs.base_model(model, settings.cache_dir) or model


@contextmanager
def running(settings: Settings) -> Iterator[Services]:
    """A service whose engines and loop run; the API over it is the caller's to serve.

    Raises:
        StorageError: The database or the home directory cannot be used.
        Conflict: Another service runs on it.
    """
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    events = Events()
    with _alone(settings.home), open_store(settings) as store:
        engines = {model: _engine(settings, store, model, events) for model in _base_models(settings, store)}
        router = Router(settings, store, engines, events)
        models = partial(model_path, settings)
        controller = Controller(Stages(settings, store, router, events, models))
        keeper = Keeper(store, settings)
        try:
            for engine in engines.values():
                engine.start()
            controller.start()
            keeper.start()
            yield Services(settings, store, router, controller)
        finally:
            keeper.stop()
            controller.stop()
            for engine in engines.values():
                engine.stop()
            router.close()


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One service a folder: two would answer with different versions, each from what it remembers.

    Raises:
        Conflict: Another one runs on it.
        StorageError: The folder refuses.
    """
    lock = FileLock(home / "service.lock", mode=0o600)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise Conflict(
            f"Another service runs on {home}.", "Stop it, or give this one a folder of its own with --home."
        ) from None
    except OSError as error:
        raise StorageError(
            f"The folder {home} cannot be written: {error.strerror}.",
            "Mend its rights, or give another with --home.",
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_served(home: Path) -> bool:
    """Whether a service runs on a folder now."""
    if not home.is_dir():
        return False
    lock = FileLock(home / "service.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _base_models(settings: Settings, store: Store) -> list[str]:
    """The base models of all projects; on the first start there is one project, of the set models.

    Raises:
        ModelError: The image model that is set for it cannot be trained on.
    """
    with store.begin() as conn:
        if settings.image_model and projects.find(conn, settings.project) is None:
            look(settings.image_model, settings.image_vae, settings.image_prediction)
        projects.ensure(
            conn, Project(name=settings.project, base_model=settings.model, image_model=settings.image_model)
        )
        found = {project.base_model for project in projects.list_all(conn)}
    return sorted(found | {settings.model})


def _engine(settings: Settings, store: Store, model: str, events: Events) -> Engine:
    """The engine of a base model, of the kind that is set; the project's own URL goes with the set model."""
    kind = KINDS[settings.engine]
    directory = settings.home / "engines"
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in model).strip("-.")[-80:].strip("-.")
    if not name or is_device(name):  # files are called so
        name = f"engine-{name}"

    minutes = settings.engine_sleep_after
    sleep_after = None if minutes is None else 60 * minutes

    def check(adapter: str, path: str) -> None:
        if kind.limits is not None:
            adapter_check.check(adapter, path, kind.limits(settings), model_path(settings, model))

    if settings.engine_url and model == settings.model:
        return EngineProcess(
            name,
            directory,
            url=settings.engine_url,
            check=check,
            dialect=kind.dialect,
            sleep_after=sleep_after or 0.0,
        )
    if kind.name == "url":
        raise InvalidInput(
            "The engine is set to `url`, and engine_url is empty.",
            "Set COMFYLOOP_ENGINE_URL to where it listens.",
        )

    def command(port_file: Path, loras: Mapping[str, str]) -> Launch:
        # Runs in the engine's watching thread: the gateway answers "starting" while the starter is built.
        def tell(stage: str, fraction: float) -> None:
            events.publish({"type": "starter.progress", "stage": stage, "fraction": fraction})

        if kind.environment and not getattr(settings, environment(kind.environment).setting):
            refuse_without_gpu(kind.environment)  # another Python may know of other accelerators
        python = str(python_of(kind.environment, settings)) if kind.environment else sys.executable
        return kind.launch(settings, Start(model_path(settings, model, tell), port_file, loras, python))

    if kind.loads and settings.engine_swap == "load":
        return EngineProcess(
            name,
            directory,
            lambda port_file: command(port_file, {}),
            check=check,
            dialect=kind.dialect,
            sleep_after=sleep_after,
        )

    def live_adapters() -> dict[str, str]:
        live: list[Version] = []
        with store.read() as conn:
            for project in projects.list_all(conn):
                if project.base_model != model or project.live == BASE:
                    continue
                version = versions.get(conn, project.name, project.live)
                try:
                    integrity.check(conn, version)
                except DamagedVersion as error:  # the others are served
                    log.error("%s", error)
                else:
                    live.append(version)
        return {version.adapter_name: version.text_adapter for version in live if version.text_adapter}

    return BlueGreenEngine(
        name,
        directory,
        command,
        wanted=live_adapters,
        check=check,
        dialect=kind.dialect,
        sleep_after=sleep_after,
    )
