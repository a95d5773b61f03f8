"""The real application over a furnished store, without a port: an engine is there and is not started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from comfyloop import web
from comfyloop.loop import Controller, Stages
from comfyloop.serve.api.app import create_app
from comfyloop.serve.api.services import Services
from comfyloop.serve.engines.process import EngineProcess
from comfyloop.serve.events import Events
from comfyloop.serve.routing.router import Router
from comfyloop.settings import Settings
from comfyloop.store import Store, open_store
from tests.unit.serve.gateway import instant
from tests.unit.web.studio import furnish

PAGE = {"Accept": "text/html", "Accept-Language": "en"}


class Studio:
    """What a test has: the store, and a browser's view of the service."""

    def __init__(self, store: Store, http: TestClient, services: Services) -> None:
        self.store, self.http, self.services = store, http, services

    def page(self, path: str, status: int = 200, **headers: str) -> str:
        answer = self.http.get(path, headers=PAGE | headers)
        assert answer.status_code == status, answer.text
        return answer.text


def services_over(store: Store, settings: Settings) -> Services:
    events = Events()
    engine = EngineProcess("engine", settings.home / "engines", instant())
    router = Router(settings, store, {"starter": engine}, events)
    return Services(settings, store, router, Controller(Stages(settings, store, router, events)))


@contextmanager
def open_studio(settings: Settings, *, furnished: bool = True) -> Iterator[Studio]:
    settings.home.mkdir(parents=True, exist_ok=True)
    with open_store(settings) as store:
        if furnished:
            furnish(store, settings.home)
        services = services_over(store, settings)
        with TestClient(
            create_app(services, web.install), base_url="http://127.0.0.1:8265", follow_redirects=False
        ) as http:
            yield Studio(store, http, services)
        services.router.close()


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """For tests that leave nothing behind."""
    home: Path = tmp_path_factory.mktemp("studio") / "home"
    with open_studio(Settings(home=home, project="acme", port=0)) as opened:
        yield opened
