from __future__ import annotations

from pathlib import Path

import pytest

from comfyloop.comfyui import doctor, link, pack_folder, unlink
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


@pytest.mark.parametrize("copy", [False, True])
def test_unlinking_leaves_what_the_person_has(comfyui: Path, copy: bool) -> None:
    target = link(comfyui, copy)
    assert unlink(comfyui) and not target.exists() and not target.is_symlink()
    assert not unlink(comfyui)
    assert (comfyui / "user" / "comfyloop" / "settings.json").exists() and (
        pack_folder() / "pack.py"
    ).exists()


def test_a_link_that_points_to_nothing_is_mended_or_taken_out(comfyui: Path, tmp_path: Path) -> None:
    (comfyui / "custom_nodes").mkdir()
    (comfyui / "custom_nodes" / "comfyloop").symlink_to(tmp_path / "an environment that was deleted")
    assert {f.what: f for f in doctor(comfyui)}["node pack"].says.endswith("points to nothing.")
    assert link(comfyui).resolve() == pack_folder().resolve()
    assert unlink(comfyui)


def test_a_data_folder_of_the_desktop_app_will_do(tmp_path: Path) -> None:
    for name in ("custom_nodes", "models", "user"):
        (tmp_path / name).mkdir()
    assert link(tmp_path).parent == tmp_path / "custom_nodes"


def test_what_is_not_ours_is_left_alone(comfyui: Path) -> None:
    (comfyui / "custom_nodes" / "comfyloop").mkdir(parents=True)
    with pytest.raises(Conflict, match="is not ComfyLoop's pack"):
        link(comfyui)
    with pytest.raises(Conflict, match="is not ComfyLoop's pack"):
        unlink(comfyui)


def test_a_folder_without_comfyui_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not a ComfyUI folder"):
        link(tmp_path)


def test_the_doctor_says_what_is_missing(comfyui: Path, tmp_path: Path) -> None:
    states = {finding.what: finding.state for finding in doctor(comfyui)}
    assert states == {"ComfyUI": "ok", "node pack": "missing", "service": "missing"}
    link(comfyui)
    assert {f.what: f.state for f in doctor(comfyui)}["node pack"] == "ok"
    copied = link(comfyui, copy=True)
    assert {f.what: f.state for f in doctor(comfyui)}["node pack"] == "ok"
    (copied / "pack.py").write_text("of another version")
    assert {f.what: f.state for f in doctor(comfyui)}["node pack"] == "warning"
    (comfyui / "comfyui_version.py").write_text('__version__ = "0.2.9"\n')
    assert doctor(comfyui)[0].state == "missing"
    assert doctor(tmp_path / "nowhere")[0].state == "missing"
