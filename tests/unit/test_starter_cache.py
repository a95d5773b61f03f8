"""The starter's cache: built once, checked at every start, mended when it is damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from comfyloop import starter
from comfyloop.errors import StarterError
from comfyloop.starter import cache, packages

pytestmark = pytest.mark.slow


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces the two slow steps, downloading and converting; the list tells how often it was built."""
    made: list[Path] = []

    def obtain(package: packages.Package, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder / package.wheel

    def assemble(language: Path, vision: Path, out: Path, report: cache.Progress) -> None:
        report("Converting", 0.7)
        (out / "config.json").write_text("{}")
        with (out / "model.safetensors").open("wb") as file:
            file.truncate(cache.SMALL_FILE + 1)
        made.append(out)

    monkeypatch.setattr(packages, "obtain", obtain)
    monkeypatch.setattr(cache, "_assemble", assemble)
    return made


def test_second_call_builds_nothing(tmp_path: Path, builds: list[Path]) -> None:
    seen: list[tuple[str, float]] = []
    first = starter.ensure(tmp_path, lambda stage, fraction: seen.append((stage, fraction)))
    assert starter.ensure(tmp_path) == first == tmp_path / f"starter-{starter.VERSION}"
    assert len(builds) == 1
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert all(0 <= fraction <= 1 and stage for stage, fraction in seen)


def test_manifest_names_every_file_with_its_hash(tmp_path: Path, builds: list[Path]) -> None:
    model = starter.ensure(tmp_path)
    manifest = json.loads((model / "manifest.json").read_text())
    assert manifest["version"] == starter.VERSION
    assert set(manifest["files"]) == {"config.json", "model.safetensors"}
    assert manifest["files"]["config.json"] == {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    assert manifest["made_from"][packages.LANGUAGE.wheel] == packages.LANGUAGE.wheel_sha256


def _truncate(model: Path) -> None:
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(10)


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        lambda model: (model / "config.json").write_text("[]"),  # the same size: only the hash tells
        lambda model: (model / "config.json").unlink(),
        lambda model: (model / "manifest.json").write_text("{ not json"),
        lambda model: (model / "manifest.json").write_text("[]"),
        lambda model: (model / "manifest.json").unlink(),
    ],
    ids=["short weights", "changed file", "missing file", "broken manifest", "odd manifest", "no manifest"],
)
def test_damaged_directory_is_built_anew(
    tmp_path: Path, builds: list[Path], damage: Callable[[Path], object]
) -> None:
    model = starter.ensure(tmp_path)
    damage(model)
    assert starter.ensure(tmp_path) == model
    assert len(builds) == 2
    assert cache.is_intact(model, thorough=True)


def test_only_verify_reads_the_large_files(tmp_path: Path, builds: list[Path]) -> None:
    model = starter.ensure(tmp_path)
    with (model / "model.safetensors").open("r+b") as file:
        file.write(b"x")
    starter.ensure(tmp_path)
    assert len(builds) == 1
    starter.ensure(tmp_path, verify=True)
    assert len(builds) == 2


def test_concurrent_callers_build_once(
    tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = cache._assemble

    def slow(language: Path, vision: Path, out: Path, report: cache.Progress) -> None:
        time.sleep(0.3)
        quick(language, vision, out, report)

    monkeypatch.setattr(cache, "_assemble", slow)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(starter.ensure(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 4
    assert len(builds) == 1


def test_failed_build_leaves_nothing_behind(
    tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(language: Path, vision: Path, out: Path, report: cache.Progress) -> None:
        (out / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_assemble", fail)
    with pytest.raises(StarterError, match=r"is full\. Free some space"):
        starter.ensure(tmp_path)
    assert not list(tmp_path.glob(f"*starter-{starter.VERSION}*/"))


def test_too_little_room_is_said_before_anything_is_downloaded(
    tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StarterError, match="5 MB free"):
        starter.ensure(tmp_path)
    assert not (tmp_path / "wheels").exists()


def test_a_cache_that_is_a_file_is_named(tmp_path: Path, builds: list[Path]) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(StarterError, match=r"cannot be used"):
        starter.ensure(tmp_path / "cache")


def test_shipped_weights_are_the_pinned_ones() -> None:
    assert packages.sha256(cache.WEIGHTS) == cache.WEIGHTS_SHA256
    assert cache.WEIGHTS.stat().st_size < 30 << 20


def test_damaged_installation_is_named(
    tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(StarterError, match="Install comfyloop anew"):
        starter.ensure(tmp_path)


def test_failing_conversion_tells_its_last_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.whl"
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("nothing", "here")
    (tmp_path / "out").mkdir()
    with pytest.raises(StarterError, match="There is no item named"):
        cache._assemble(broken, broken, tmp_path / "out", lambda stage, fraction: None)


def test_importing_and_checking_needs_no_torch(tmp_path: Path, builds: list[Path]) -> None:
    starter.ensure(tmp_path)
    script = (
        "import sys, pathlib; from comfyloop import starter; "
        f"starter.ensure(pathlib.Path({str(tmp_path)!r})); "
        "print(sorted({'torch', 'transformers', 'numpy', 'gguf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_fast_path_takes_milliseconds(tmp_path: Path, builds: list[Path]) -> None:
    starter.ensure(tmp_path)
    started = time.perf_counter()
    starter.ensure(tmp_path)
    assert time.perf_counter() - started < 0.1
