"""The node pack travels in the wheel, and is found there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from comfyloop.comfyui.link import pack_files, pack_folder
from tests.conftest import REPOSITORY


def test_the_pack_is_in_the_wheel_and_found_there(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("NOT PROVED: hatchling is not installed, so no wheel was built")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run([*command, "--wheel-dir", str(tmp_path)], cwd=REPOSITORY, check=True, timeout=120)
    installed = tmp_path / "installed"
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    script = "from comfyloop.comfyui import pack_folder; print(pack_folder())"
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    folder = Path(found.stdout.strip())
    assert folder == installed / "comfyloop" / "comfyui" / "pack"
    assert pack_files(folder).keys() == pack_files(pack_folder()).keys()
