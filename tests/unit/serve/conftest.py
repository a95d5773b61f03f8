from __future__ import annotations

from collections.abc import Iterator

import pytest

from comfyloop.settings import Settings
from tests.unit.serve.gateway import Gateway, instant, running_gateway


@pytest.fixture(scope="session")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The same, for tests that leave nothing behind."""
    settings = Settings(home=tmp_path_factory.mktemp("shared"), project="acme", port=0)
    with running_gateway(settings, instant()) as running:
        yield running


@pytest.fixture
def gateway(settings: Settings) -> Iterator[Gateway]:
    """A gateway over an engine that answers at once, with one project, "acme", on its base model."""
    with running_gateway(settings, instant()) as running:
        yield running
