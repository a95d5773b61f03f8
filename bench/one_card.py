"""An artist's hour on one device, in minutes: ComfyUI graphs, questions, corrections, and the run that they start.

Three services, one after the other, over the same hour: without training; as it was before anything gave memory back
(no sleep, no stepping aside); and as it is. Everything that takes memory is real: the service's engine on the starter,
a run of the loop, and a painter that stands for ComfyUI: it loads weights of `--painter-mb` for its first graph, keeps
them as ComfyUI does, and computes for each graph. Beside it runs the node pack's own code: it says when ComfyUI works
and what it lacks, wakes the engine ahead, and unloads the painter before a run. There is no card, so the memory is the
processor's: what engine, trainer and painter have between them (PSS), against `--budget-mb`. Quiet times are scaled
like the hour is.

    python bench/one_card.py [--seconds 150] [--budget-mb 3200]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tests' service, the pack

import httpx
import psutil

from bench import engines
from bench.answers_first import ask
from comfyloop import starter
from comfyloop.demo import scenes
from comfyloop.errors import ComfyLoopError
from comfyloop.records import AnswerEdited
from comfyloop.settings import Settings
from comfyloop.train.run.directory import RunDirectory
from comfyui.ahead import WakeAhead
from comfyui.busy import ActivityReporter
from comfyui.freeing import Unloader
from comfyui.service import Service
from tests.acceptance.conftest import RunningService, wait_for

MB = 2**20
SLEEP_AFTER = 10.0
"""Seconds: ten minutes of the hour, scaled."""

PAINTER = """
import sys, time
import numpy as np

