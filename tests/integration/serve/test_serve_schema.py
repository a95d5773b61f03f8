"""Whatever the OpenAPI allows to be sent, the service does not fail: it answers, or refuses in words."""

from __future__ import annotations

import os
from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from comfyloop.settings import Settings
from tests.unit.serve.gateway import instant, running_gateway

EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "12"))
"""Tried on each operation; more by the environment variable."""

schemathesis.serializer.alias("application/zip", "application/octet-stream")  # a bundle, as any other bytes

ERROR_FIELDS = {"message", "hint", "mend", "code", "type", "param"}


def test_nothing_that_is_sent_makes_the_service_fail(tmp_path: Path) -> None:
    with running_gateway(Settings(home=tmp_path, project="acme", port=0), instant()) as gateway:
        gateway.add_version(1)
        schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) > 25
        sent = 0
        for operation in operations:

            @given(case=operation.as_strategy())
            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            )
            def holds(case: schemathesis.Case) -> None:
                nonlocal sent
                sent += 1
                response = case.call(timeout=20)
                case.validate_response(response, checks=[not_a_server_error])
                if response.status_code >= 400:
                    assert set(response.json()["error"]) == ERROR_FIELDS

            holds()
        assert sent > 5 * len(operations)
