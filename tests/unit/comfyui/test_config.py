from __future__ import annotations

import json
from pathlib import Path

import pytest

from comfyui.config import ConfigFile


def test_settings_are_kept_and_a_new_url_drops_the_token_of_the_old_service(tmp_path: Path) -> None:
    file = ConfigFile(tmp_path / "settings.json")
    file.change(url="http://127.0.0.1:1", token="secret")
    assert ConfigFile(file.path).config.token == "secret"
    assert file.path.stat().st_mode & 0o077 == 0
    assert file.change(url="http://127.0.0.1:2").token == ""
    file.change(token="second")
    kept = file.change(url="http://127.0.0.1:2/v1/")  # as OpenAI's clients have it: the same service
    assert (kept.url, kept.token) == ("http://127.0.0.1:2", "second")


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://x"},
        {"url": "http://x:99999"},
        {"url": "http://"},
        {"token": "a\nb"},
        {"project": "My Project"},
        {"capture": "acme"},
        {"spool_mb": 0},
        {"colour": "red"},
        {"url": 7},
        {"author": ""},
    ],
)
def test_a_setting_that_cannot_be_is_refused_and_changes_nothing(tmp_path: Path, wrong: dict) -> None:
    file = ConfigFile(tmp_path / "settings.json")
    before = file.config
    with pytest.raises(ValueError, match=r"\.$"):
        file.change(**wrong)
    assert file.config == before and not file.path.exists()


def test_the_environment_stands_in_for_what_nobody_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYLOOP_URL", "http://service:1")
    monkeypatch.setenv("COMFYLOOP_TOKEN", "from-outside")
    file = ConfigFile(tmp_path / "settings.json")
    file.change(capture=["default"])
    assert json.loads(file.path.read_text()) == {"capture": ["default"]}  # the token is not written down
    monkeypatch.setenv("COMFYLOOP_URL", "http://other:1")
    again = ConfigFile(file.path).config
    assert again.url == "http://other:1" and again.token == "from-outside" and again.capturing


@pytest.mark.parametrize("content", ["{", "[]", '{"capture": 3}', '{"url": "nonsense"}', ""])
def test_a_broken_file_turns_capture_off_says_so_and_is_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(content)
    file = ConfigFile(path)
    assert not file.config.capturing and "cannot be used" in file.problem
    file.change(author="kim")
    assert file.problem == "" and path.with_suffix(".broken").read_text() == content
    assert ConfigFile(path).config.author == "kim"
