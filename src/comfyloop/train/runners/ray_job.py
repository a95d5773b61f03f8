"""`python -m comfyloop.train.runners.ray_job RUN_DIR`: the job on a Ray cluster that executes a run.

It asks Ray for as many places as the run has ranks, spread over the nodes, and has each start
`python -m comfyloop.train RUN_DIR` with the variables that torchrun would set. All ranks end with the first
that fails, and with the job.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from comfyloop import platforms
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.specs.files import read_spec


def main(arguments: list[str]) -> int:
    run = RunDirectory(arguments[0])
    spec = read_spec(run.path)
    ray.init(address="auto", log_to_driver=False)
    place: dict[str, float] = {"CPU": max(1, spec.threads)}
    if ray.cluster_resources().get("GPU"):
        place["GPU"] = 1
    group = placement_group([place] * spec.world_size, strategy="SPREAD")
    ray.get(group.ready())

    def at(bundle: int) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        return {"num_cpus": place["CPU"], "num_gpus": place.get("GPU", 0), "scheduling_strategy": strategy}

    ranks = []
    try:
        variables: dict[str, str] = {}
        if spec.world_size > 1:
            address, port = ray.get(meeting_point.options(**at(0)).remote())
            variables = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "WORLD_SIZE": str(spec.world_size)}
        for number in range(spec.world_size):
            rank_variables = variables | {"RANK": str(number), "LOCAL_RANK": "0"} if variables else {}
            ranks.append(train.options(**at(number)).remote(str(run.path), rank_variables))
        waiting, codes = list(ranks), list[int]()
        while waiting and not any(codes):
            finished, waiting = ray.wait(waiting)
            codes += ray.get(finished)
        return max(codes, key=abs)
    finally:
        for rank in ranks:
            ray.cancel(rank, force=True)
        remove_placement_group(group)


@ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
def meeting_point() -> tuple[str, int]:
    """Where rank 0 will listen: its node's address and a free port."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


@ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
def train(run_dir: str, variables: dict[str, str]) -> int:
    """One rank as a process of its own, which ends when this task is ended; its exit code."""

    with Path(run_dir, "train.out").open("ab") as output:
        return subprocess.run(
            [sys.executable, "-m", "comfyloop.train", run_dir],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            **platforms.ending_with_us(),
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
