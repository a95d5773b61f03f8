"""What runs on one machine, run while ComfyLoop believes that it is under Windows (`tests/windows/sitecustomize.py`):
the spool and settings of the node pack, what is written whole, blobs, and paths as they are there.

Runs and turns of the loop take minutes: docs/systems.md has the command.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from comfyloop.records.base import is_device
from tests.conftest import REPOSITORY

MODULES = (
    "tests/unit/comfyui/test_spool.py",
    "tests/unit/comfyui/test_config.py",
    "tests/unit/store/test_blobs.py",
    "tests/unit/test_durable.py",
)


def as_windows(**more: str) -> dict[str, str]:
    """Its console writes in the code page GBK, and no locale says otherwise."""
    folders = [REPOSITORY / "tests" / "windows", REPOSITORY / "src", REPOSITORY]
    told = {"PYTHONPATH": os.pathsep.join(map(str, folders)), "PYTHONIOENCODING": "gbk", "PYTHONUTF8": "0"}
    return {**os.environ, **told, **more}


@pytest.mark.skipif(sys.platform == "win32", reason="it is Windows")
def test_what_is_kept_and_started_on_one_machine(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        str(tmp_path / "t"),
    ]
    done = subprocess.run(
        [*command, *MODULES],
        cwd=REPOSITORY,
        env=as_windows(),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-3000:]


def commanded(folder: Path, *words: str, **more: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "comfyloop", *words],
        cwd=folder,
        env=as_windows(**more),
        capture_output=True,
        encoding="gbk",
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="it is Windows")
def test_a_home_with_blanks_and_letters_that_the_code_page_lacks(tmp_path: Path) -> None:
    home = tmp_path / "My files, \u5bb6 \U0001f98a"  # the fox is in no code page
    home.mkdir()
    # As an editor of Windows saves it: with its mark, and lines that end as they do there.
    toml = "[serve]\r\nport = 8299\r\nmax_batch = 4\r\n"
    (home / "comfyloop.toml").write_bytes(b"\xef\xbb\xbf" + toml.encode())
    code, said = commanded(tmp_path, "doctor", COMFYLOOP_HOME=str(home))
    assert "Traceback" not in said and "8299" in said and "\u5bb6" in said, said
    code, said = commanded(tmp_path, "up", "--with-comfyui", str(home), COMFYLOOP_HOME=str(home))
    assert code == 2 and "is not a ComfyUI folder" in said


@pytest.mark.parametrize("name", ["con", "NUL", "nul.txt", "Com1", "LPT9.log", "aux.tar.gz"])
def test_names_of_devices(name: str) -> None:
    assert is_device(name)


@pytest.mark.parametrize("name", ["console", "com10", "acme", "nullable.txt", "lpt"])
def test_names_of_files(name: str) -> None:
    assert not is_device(name)
