"""What an engine declares, settings and service go by."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from comfyloop.environments import ENVIRONMENTS
from comfyloop.serve.engines.kinds import KINDS, Start
from comfyloop.settings import ENGINES, Settings


def test_settings_take_those_that_there_are_and_import_none() -> None:
    assert tuple(KINDS) == ENGINES
    assert [Settings(engine=name).engine for name in KINDS] == list(KINDS)
    with pytest.raises(ValidationError, match="'embedded', 'lmdeploy'"):
        Settings(engine="none such")


@pytest.mark.parametrize("name", [name for name in KINDS if name != "url"])
def test_each_is_started_with_the_model_and_a_secret_in_an_environment_that_there_is(name: str) -> None:
    kind = KINDS[name]
    assert not kind.environment or kind.environment in ENVIRONMENTS
    launch = kind.launch(
        Settings(), Start("/models/base", Path("port"), {"acme-v1": "/adapters/1"}, "python-of-it")
    )
    assert "/models/base" in launch.argv and "acme-v1=/adapters/1" in launch.argv
    assert launch.secret in (*launch.argv, *(launch.environment or {}).values())
