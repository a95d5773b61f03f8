"""The loop, shown end to end: ask, correct, train, judge, swap, and ask what was never corrected."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from comfyloop.client import Answer, Client
from comfyloop.demo import page, processes, scenes
from comfyloop.demo.asking import Question, ask_all
from comfyloop.demo.clock import Clock
from comfyloop.demo.scenes import Example
from comfyloop.follow import follow
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
        The report. `ok` tells whether the new version was promoted, no background request failed and the edit
        distance on the held-out questions fell by half at least.

    Raises:
        ComfyLoopError: The service or its model cannot be started.
    """
    console = Console(stderr=True, quiet=quiet)
    clock = Clock(console)
    told = scenes.load()
    corrections = [example for scene in told for example in scene.corrections]
    held_out = [example for scene in told for example in scene.held_out]
    report: dict[str, Any] = {"scenes": [{"name": s.name, "title": s.title, "voice": s.voice} for s in told]}

    with (
        processes.directory(home) as where,
        clock.lap("demo"),
        processes.service(settings, where / "home", len(corrections), PROJECT, examples="off") as service,
        Client(service.url, settings.token, PROJECT) as client,
    ):
        with clock.lap("start"):
            processes.wait_ready(client, lambda why: console.print(f"[dim]{why}[/]", highlight=False))
        memory = processes.Memory(service.process.pid)
        memory.start()
        with clock.lap("ask"):
            dull = _ask_all(client, corrections)
            before = _ask_all(client, held_out)
            general = _ask_all(client, [Example("general", q, None, "") for q in scenes.GENERAL])
        _show(console, "Before", held_out, before)

        other = processes.Background(service.url, settings.token)
        other.start()
        resting = client.loop()
        with clock.lap("loop"):
            client.send_feedback(
                [
                    AnswerEdited(project=PROJECT, author="artist", generation=a.generation, edited=c.edited)
                    for c, a in zip(corrections, dull, strict=True)
                ]
            )
            console.print(f"{len(corrections)} corrections sent; the loop starts by itself.")
            loop = follow(client, resting, console, quiet=quiet)
        with clock.lap("ask again"):
            after = _ask_all(client, held_out)
            general_after = _ask_all(client, [Example("general", q, None, "") for q in scenes.GENERAL])
        report["seconds"] = {"promote_to_first_token": _swap_seconds(client)}
        other.stop()
        memory.stop()
        live, versions = client.versions()
        gate = versions[0].gate if versions else None
        log = client.run_log(loop.run)[0] if loop.run else []

    _show(console, f"After, from {after[0].version}", held_out, after)
    distance = {"before": _distance(before, held_out), "after": _distance(after, held_out)}
    report |= {
        "outcome": loop.outcome,
        "error": loop.error,
        "live": live,
        "corrections": [
            _row(e, before=a.text) | {"edited": e.edited} for e, a in zip(corrections, dull, strict=True)
        ],
        "held_out": [
            _row(e, before=b.text, after=a.text) | {"reference": e.edited}
            for e, b, a in zip(held_out, before, after, strict=True)
        ],
        "general": [
            {"question": q, "before": b.text, "after": a.text}
            for q, b, a in zip(scenes.GENERAL, general, general_after, strict=True)
        ],
        "edit_distance": distance,
        "gate": None if gate is None else gate.model_dump(mode="json"),
        "gate_text": "There was no gate: no version was trained." if gate is None else render_text(gate),
        "background": other.report(),
        "log": log,
        "peak_memory_gib": round(memory.peak / 2**30, 2),
        "seconds": report["seconds"] | {name: round(s, 2) for name, s in clock.seconds.items()},
    }
    report["ok"] = (
        loop.outcome == "promoted" and not other.failures and distance["after"] <= distance["before"] / 2
    )
    report_dir.mkdir(parents=True, exist_ok=True)
    (report_dir / "demo-report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    (report_dir / "demo-report.html").write_text(page.render(report, scenes.EXAMPLES / "pictures"))
    _summary(console, report)
    return report


def _ask_all(client: Client, examples: Sequence[Example]) -> list[Answer]:
    return ask_all(client, [Question(e.question, e.picture) for e in examples], ANSWER_TOKENS)


def _distance(answers: Sequence[Answer], held_out: Sequence[Example]) -> float:
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


def _row(example: Example, **answers: str) -> dict[str, Any]:
    picture = example.picture.name if example.picture else None
    return {"scene": example.scene, "question": example.question, "picture": picture, **answers}


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return round(sum(found) / len(found), 4)


def _show(console: Console, title: str, examples: Sequence[Example], answers: Sequence[Answer]) -> None:
    table = Table("", "question", "answer", title=title, title_justify="left", box=None)
    for example, answer in zip(examples, answers, strict=True):
        table.add_row(example.picture.stem if example.picture else "", example.question, answer.text)
    console.print(table)


def _summary(console: Console, report: dict[str, Any]) -> None:
    console.print(report["gate_text"], highlight=False)
    moved, other = report["edit_distance"], report["background"]
    console.print(
        f"Outcome: {report['outcome'] or report['error']}. Edit distance on what was never corrected: "
        f"{moved['before']:.2f} -> {moved['after']:.2f}. {other['failed']} of {other['asked']} requests of "
        f"another client failed meanwhile. The loop took {report['seconds']['loop']:.0f} s.",
        highlight=False,
    )
