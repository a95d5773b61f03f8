"""Settings as they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyloop.settings import Settings


def test_folders_are_absolute_since_runs_have_working_directories_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMFYLOOP_CACHE_DIR", "~/cache")
    settings = Settings(home=Path("data"))
    assert settings.home == tmp_path / "data"
    assert settings.cache_dir == Path.home() / "cache"
