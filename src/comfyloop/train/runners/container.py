"""Training in a container: no network, a read-only base, and only the run directory writable.

Everything a spec names is mounted under its own path, so the spec is the same inside and out. Imports no torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from comfyloop import platforms
from comfyloop.errors import Conflict, EngineUnavailable, InvalidInput, RunFailed
from comfyloop.settings import Settings
from comfyloop.train.run.directory import RunDirectory, Status
from comfyloop.train.runners.watch import LOOK_SECONDS, Watch
from comfyloop.train.specs.base import RunSpec
from comfyloop.train.specs.files import read_spec
from comfyloop.train.specs.joint import JointSpec
from comfyloop.train.specs.judge import JudgeSpec
from comfyloop.train.specs.text import TrainSpec

ENGINES = ("podman", "docker")
SHARED_MEMORY = "1g"
GPU = Path("/dev/nvidiactl")


class ContainerRunner:
    def __init__(self, settings: Settings) -> None:
        self._image = settings.train_image
        self._engine_choice = settings.container_engine
        self._watch = Watch(self._runs)

    def start(self, run_dir: Path) -> None:
        run = RunDirectory(run_dir)
        spec = read_spec(run.path)
        engine = find_engine(self._engine_choice)
        status = self._watch.take_up(run)
        result = subprocess.run(
            command(engine, self._image, run, spec), capture_output=True, encoding="utf-8", errors="replace"
        )
        self._watch.started(run)
        if result.returncode:
            run.write_status(status)
            raise refusal(engine, self._image, result.stderr)

    def poll(self, run_dir: Path) -> Status:
        return self._watch.poll(run_dir)

    def end(self, run_dir: Path) -> None:
        run = RunDirectory(run_dir)
        subprocess.run([find_engine(self._engine_choice), "kill", name(run)], capture_output=True)
        self._watch.started(run)

    def prepare(self, model: str, dtype: str, images: bool = False) -> None:
        """Nothing can be prepared: containers share no memory."""

    def close(self) -> None:
        """Nothing is kept open: the container engine manages its containers."""

    def _runs(self, run: RunDirectory) -> bool:
        engine = find_engine(self._engine_choice)
        inspect_command = [
            engine,
            "inspect",
            "--type",
            "container",
            "--format",
            "{{.State.Running}}",
            name(run),
        ]
        result = subprocess.run(inspect_command, capture_output=True, encoding="utf-8", errors="replace")
        if result.returncode == 0:
            return result.stdout.strip() == "true"
        if "no such" in result.stderr.lower():
            return False
        raise refusal(engine, self._image, result.stderr)


def find_engine(choice: str) -> str:
    """Path of podman or docker. Raises InvalidInput when there is none."""
    names = ENGINES if choice == "auto" else (choice,)
    for engine in names:
        if (path := shutil.which(engine)) is not None:
            return path
    raise InvalidInput(
        f"Runs are to be computed in containers and there is no {' or '.join(names)} on this machine.",
        "Install podman, or set train_runner = local.",
    )


def name(run: RunDirectory) -> str:
    return f"comfyloop-{run.path.name}"


def command(
    engine: str,
    image: str,
    run: RunDirectory,
    spec: RunSpec | JointSpec | JudgeSpec,
    *,
    gpu: bool | None = None,
) -> list[str]:
    """The command that starts a run in the background.

    Args:
        engine: Path of podman or docker.
        gpu: Hand the GPUs in; None: when this machine has one.
    """
    podman = Path(engine).name == "podman"
    options = [
        "--name", name(run), "--detach", "--rm",
        "--network", "none",
        "--read-only", "--tmpfs", "/tmp", "--shm-size", SHARED_MEMORY,
        "--cap-drop", "all", "--security-opt", "no-new-privileges",
        "--env", "HOME=/tmp", "--env", "HF_HUB_OFFLINE=1",
        "--workdir", str(run.path),
    ]  # fmt: skip
    if user := platforms.user():
        options += ["--user", user]
    if podman:
        options += ["--userns", "keep-id"]  # what the run writes belongs to whoever started it
    if spec.threads:
        options += ["--cpus", str(spec.threads * spec.world_size)]
    if spec.memory_gb:  # a little more than the trainer allows itself, so that it ends with a sentence first
        options += ["--memory", f"{round(1.1 * spec.memory_gb * spec.world_size * 1024)}m"]
    if GPU.exists() if gpu is None else gpu:
        options += ["--device", "nvidia.com/gpu=all"] if podman else ["--gpus", "all"]
    for path in read_only(run, spec):
        options += ["--mount", f"type=bind,source={path},target={path},readonly"]
    if (cache := hub_cache()).is_dir() and not Path(spec.model).is_dir():
        options += [
            "--mount",
            f"type=bind,source={cache},target={cache},readonly",
            "--env",
            f"HF_HUB_CACHE={cache}",
        ]
    options += ["--mount", f"type=bind,source={run.path},target={run.path}"]
    inside = 'exec python -m comfyloop.train "$0" >>"$0/train.out" 2>&1'
    return [engine, "run", *options, "--entrypoint", "sh", image, "-c", inside, str(run.path)]


def read_only(run: RunDirectory, spec: RunSpec | JointSpec | JudgeSpec) -> list[Path]:
    """Directories outside the run directory that a run reads: data and images, model, parent adapter.

    Raises:
        InvalidInput: One of them has a name that cannot be mounted.
    """
    paths = sorted({path for path in _named(run, spec) if not path.is_relative_to(run.path)})
    for path in (*paths, run.path):
        if "," in str(path):  # the engines' --mount has no way to say this
            raise InvalidInput(f"{path} cannot be mounted in a container.", "Take the comma out of its name.")
    return paths


def _named(run: RunDirectory, spec: RunSpec | JointSpec | JudgeSpec) -> Iterator[Path]:
    for file in spec.data_files():
        yield run.resolve(file).resolve().parent  # images lie beside the file that names them
    for weights in spec.weights():
        if run.resolve(weights).exists():  # a hub id is no path
            yield run.resolve(weights).resolve()
    if isinstance(spec, TrainSpec) and spec.feature_cache_dir and Path(spec.feature_cache_dir).is_dir():
        yield Path(
            spec.feature_cache_dir
        ).resolve()  # features of earlier runs; new ones stay in the container


def hub_cache() -> Path:
    """The cache folder of huggingface_hub: a container without network finds this machine's models there."""
    home = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or str(Path(home) / "hub"))


def refusal(engine: str, image: str, output: str) -> EngineUnavailable | Conflict | RunFailed:
    """The error that corresponds to a container engine's message."""
    last = output.strip().splitlines()[-1] if output.strip() else "it gave no reason"
    lower = output.lower()
    if "cannot connect" in lower or "failed to connect" in lower or "connection refused" in lower:
        return EngineUnavailable(
            f"{Path(engine).name} does not answer: {last}",
            "Start its service, or set train_runner = local. The run waits.",
            retry_after=LOOK_SECONDS,
        )
    if "already in use" in lower:
        return Conflict(f"A container of this run exists already: {last}", "Wait for it, or remove it.")
    return RunFailed(
        f"{Path(engine).name} could not start the run: {last}",
        f"If there is no image {image}, build it from containers/trainer/Containerfile, "
        "or name another one (train_image).",
    )
