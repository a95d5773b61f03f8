"""One running service: store, engines, router, controller and API, put together and taken apart in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from comfyloop import starter
from comfyloop.loop import Controller
from comfyloop.records import Project
from comfyloop.serve.api.services import Services
from comfyloop.serve.engines import EngineProcess, embedded_command
from comfyloop.serve.events import Events
from comfyloop.serve.router import Router
from comfyloop.settings import Settings
from comfyloop.store import Store, open_store, projects

STARTER = "starter"

Progress = Callable[[str, float], None]


def model_path(settings: Settings, model: str, progress: Progress | None = None) -> str:
    """What transformers loads for a base model as it is set: the starter's directory (built if need be), a
    directory, or a hub id as it is."""
    if model == STARTER:
        return str(starter.ensure(settings.cache_dir, progress))
    return str(Path(model).expanduser().resolve()) if Path(model).expanduser().exists() else model


@contextmanager
def running(settings: Settings) -> Iterator[Services]:
    """A service whose engines and loop run; the API over it is the caller's to serve.

    Raises:
        StorageError: The database or the home directory cannot be used.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    events = Events()
    with open_store(settings) as store:
        engines = {model: _engine(settings, model, events) for model in _base_models(settings, store)}
        router = Router(settings, store, engines, events)
        controller = Controller(
            settings, store, router, events, models=lambda model: model_path(settings, model)
        )
        try:
            for engine in engines.values():
                engine.start()
            controller.start()
            yield Services(settings, store, router, controller)
        finally:
            controller.stop()
            for engine in engines.values():
                engine.stop()
            router.close()


def _base_models(settings: Settings, store: Store) -> list[str]:
    """The base models of all projects; on the first start there is one project, of the set model."""
    with store.begin() as conn:
        projects.ensure(conn, Project(name=settings.project, base_model=settings.model))
        found = {project.base_model for project in projects.list_all(conn)}
    return sorted(found | {settings.model})


def _engine(settings: Settings, model: str, events: Events) -> EngineProcess:
    directory = settings.home / "engines"
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in model).strip("-.")[-80:] or "engine"
    if settings.engine_url and model == settings.model:
        return EngineProcess(name, directory, url=settings.engine_url)

    def command(port_file: Path) -> list[str]:
        # Runs in the engine's watching thread: the gateway answers "starting" while the starter is built.
        def tell(stage: str, fraction: float) -> None:
            events.publish({"type": "starter.progress", "stage": stage, "fraction": fraction})

        return embedded_command(settings, model_path(settings, model, tell))(port_file)

    return EngineProcess(name, directory, command)