weights = None
for line in sys.stdin:
    word, number = line.split()
    if word == "load" and weights is None:
        weights = [np.random.default_rng(i).random(2**20 // 8 * 16) for i in range(int(number) // 16)]
    elif word == "unload":
        weights = None
    elif word == "draw":
        print("began", flush=True)
        until = time.monotonic() + float(number)
        while time.monotonic() < until:
            np.tanh(weights[0][:100_000]).sum()
    print("done", flush=True)
"""


class Painter:
    """ComfyUI's side: a queue, a worker that has weights, and what the pack asks of its host."""

    def __init__(self, megabytes: int, budget: int, taken: list[int]) -> None:
        self.megabytes, self.budget, self.taken = megabytes, budget, taken
        self.queue: list[tuple[str, dict[str, Any], float, float]] = []  # id, graph, seconds, when
        self.starts: list[float] = []
        self.is_loaded = self.works = self.unload_wanted = False
        self.unloads = 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", PAINTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._more = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def put(self, graph: dict[str, Any], seconds: float) -> None:
        with self._more:
            self.queue.append((f"p{time.monotonic()}", graph, seconds, time.monotonic()))
            self._more.notify_all()

    def _tell(self, line: str, wanted: str = "done") -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        if line:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        while self.process.stdout.readline().strip() != wanted:
            if self.process.poll() is not None:
                return

    def _work(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self.queue or self.unload_wanted)
                if self.unload_wanted and not self.queue:
                    self._tell("unload 0")
                    self.is_loaded = self.unload_wanted = False
                    self.unloads += 1
                    continue
            _, graph, seconds, queued = self.queue[0]
            self.starts.append(time.monotonic() - queued)
            self.works = True
            self._tell(f"load {self.megabytes}")
            self.is_loaded = True
            if self.asks is not None and any("Ask" in node["class_type"] for node in graph.values()):
                self.asks()
            self._tell(f"draw {seconds}", "began")
            self._tell("")
            with self._more:
                self.queue.pop(0)
                self.works = bool(self.queue)

    asks: Any = None

    # --- what the pack asks its host

    def coming(self) -> list[tuple[str, dict[str, Any]]]:
        return [(entry[0], entry[1]) for entry in self.queue[:2]]

    def idle(self) -> bool:
        return not self.queue

    def free_bytes(self) -> int:
        return max(0, self.budget - self.taken[-1])

    def memory(self) -> tuple[int, int]:
        needed = self.megabytes * MB
        return needed, (needed if self.is_loaded else 0) + self.free_bytes()

    def unload(self) -> None:
        with self._more:
            self.unload_wanted = True
            self._more.notify_all()


@dataclass
class Hour:
    """What came of one."""

    peak_mb: float = 0
    seconds_over_budget: float = 0
    answers: list[float] = field(default_factory=list)
    node_answers: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    wakes: int = 0
    wake_seconds: float | None = None
    unloads: int = 0
    run: dict[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        def shown(values: list[float]) -> dict[str, float]:
            shares = {"p50": 0.5, "p95": 0.95}
            return {name: round(engines.percentile(values, share), 2) for name, share in shares.items()}

        return {
            "peak_mb": round(self.peak_mb),
            "seconds_over_budget": round(self.seconds_over_budget, 1),
            "answers": len(self.answers),
            "answer_first_token_s": shown(self.answers),
            "ask_nodes": len(self.node_answers),
            "ask_node_first_token_s": shown(self.node_answers),
            "graphs": len(self.starts),
            "graph_start_s": shown(self.starts),
            "wakes": self.wakes,
            "last_wake_s": self.wake_seconds,
            "unloads": self.unloads,
            **self.run,
        }


@contextlib.contextmanager
def watched(service: RunningService, painter: Painter, budget: int, hour: Hour) -> Iterator[None]:
    """What engine, trainer and painter take, five times a second."""
    over = threading.Event()

    def watch() -> None:
        last = time.monotonic()
        while not over.wait(0.2):
            took = 0
            for process in [*service.children("comfyloop.serve.embedded"), *service.trainers()]:
                with contextlib.suppress(psutil.Error):
                    took += process.memory_full_info().pss
            with contextlib.suppress(psutil.Error):
                took += psutil.Process(painter.process.pid).memory_full_info().pss
            painter.taken.append(took)
            now = time.monotonic()
            hour.peak_mb = max(hour.peak_mb, took / MB)
            hour.seconds_over_budget += (now - last) * (took > budget)
            last = now

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def pack(service: RunningService, painter: Painter, gives_way: bool) -> asyncio.AbstractEventLoop:
    """The node pack's talks with the service, in a loop of their own; before anything gave way, who works alone."""
    loop = asyncio.new_event_loop()

    def at() -> Service:
        return Service(service.client.url, timeout=120)

    reporter = ActivityReporter(
        at,
        "comfyui-bench",
        lambda: painter.works,
        lambda: True,
        painter.memory if gives_way else lambda: (0, 0),
    )
    parts: list[Any] = [reporter]
    if gives_way:
        unloader = Unloader(at, lambda: True, painter.idle, painter.free_bytes, painter.unload)
        parts += [WakeAhead(at, painter.coming, lambda: "acme", lambda: True), unloader]

        async def follow() -> None:
            async with at().events() as events:
                async for event in events:
                    unloader.on_event(event)

        parts.append(type("Follower", (), {"run": staticmethod(follow)}))

    def run() -> None:
        asyncio.set_event_loop(loop)
        tasks = [loop.create_task(part.run()) for part in parts]
        loop.run_forever()
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()

    threading.Thread(target=run, daemon=True).start()
    return loop


CORRECTIONS = [example for scene in scenes.load() for example in scene.corrections]


def correct(service: RunningService) -> None:
    """What starts a run."""
    for example in CORRECTIONS:
        answer = service.client.ask(example.question, max_tokens=2)
        edited = AnswerEdited(
            project="acme", author="bench", generation=answer.generation, edited=example.edited
        )
        service.client.send_feedback([edited])


PLAIN = {"1": {"class_type": "KSampler", "inputs": {}}}
ASKING = {"1": {"class_type": "ComfyLoopAsk", "inputs": {"model": "acme"}}, **{"2": PLAIN["1"]}}


def replay(work: Path, given: argparse.Namespace, *, trains: bool, gives_way: bool) -> Hour:
    hour, budget = Hour(), given.budget_mb * MB
    taken: list[int] = [0]
    service = RunningService(
        work / f"{trains}-{gives_way}",
        project="acme",
        model=starter.ensure(Settings().cache_dir),
        cache_dir=Settings().cache_dir,
        trigger_samples=len(CORRECTIONS),
        epochs=500,
        warm_trainer=False,
        engine_sleep_after=SLEEP_AFTER / 60 if gives_way else 0,
        step_aside_after=2 if gives_way else 0,
    )
    painter = Painter(given.painter_mb, budget, taken)
    chance, number = random.Random(3), 1000
    try:
        service.start()
        service.wait_ready(600)
        url = service.client.url

        def node() -> None:
            with contextlib.suppress(httpx.HTTPError):
                hour.node_answers.append(ask(url, chance.randrange(10**6)))

        painter.asks = node
        run: RunDirectory | None = None
        if trains:
            correct(service)
            wait_for(lambda: service.client.loop().state == "training", 600, service.what_happened)
            run = RunDirectory(service.home / "runs" / service.client.loop().run)
        loop = pack(service, painter, gives_way)
        with watched(service, painter, budget, hour):
            if run is not None:
                wait_for(lambda: run.read_status().step > 0, 900, service.what_happened)
            began, step = time.monotonic(), run.read_status().step if run else 0
            times = random.Random(7)
            while time.monotonic() - began < given.seconds:
                # a burst of questions, a graph or two, and a while in which the person does something else
                for _ in range(times.randint(1, 3)):
                    number += 1
                    hour.answers.append(ask(url, number))
                    time.sleep(times.uniform(0.5, 2.0))
                for _ in range(times.randint(1, 2)):
                    painter.put(ASKING if times.random() < 0.4 else PLAIN, times.uniform(4, 8))
                wait_for(painter.idle, 600)
                time.sleep(times.uniform(5, 20))
            seconds = time.monotonic() - began
            status = run.read_status() if run is not None else None
        loop.call_soon_threadsafe(loop.stop)
        rest = service.client.is_sleeping()["engines"]
        told = next(iter(rest.values()))
        hour.wakes, hour.wake_seconds = told["wakes"], told["wake_seconds"]
        if status is not None:
            hour.run = {
                "seconds": round(seconds),
                "run_steps": status.step - step,
                "run_held_s": round(status.held_seconds),
                "run_stepping_aside_s": round(status.aside_seconds, 1),
                "run_share_lost_to_stepping_aside": round(status.aside_seconds / seconds, 3),
            }
        hour.starts, hour.unloads = painter.starts, painter.unloads
    finally:
        with contextlib.suppress(ComfyLoopError):
            service.stop()
        painter.process.kill()
    return hour


WAYS = {
    "without training": {"trains": False, "gives_way": False},
    "before": {"trains": True, "gives_way": False},
    "now": {"trains": True, "gives_way": True},
}


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--seconds", type=float, default=150)
    options.add_argument("--budget-mb", type=int, default=3200)
    options.add_argument("--painter-mb", type=int, default=1024)
    options.add_argument("--only", nargs="*", default=list(WAYS), choices=list(WAYS), help="The hours.")
    given = options.parse_args()
    work = Path(tempfile.mkdtemp(prefix="bench-one-card-"))
    try:
        hours = {name: replay(work, given, **WAYS[name]).told() for name in given.only}
    finally:
        shutil.rmtree(work, ignore_errors=True)
    told = {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "budget_mb": given.budget_mb,
        "painter_mb": given.painter_mb,
        "hours": hours,
    }
    keys = list(dict.fromkeys(key for hour in hours.values() for key in hour))
    rows = [
        f"| {key} | " + " | ".join(str(hour.get(key, "")) for hour in hours.values()) + " |" for key in keys
    ]
    head = f"| budget {given.budget_mb} MB | " + " | ".join(hours) + " |"
    engines.write("one_card", told, "\n".join([head, "|---" * (len(hours) + 1) + "|", *rows]))


if __name__ == "__main__":
    main()
