"""Runs as jobs on a real Ray cluster of two nodes on this machine."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from comfyloop.errors import Conflict, EngineUnavailable, InvalidInput
from comfyloop.settings import Settings
from comfyloop.train import runners
from comfyloop.train.run.directory import RunDirectory, Status, TrainState
from comfyloop.train.runners.ray import RayRunner
from tests.integration.train.runs import curve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None or importlib.util.find_spec("aiohttp_cors") is None,
        reason="ray[default] is not installed (extra `ray`)",
    ),
]

MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The dashboard of a cluster of two nodes with one processor each."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "include_dashboard": True, "dashboard_port": port}
    )
    cluster.add_node(**node)
    yield f"http://127.0.0.1:{port}"
    cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)


def wait_for(runner: RayRunner, run: Path, until: Callable[[Status], bool], seconds: float = 180) -> Status:
    deadline = time.monotonic() + seconds
    while not until(status := runner.poll(run)):
        assert not status.state.ended, (status, _output(run))
        assert time.monotonic() < deadline, (status, _output(run))
        time.sleep(0.1)
    return status


def _output(run: Path) -> str:
    file = RunDirectory(run).output_file
    return file.read_text() if file.exists() else "no output"


def ended(status: Status) -> bool:
    return status.state.ended


def test_two_nodes_train_one_run(address: str, tiny_llm: Path, make_run: MakeRun) -> None:
    """... cancelled, gone on with by another runner object, as after a restart of the service."""
    settings = Settings(train_runner="ray", ray_address=address)
    runner = RayRunner(settings)
    run = make_run(tiny_llm, max_steps=100_000, epochs=100_000, world_size=2, rank_timeout=60)
    runner.start(run)
    with pytest.raises(Conflict):
        runner.start(run)
    wait_for(runner, run, lambda status: status.step >= 3)
    again = RayRunner(settings)  # the service was killed and came back
    assert again.poll(run).state is TrainState.RUNNING
    runners.cancel(run)
    status = wait_for(again, run, ended)
    assert status.state is TrainState.CANCELLED
    assert len(curve(run / "ranks" / "1")) >= 3
    assert curve(run / "ranks" / "1") == curve(run)
    assert (run / "checkpoints" / f"step-{status.step}" / "parameters-rank1.safetensors").exists()


def test_a_job_that_is_ended_is_a_run_that_died(address: str, tiny_llm: Path, make_run: MakeRun) -> None:
    import httpx

    runner = RayRunner(Settings(train_runner="ray", ray_address=address))
    run = make_run(tiny_llm, max_steps=100_000, epochs=100_000)
    runner.start(run)
    wait_for(runner, run, lambda status: status.step >= 3)
    job = (run / "ray_job").read_text()
    httpx.post(f"{address}/api/jobs/{job}/stop").raise_for_status()
    status = wait_for(runner, run, ended)
    assert status.state is TrainState.DIED
    deadline = time.monotonic() + 20
    while RunDirectory(run).is_locked():  # its process ends with it
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_cluster_that_is_not_there(tiny_llm: Path, make_run: MakeRun) -> None:
    run = make_run(tiny_llm)
    with pytest.raises(InvalidInput, match="Set ray_address"):
        RayRunner(Settings(train_runner="ray"))
    gone = RayRunner(Settings(train_runner="ray", ray_address="http://127.0.0.1:9"))
    with pytest.raises(EngineUnavailable, match="does not answer"):
        gone.start(run)
    assert gone.poll(run).state is TrainState.QUEUED
