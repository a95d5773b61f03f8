"""Training as a job on a Ray cluster, through its jobs API: plain HTTP, so the service needs no Ray itself.

The run directory, the data and the model lie on storage that the service and all nodes see under the same
path. `ray_job` is what runs there; the job outlives the service. Imports no torch.
"""

from __future__ import annotations

import shlex
import uuid
from pathlib import Path
from typing import Any

import httpx

from comfyloop.errors import ComfyLoopError, EngineUnavailable, InvalidInput, RunFailed
from comfyloop.settings import Settings
from comfyloop.train.run.directory import RunDirectory, Status, write_atomically
from comfyloop.train.runners.watch import LOOK_SECONDS, Watch
from comfyloop.train.specs.files import read_spec

ENDED = {"STOPPED", "SUCCEEDED", "FAILED"}


class RayRunner:
    def __init__(self, settings: Settings) -> None:
        if not settings.ray_address:
            raise InvalidInput(
                "Runs are to be computed on a Ray cluster and none is named.",
                "Set ray_address to the address of its dashboard, such as http://head:8265.",
            )
        self._address = settings.ray_address.rstrip("/")
        self._python = settings.ray_python
        self._client = httpx.Client(base_url=self._address, timeout=30)
        self._watch = Watch(self._runs)

    def start(self, run_dir: Path) -> None:
        run = RunDirectory(run_dir)
        read_spec(run.path)
        status = self._watch.take_up(run)
        job = f"comfyloop-{run.path.name}-{uuid.uuid4().hex[:8]}"  # Ray knows each name once
        command = shlex.join([self._python, "-m", "comfyloop.train.runners.ray_job", str(run.path)])
        try:
            write_atomically(_job_file(run), job.encode())
            self._ask("POST", "/api/jobs/", json={"entrypoint": command, "submission_id": job})
        except ComfyLoopError:
            run.write_status(status)
            raise
        self._watch.started(run)

    def poll(self, run_dir: Path) -> Status:
        return self._watch.poll(run_dir)

    def end(self, run_dir: Path) -> None:
        run = RunDirectory(run_dir)
        if self._runs(run):
            self._ask("POST", f"/api/jobs/{_job_file(run).read_text('utf-8')}/stop")
        self._watch.started(run)

    def prepare(self, model: str, dtype: str, images: bool = False) -> None:
        """Nothing can be prepared: the node of a run is not known in advance."""

    def close(self) -> None:
        self._client.close()

    def _runs(self, run: RunDirectory) -> bool:
        try:
            job = _job_file(run).read_text("utf-8")
        except FileNotFoundError:
            return False
        answer = self._ask("GET", f"/api/jobs/{job}")
        return answer is not None and answer["status"] not in ENDED

    def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any] | None:
        """The cluster's answer; None when it does not know the job."""
        try:
            response = self._client.request(method, path, **more)
        except httpx.HTTPError as error:
            raise EngineUnavailable(
                f"The Ray cluster {self._address} does not answer: {error or type(error).__name__}.",
                "Start it, or correct ray_address. The run waits.",
                retry_after=LOOK_SECONDS,
            ) from None
        if response.status_code == 404 and method == "GET":
            return None
        if response.is_error:
            raise RunFailed(
                f"The Ray cluster refused ({response.status_code}): {_last_line(response.text)}",
                "See the Ray dashboard.",
            )
        answer: dict[str, Any] = response.json()
        return answer


def _job_file(run: RunDirectory) -> Path:
    return run.path / "ray_job"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it gave no reason"])[-1]
