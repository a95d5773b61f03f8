"""The container runner: the command it builds, the image's recipe, and a real run where an engine answers."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from comfyloop.errors import Conflict, EngineUnavailable, InvalidInput, RunFailed
from comfyloop.settings import Settings
from comfyloop.train.run.directory import RunDirectory, TrainState
from comfyloop.train.runners import container
from comfyloop.train.specs.files import write_spec
from comfyloop.train.specs.text import TrainSpec

REPOSITORY = Path(__file__).parents[3]
CONTAINERFILE = REPOSITORY / "containers" / "trainer" / "Containerfile"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    for name in ("snapshot", "model", "versions/3/text", "runs/run-1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "snapshot" / "train.jsonl").write_text("")
    return RunDirectory(tmp_path / "runs" / "run-1")


def spec(run: RunDirectory, **values: object) -> TrainSpec:
    home = run.path.parents[1]
    told = {
        "model": str(home / "model"), "train": str(home / "snapshot" / "train.jsonl"), "threads": 3,
        "holdout": str(home / "snapshot" / "holdout.jsonl"), "memory_gb": 4, "world_size": 1,
        "adapter": {"init_from": str(home / "versions/3/text")},
    }  # fmt: skip
    return TrainSpec.model_validate(told | values)


def pairs(command: list[str]) -> list[tuple[str, str]]:
    return list(itertools.pairwise(command))


def test_nothing_but_the_run_directory_can_be_written(run: RunDirectory) -> None:
    command = container.command("/usr/bin/docker", "trainer:1", run, spec(run), gpu=False)
    home = run.path.parents[1]
    mounts = [value for option, value in pairs(command) if option == "--mount"]
    assert mounts == [
        f"type=bind,source={home}/model,target={home}/model,readonly",
        f"type=bind,source={home}/snapshot,target={home}/snapshot,readonly",
        f"type=bind,source={home}/versions/3/text,target={home}/versions/3/text,readonly",
        f"type=bind,source={run.path},target={run.path}",
    ]
    for told in (
        ("--network", "none"), ("--tmpfs", "/tmp"), ("--cap-drop", "all"), ("--cpus", "3"),
        ("--security-opt", "no-new-privileges"), ("--user", f"{os.getuid()}:{os.getgid()}"),
        ("--memory", "4506m"), ("--name", "comfyloop-run-1"), ("--env", "HF_HUB_OFFLINE=1"),
    ):  # fmt: skip
        assert told in pairs(command)
    assert "--read-only" in command and "--rm" in command
    assert command[:2] == ["/usr/bin/docker", "run"]
    assert command[command.index("trainer:1") :] == [
        "trainer:1", "-c", 'exec python -m comfyloop.train "$0" >>"$0/train.out" 2>&1', str(run.path),
    ]  # fmt: skip
    assert "--gpus" not in command and "--userns" not in command


def test_what_differs_between_engines_and_machines(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    podman = container.command("/usr/bin/podman", "t", run, spec(run, threads=0, memory_gb=0), gpu=True)
    assert {("--userns", "keep-id"), ("--device", "nvidia.com/gpu=all")} <= set(pairs(podman))
    assert "--cpus" not in podman and "--memory" not in podman
    docker = container.command("/usr/bin/docker", "t", run, spec(run, world_size=2), gpu=True)
    assert {("--gpus", "all"), ("--cpus", "6"), ("--memory", "9011m")} <= set(pairs(docker))

    monkeypatch.setenv("HF_HUB_CACHE", str(run.path.parents[1]))
    hub = container.command("/usr/bin/docker", "t", run, spec(run, model="org/model"), gpu=False)
    assert ("--env", f"HF_HUB_CACHE={run.path.parents[1]}") in pairs(hub)
    inside = container.command("/usr/bin/docker", "t", run, spec(run, train="train.jsonl", holdout=None))
    assert f"source={run.path.parents[1]}/snapshot" not in " ".join(inside)
    with pytest.raises(InvalidInput, match="cannot be mounted"):
        container.command("/usr/bin/docker", "t", run, spec(run, train=str(run.path.parent / "a,b" / "t")))


def test_an_engine_that_refuses(run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docker and podman print, from a script in their place: the sentence, and a run left as it was."""
    binary = tmp_path / "bin" / "docker"
    binary.parent.mkdir()

    def says(inspect: str, start: str) -> None:
        binary.write_text(
            f"#!/bin/sh\nif [ $1 = inspect ]; then echo '{inspect}' >&2; else echo '{start}' >&2; fi; exit 1\n"
        )
        binary.chmod(0o755)

    monkeypatch.setenv("PATH", f"{binary.parent}:{os.environ['PATH']}")
    runner = container.ContainerRunner(Settings(container_engine="docker", train_image="trainer:1"))
    write_spec(run.path, spec(run))
    says("Error: No such container: comfyloop-run-1", "Unable to find image trainer:1 locally")
    with pytest.raises(RunFailed, match=r"Unable to find image.*containers/trainer/Containerfile"):
        runner.start(run.path)
    assert run.read_status().state is TrainState.QUEUED
    says("Error: no such object: comfyloop-run-1", "The container name is already in use")
    with pytest.raises(Conflict):
        runner.start(run.path)
    says("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", "")
    with pytest.raises(EngineUnavailable, match="Start its service"):
        runner.start(run.path)
    run.write_status(run.read_status().model_copy(update={"state": TrainState.RUNNING}))
    says("Error: No such container: comfyloop-run-1", "")
    assert runner.poll(run.path).state is TrainState.DIED
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidInput, match="no podman or docker"):
        container.find_engine("auto")


