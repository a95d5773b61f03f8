from __future__ import annotations

from pathlib import Path

import pytest

from comfyloop.comfyui import doctor, link, pack_folder
from comfyloop.errors import Conflict, InvalidInput


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.3.64"\n')
    (tmp_path / "user" / "comfyloop").mkdir(parents=True)
    (tmp_path / "user" / "comfyloop" / "settings.json").write_text('{"url": "http://127.0.0.1:9"}')
    return tmp_path


def test_a_link_points_to_the_pack_and_may_be_made_twice(comfyui: Path) -> None:
    target = link(comfyui)
    assert link(comfyui) == target and target.resolve() == pack_folder().resolve()


def test_a_copy_replaces_a_link_and_an_older_copy(comfyui: Path) -> None:
    link(comfyui)
    target = link(comfyui, copy=True)
    (target / "stale.py").touch()
    assert link(comfyui, copy=True) == target
    assert (
        not target.is_symlink()
        and (target / "web" / "comfyloop.js").exists()
        and not (target / "stale.py").exists()
    )


def test_what_is_not_ours_is_left_alone(comfyui: Path) -> None:
    (comfyui / "custom_nodes" / "comfyloop").mkdir(parents=True)
    with pytest.raises(Conflict, match="is not ComfyLoop's pack"):
        link(comfyui)


def test_a_folder_without_comfyui_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not a ComfyUI folder"):
        link(tmp_path)


def test_the_doctor_says_what_is_missing(comfyui: Path, tmp_path: Path) -> None:
    states = {finding.what: finding.state for finding in doctor(comfyui)}
    assert states == {"ComfyUI": "ok", "node pack": "missing", "service": "missing"}
    link(comfyui)
    assert {f.what: f.state for f in doctor(comfyui)}["node pack"] == "ok"
    (comfyui / "comfyui_version.py").write_text('__version__ = "0.2.9"\n')
    assert doctor(comfyui)[0].state == "missing"
    assert doctor(tmp_path / "nowhere")[0].state == "missing"
