"""Time to the first token of a chat while a run trains on the same machine, against the same without it.

A whole service on the starter, a real run; somebody asks now and then. The trainer is frozen every other turn, which
stands for "no training", so that what else the machine does hits both alike.

    python bench/answers_first.py [--turns 6] [--questions 10]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tests' service

import httpx
import psutil

from bench import engines
from comfyloop import starter
from comfyloop.demo import scenes
from comfyloop.records import AnswerEdited
from comfyloop.settings import Settings
from comfyloop.train.run.directory import RunDirectory
from tests.acceptance.conftest import RunningService, wait_for


def begin_training(service: RunningService) -> psutil.Process:
    """Correct the demo's answers, which starts the loop; the trainer, once it takes steps."""
    for scene in scenes.load():
        for example in scene.corrections:
            answer = service.client.ask(example.question, max_tokens=8)
            service.client.send_feedback(
                [
                    AnswerEdited(
                        project="acme", author="bench", generation=answer.generation, edited=example.edited
                    )
                ]
            )
    wait_for(lambda: service.client.loop().state == "training", 300, service.what_happened)
    run = RunDirectory(service.home / "runs" / service.client.loop().run)
    wait_for(lambda: run.read_status().step > 0, 300, service.what_happened)
    return service.trainers()[0]


def ask(url: str, number: int) -> float:
    """Seconds to the first token of a short answer to a question that was not asked before."""
    question = f"Write a caption for picture number {number} of a lighthouse in a storm, in one sentence."
    body = {
        "model": "acme",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 16,
        "stream": True,
    }
    began, first = time.monotonic(), 0.0
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=120) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if '"content":"' in line and '"content":""' not in line and not first:
                first = time.monotonic() - began
    return first


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--turns", type=int, default=6)
    options.add_argument("--questions", type=int, default=10)
    arguments = options.parse_args()
    work = Path(tempfile.mkdtemp(prefix="bench-answers-"))
    corrections = sum(len(scene.corrections) for scene in scenes.load())
    service = RunningService(
        work / "home",
        project="acme",
        model=starter.ensure(Settings().cache_dir),
        cache_dir=Settings().cache_dir,
        trigger_samples=corrections,
        epochs=500,
    )
    seconds: dict[str, list[float]] = {"frozen": [], "training": []}
    steps = {"frozen": 0, "training": 0}
    number = 0
    try:
        service.start()
        service.wait_ready(300)
        trainer = begin_training(service)
        run = RunDirectory(service.home / "runs" / service.client.loop().run)
        for turn in range(2 * arguments.turns):
            how = ("frozen", "training")[turn % 2]
            (trainer.suspend if how == "frozen" else trainer.resume)()
            before = run.read_status().step
            for _ in range(arguments.questions):
                time.sleep(random.Random(number).uniform(1.5, 3.5))
                number += 1
                seconds[how].append(ask(service.client.url, number))
            steps[how] += run.read_status().step - before
        trainer.resume()
    finally:
        service.stop()
        shutil.rmtree(work, ignore_errors=True)
    p95 = {how: 1000 * engines.percentile(values, 0.95) for how, values in seconds.items()}
    p50 = {how: 1000 * engines.percentile(values, 0.5) for how, values in seconds.items()}
    measured = {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "questions": len(seconds["training"]),
        "first_token_p50_ms": {how: round(value) for how, value in p50.items()},
        "first_token_p95_ms": {how: round(value) for how, value in p95.items()},
        "p95_ratio": round(p95["training"] / p95["frozen"], 3),
        "steps_trained_meanwhile": steps["training"],
    }
    rows = [f"| {key} | {value} |" for key, value in measured.items()]
    engines.write("answers_first", measured, "\n".join(["| what | measured |", "|---|---|", *rows]))


if __name__ == "__main__":
    main()
