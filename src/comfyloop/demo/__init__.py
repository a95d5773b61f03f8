"""The loop, shown end to end, twice: ask, correct, train, judge, swap, and ask what was never corrected."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from comfyloop.client.client import Answer, Client
from comfyloop.client.follow import follow
from comfyloop.demo import page, processes, scenes
from comfyloop.demo.asking import DemoQuestion, ask_all
from comfyloop.demo.clock import Clock
from comfyloop.demo.scenes import Correction, Scene
from comfyloop.gate import render_text
from comfyloop.gate.metrics import edit_distance
from comfyloop.records import BASE, AnswerEdited
from comfyloop.settings import Settings

PROJECT = "demo"
ANSWER_TOKENS = 48


def run(
    settings: Settings, report_dir: Path, home: Path | None = None, *, quiet: bool = False
) -> dict[str, Any]:
    """Play the demo and write demo-report.json and demo-report.html.

    Returns:
        The report. `ok` tells whether every turn's version was promoted, no background request failed, and the edit
        distance on the held-out questions fell with every turn, and by half at least in all.

    Raises:
        ComfyLoopError: The service or its model cannot be started.
    """
    console = Console(stderr=True, quiet=quiet)
    clock = Clock(console)
    all_scenes = scenes.load()
    held_out = [example for scene in all_scenes for example in scene.held_out]
    with (
        processes.directory(home) as where,
        clock.lap("demo"),
        processes.service(
            settings,
            where / "home",
            min(len(scene.corrections) for scene in all_scenes),
            PROJECT,
            examples="off",
        ) as service,
        Client(service.url, settings.token, PROJECT) as client,
    ):
        with clock.lap("start"):
            processes.wait_ready(client, lambda why: console.print(f"[dim]{why}[/]", highlight=False))
        memory = processes.MemoryPeak(service.process.pid)
        memory.start()
        with clock.lap("ask"):
            answer_rounds = [_ask_all(client, held_out)]
            general = _ask_general(client)
        _show(console, "Before", held_out, answer_rounds[0])
        other = processes.Background(service.url, settings.token)
        other.start()
        turns = []
        for number, scene in enumerate(all_scenes, start=1):
            turns.append(_turn(client, scene, clock, console, f"turn {number}", quiet=quiet))
            with clock.lap("ask again"):
                answer_rounds.append(_ask_all(client, held_out))
            _show(
                console,
                f"After turn {number}, from {answer_rounds[-1][0].version}",
                held_out,
                answer_rounds[-1],
            )
        general_after = _ask_general(client)
        swap = _swap_seconds(client)
        other.stop()
        memory.stop()

    report: dict[str, Any] = {
        "scenes": [{"name": s.name, "title": s.title, "voice": s.voice} for s in all_scenes],
        "turns": turns,
        "held_out": [
            _row(e, reference=e.edited) | {"answers": [answers[place].text for answers in answer_rounds]}
            for place, e in enumerate(held_out)
        ],
        "general": [
            {"question": q, "answers": [b.text, a.text]}
            for q, b, a in zip(scenes.GENERAL, general, general_after, strict=True)
        ],
        "edit_distance": [_distance(answers, held_out) for answers in answer_rounds],
        "background": other.report(),
        "peak_memory_gib": round(memory.peak / 2**30, 2),
        "seconds": {"promote_to_first_token": swap} | {n: round(s, 2) for n, s in clock.seconds.items()},
    }
    distances = report["edit_distance"]
    report["ok"] = (
        all(turn["outcome"] == "promoted" for turn in turns)
        and not other.failures
        and all(after < before for before, after in pairwise(distances))
        and distances[-1] <= distances[0] / 2
    )
    report_dir.mkdir(parents=True, exist_ok=True)
    (report_dir / "demo-report.json").write_text(
        json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    (report_dir / "demo-report.html").write_text(page.render(report, scenes.EXAMPLES / "pictures"), "utf-8")
    _summary(console, report)
    return report


def _turn(
    client: Client, scene: Scene, clock: Clock, console: Console, name: str, *, quiet: bool
) -> dict[str, Any]:
    """A scene's corrections, and the turn of the loop that they start."""
    with clock.lap("ask"):
        dull = _ask_all(client, scene.corrections)
    resting = client.loop()
    with clock.lap(name):
        client.send_feedback(
            [
                AnswerEdited(project=PROJECT, author="artist", generation=a.generation, edited=c.edited)
                for c, a in zip(scene.corrections, dull, strict=True)
            ]
        )
        console.print(f"{len(scene.corrections)} corrections sent; the loop starts by itself.")
        loop = follow(client, resting, console, quiet=quiet)
    live, versions = client.versions()
    gate = versions[0].gate if loop.version else None
    gate_text = (
        loop.reason or "There was no gate: no version was trained." if gate is None else render_text(gate)
    )
    console.print(gate_text, highlight=False)
    return {
        "scene": scene.name,
        "outcome": loop.outcome,
        "error": loop.error,
        "live": live,
        "seconds": round(clock.seconds[name], 2),
        "corrections": [
            _row(e, before=a.text) | {"edited": e.edited}
            for e, a in zip(scene.corrections, dull, strict=True)
        ],
        "gate": None if gate is None else gate.model_dump(mode="json"),
        "gate_text": gate_text,
        "log": client.run_log(loop.run)[0] if loop.run else [],
    }


def _ask_all(client: Client, examples: Sequence[Correction]) -> list[Answer]:
    return ask_all(client, [DemoQuestion(e.question, e.picture) for e in examples], ANSWER_TOKENS)


def _ask_general(client: Client) -> list[Answer]:
    return _ask_all(client, [Correction("general", question, None, "") for question in scenes.GENERAL])


def _distance(answers: Sequence[Answer], held_out: Sequence[Correction]) -> float:
    return _mean(edit_distance(a.text, e.edited) for a, e in zip(answers, held_out, strict=True))


def _swap_seconds(client: Client) -> float:
    """Promote again after a roll back, with the background client asking: until the first token is there."""
    number, _ = client.versions()
    if number == BASE:
        return 0.0
    client.rollback()
    started = time.monotonic()
    client.promote(number)
    client.ask("Hello!", max_tokens=1)
    return round(time.monotonic() - started, 3)


def _row(example: Correction, **answers: str) -> dict[str, Any]:
    picture = example.picture.name if example.picture else None
    return {"scene": example.scene, "question": example.question, "picture": picture, **answers}


def _mean(values: Iterator[float]) -> float:
    numbers = list(values)
    return round(sum(numbers) / len(numbers), 4)


def _show(console: Console, title: str, examples: Sequence[Correction], answers: Sequence[Answer]) -> None:
    table = Table("", "question", "answer", title=title, title_justify="left", box=None)
    for example, answer in zip(examples, answers, strict=True):
        table.add_row(example.picture.stem if example.picture else "", example.question, answer.text)
    console.print(table)


def _summary(console: Console, report: dict[str, Any]) -> None:
    other = report["background"]
    moved = " -> ".join(f"{distance:.2f}" for distance in report["edit_distance"])
    turns = " and ".join(
        f"{turn['outcome'] or turn['error']} in {turn['seconds']:.0f} s" for turn in report["turns"]
    )
    console.print(
        f"Turns: {turns}. Edit distance on what was never corrected: {moved}. {other['failed']} of {other['asked']} "
        "requests of another client failed meanwhile.",
        highlight=False,
    )
