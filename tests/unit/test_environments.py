"""Engines' own environments, with real venvs and real pip, and tiny wheels in the place of gigabytes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from comfyloop import environments
from comfyloop.environments import ENVIRONMENTS, Environment
from comfyloop.errors import Conflict, NotFound, UnusableEnvironment
from comfyloop.settings import Settings

pytestmark = pytest.mark.slow


def make_wheel(folder: Path, name: str, source: str) -> None:
    """A wheel of one module, version 1.0."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", source)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with an empty cache, a pip that knows only the wheels made here, and one tiny engine."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels, "tinytorch", "value = 1")
    make_wheel(wheels, "tinyengine", "import tinytorch")
    make_wheel(wheels, "tinyvision", "raise RuntimeError('operator nms does not exist')")
    for name in ("EXTRA_INDEX_URL", "INDEX_URL"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setitem(ENVIRONMENTS, "tiny", engine())
    return Settings(cache_dir=tmp_path / "cache", home=tmp_path / "home")


def engine(*more: str, check: str = "import tinyengine", optional: tuple[str, ...] = ()) -> Environment:
    return Environment(
        name="tiny",
        what="a tiny engine",
        setting="swift_python",
        requirements=(("tinytorch==1.0",), ("tinyengine==1.0", *more)),
        check=check,
        optional=optional,
        gigabytes=0.01,
    )


def test_an_engine_is_installed_and_found_from_then_on(settings: Settings) -> None:
    assert environments.find("tiny", settings) is None
    with pytest.raises(NotFound, match="comfyloop engines install tiny"):
        environments.python_of("tiny", settings)
    told: list[str] = []
    python = environments.install("tiny", settings, told.append)
    assert environments.python_of("tiny", settings) == python
    out = subprocess.run([python, "-c", "import tinyengine; print(tinyengine.tinytorch.value)"], text=True,
                         capture_output=True, check=True).stdout  # fmt: skip
    assert out == "1\n"
    assert any("Collecting tinyengine" in line or "tinyengine" in line for line in told)
    marker = environments.installed("tiny", settings)
    assert marker is not None and marker["versions"] == {"tinytorch": "1.0", "tinyengine": "1.0"}
    assert environments.install("tiny", settings, lambda line: pytest.fail(line)) == python  # nothing to do


def test_a_cut_off_installation_is_not_taken_for_one_and_goes_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENTS, "tiny", engine("nosuchpackage==1.0"))
    with pytest.raises(UnusableEnvironment, match="nosuchpackage"):
        environments.install("tiny", settings)
    assert environments.find("tiny", settings) is None
    make_wheel(settings.cache_dir.parent / "wheels", "nosuchpackage", "")
    told: list[str] = []
    environments.install("tiny", settings, told.append)
    assert environments.find("tiny", settings) is not None
    assert not any("making an environment" in line for line in told)
    assert not any("Collecting tinytorch" in line for line in told)  # it was there already


def test_an_engine_that_does_not_import_is_not_found(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENTS, "tiny", engine(check="import tinyengine, not_there"))
    with pytest.raises(UnusableEnvironment, match="No module named 'not_there'"):
        environments.install("tiny", settings)
    assert environments.find("tiny", settings) is None


def test_an_optional_module_that_does_not_import_is_removed_and_said(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    optional = ("tinyvision", "neverthere")
    monkeypatch.setitem(ENVIRONMENTS, "tiny", engine("tinyvision==1.0", optional=optional))
    python = environments.install("tiny", settings)
    marker = environments.installed("tiny", settings)
    assert marker is not None and marker["removed"] == ["tinyvision"]
    gone = subprocess.run([python, "-c", "import tinyvision"], capture_output=True, text=True)
    assert "No module named 'tinyvision'" in gone.stderr


def test_other_requirements_make_an_environment_stale(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments.install("tiny", settings)
    monkeypatch.setitem(ENVIRONMENTS, "tiny", engine(check="import tinyengine; pass"))
    assert environments.find("tiny", settings) is None
    environments.install("tiny", settings)
    assert environments.find("tiny", settings) is not None


def test_two_installations_of_one_engine_do_not_meet(settings: Settings) -> None:
    place = environments.directory("tiny", settings)
    place.parent.mkdir(parents=True)
    with FileLock(place.with_name(".tiny.lock")), pytest.raises(Conflict, match="Another process"):
        environments.install("tiny", settings)


def test_the_setting_names_another_python(settings: Settings) -> None:
    mine = settings.model_copy(update={"swift_python": sys.executable})
    assert environments.python_of("tiny", mine) == Path(sys.executable)
    with pytest.raises(NotFound, match="COMFYLOOP_SWIFT_PYTHON"):
        environments.python_of("tiny", settings.model_copy(update={"swift_python": "/no/such/python"}))
    with pytest.raises(NotFound, match="COMFYLOOP_SWIFT_PYTHON"):  # a directory is no Python
        environments.python_of("tiny", settings.model_copy(update={"swift_python": "/"}))


def test_an_unknown_engine_is_named_with_those_there_are(settings: Settings) -> None:
    with pytest.raises(NotFound, match="swift"):
        environments.install("nothing", settings)


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_torch_is_pinned_and_comes_first(name: str) -> None:
    first, *others = ENVIRONMENTS[name].requirements
    assert [requirement.partition("==")[0] for requirement in first] == ["torch"]
    for requirement in (*first, *(r for group in others for r in group)):
        assert "==" in requirement, f"{requirement} is not pinned"


def test_an_engine_for_gpus_is_not_installed_where_there_is_none(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENTS, "tiny", dataclasses.replace(engine(), needs_gpu=True))
    monkeypatch.setattr(environments, "has_gpu", lambda: False)
    with pytest.raises(UnusableEnvironment, match="needs an NVIDIA GPU, and this machine shows none"):
        environments.install("tiny", settings)
    assert not environments.directory("tiny", settings).exists()  # it was said before anything was fetched
    assert environments.install("tiny", settings, without_gpu=True).is_file()
    assert ENVIRONMENTS["lmdeploy"].needs_gpu and not ENVIRONMENTS["vllm"].needs_gpu
