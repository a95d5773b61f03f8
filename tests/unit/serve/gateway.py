"""A whole gateway for tests: store, engine process, router and API, reached over HTTP like any other."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from comfyloop.loop import Controller, Stages
from comfyloop.records import Project, Version
from comfyloop.serve.api import server
from comfyloop.serve.api.app import Front
from comfyloop.serve.api.services import Services
from comfyloop.serve.engines.process import EngineProcess
from comfyloop.serve.engines.protocol import Command, Engine, Launch
from comfyloop.serve.events import Events
from comfyloop.serve.routing.router import Router
from comfyloop.settings import Settings
from comfyloop.store import Store, open_store, projects, versions

INSTANT = Path(__file__).parent / "instant_engine.py"


def instant(*flags: object) -> Command:
    """The command of an engine that answers at once."""
    return lambda file: Launch([sys.executable, str(INSTANT), "--port-file", str(file), *map(str, flags)])


@dataclass
class Gateway:
    url: str
    services: Services
    http: httpx.Client
    engine: Any  # an EngineProcess, or what `make` has made
    store: Store
    served: uvicorn.Server

    @property
    def controller(self) -> Controller:
        assert isinstance(self.services.controller, Controller)
        return self.services.controller

    def add_version(self, number: int, adapter: Path | None = None, project: str = "acme") -> Path:
        """A version with an adapter directory; the instant engine looks at adapter_config.json only."""
        path = adapter or self.services.settings.home / "versions" / project / str(number) / "text"
        if adapter is None:
            path.mkdir(parents=True)
            (path / "adapter_config.json").write_text(json.dumps({"r": 8}))
        with self.store.begin() as conn:
            versions.add(conn, Version(project=project, number=number, text_adapter=str(path)))
        return path

    def ask(self, model: str = "acme", text: str = "hi", **fields: object) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def said(self, model: str = "acme", **fields: object) -> str:
        response = self.ask(model, **fields)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])


@contextmanager
def running_gateway(
    settings: Settings,
    command: Command | None = None,
    *,
    url: str = "",
    wait: bool = True,
    system_prompt: str = "",
    make: Callable[[Store], Engine] | None = None,
    front: Front | None = None,
) -> Iterator[Gateway]:
    """A gateway over an engine that `command` starts, that listens at `url`, or that `make` makes."""
    events = Events()
    with open_store(settings) as store:
        with store.begin() as conn:
            project = Project(name="acme", base_model=settings.model, system_prompt=system_prompt)
            projects.ensure(conn, project)
        engine = make(store) if make else EngineProcess("engine", settings.home / "engines", command, url=url)
        router = Router(settings, store, {settings.model: engine}, events)
        controller = Controller(
            Stages(settings, store, router, events)
        )  # not started: no turn begins by itself
        services = Services(settings, store, router, controller)
        listener = server.bind("127.0.0.1", 0)
        served = server.server(services, front)
        thread = threading.Thread(target=served.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            engine.start()
            if wait:
                engine.wait_ready(60)
            with httpx.Client(base_url=base, timeout=30, trust_env=False) as http:
                yield Gateway(base, services, http, engine, store, served)
        finally:
            served.should_exit = True
            thread.join(timeout=20)
            engine.stop()
            router.close()
