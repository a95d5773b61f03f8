from __future__ import annotations

from collections.abc import Iterator

import pytest

from comfyloop.settings import Settings
from tests.unit.serve.gateway import Gateway, instant, running_gateway


@pytest.fixture
def gateway(settings: Settings) -> Iterator[Gateway]:
    """A gateway over an engine that answers at once, with one project, "acme", on its base model."""
    with running_gateway(settings, instant()) as running:
        yield running