def test_the_containerfile() -> None:
    """What can be told without building it: files exist, versions are those of the project, nothing unpinned."""
    text = CONTAINERFILE.read_text().replace("\\\n", " ")
    lines = [
        line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")
    ]
    words = [word for word, _ in lines]
    assert words[0] == "FROM" and words[-1] == "ENTRYPOINT"
    assert set(words) <= {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT"}
    image = lines[0][1]
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+-slim-\w+", image)  # a registry, and not `latest`
    for word, rest in lines:
        if word == "COPY":
            *sources, _ = rest.split()
            assert all((REPOSITORY / source).exists() for source in sources), rest
        if word == "WORKDIR":
            assert rest.startswith("/")
        if word == "RUN":
            assert "sudo" not in rest and "apt-get" not in rest
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    included = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    copied = [rest.split()[0] for word, rest in lines if word == "COPY"]
    assert {"constraints.txt", "src", *included["wheel"]["force-include"]} <= set(copied)
    installs = [rest for word, rest in lines if word == "RUN" and "pip install" in rest]
    assert installs[0].endswith("torch") and all("--constraint constraints.txt" in rest for rest in installs)
    assert json.loads(lines[-1][1]) == ["python", "-m", "comfyloop.train"]
    assert next(rest for word, rest in lines if word == "USER") != "root"
    extra = re.search(r"ARG EXTRAS=(\w+)", text)
    assert extra is not None and extra[1] in project["optional-dependencies"]


def _engine() -> str | None:
    for name in container.ENGINES:
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True).returncode == 0:
            return name
    return None


@pytest.mark.slow
def test_a_real_container(tiny_llm: Path, run: RunDirectory) -> None:
    """Builds the image and trains in it. Minutes, and only where podman or docker answers."""
    engine = _engine()
    if engine is None:
        pytest.skip("no container engine answers on this machine (podman info, docker info)")
    image = "comfyloop-trainer:test"
    subprocess.run(
        [engine, "build", "--file", str(CONTAINERFILE), "--tag", image, str(REPOSITORY)], check=True
    )
    row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "A red mug."}]}
    data = run.path.parents[1] / "snapshot" / "train.jsonl"
    data.write_text(json.dumps(row) + "\n")
    write_spec(run.path, TrainSpec(model=str(tiny_llm), train=str(data), max_steps=3, threads=1))
    runner = container.ContainerRunner(Settings(container_engine=engine, train_image=image))
    runner.start(run.path)
    while not (status := runner.poll(run.path)).state.ended:
        pass
    assert status.state is TrainState.SUCCEEDED, run.output_file.read_text()
    assert (run.adapter / "adapter_model.safetensors").stat().st_uid == os.getuid()
