"""The registry packages: taken from the cache when they are there, refused when they are not as pinned."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comfyloop.errors import StarterError
from comfyloop.starter import packages
from comfyloop.starter.packages import Package


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """A small wheel and what is pinned about it; the wheel lies in `served`."""
    (tmp_path / "served").mkdir()
    wheel = tmp_path / "served" / "little-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("little/weights.bin", b"weights")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Package("little", "1.0", wheel.name, digest, "little/weights.bin", 1)


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands for pip: copies what `served` holds; the list has every command."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        for file in (tmp_path / "served").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_a_wheel_in_the_cache_is_not_downloaded(
    tmp_path: Path, package: Package, pip: list[list[str]]
) -> None:
    first = packages.obtain(package, tmp_path / "wheels")
    again = packages.obtain(package, tmp_path / "wheels")
    assert first == again and len(pip) == 1
    assert pip[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert pip[0][-1] == "little==1.0" and "--no-deps" in pip[0]


def test_a_cut_off_wheel_is_downloaded_again(tmp_path: Path, package: Package, pip: list[list[str]]) -> None:
    wheel = packages.obtain(package, tmp_path / "wheels")
    wheel.write_bytes(wheel.read_bytes()[:20])
    assert packages.sha256(packages.obtain(package, tmp_path / "wheels")) == package.wheel_sha256
    assert len(pip) == 2


def test_another_wheel_than_the_pinned_one_is_refused_and_removed(
    tmp_path: Path, package: Package, pip: list[list[str]]
) -> None:
    other = replace(package, wheel_sha256="0" * 64)
    with pytest.raises(StarterError, match="not the one this version was made for"):
        packages.obtain(other, tmp_path / "wheels")
    assert not (tmp_path / "wheels" / package.wheel).exists()


def test_extract_takes_the_one_file(tmp_path: Path, package: Package, pip: list[list[str]]) -> None:
    wheel = packages.obtain(package, tmp_path / "wheels")
    assert packages.extract(package, wheel, tmp_path).read_bytes() == b"weights"


def test_no_network_is_said_with_the_mend(
    tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the real pip, asked for a real failure: an index where nothing listens
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "0")
    missing = replace(package, name="comfyloop-no-such-package", wheel="missing.whl")
    with pytest.raises(StarterError) as raised:
        packages.obtain(missing, tmp_path / "wheels")
    assert "could not download it" in str(raised.value)
    assert "put missing.whl into" in raised.value.hint
