"""How things look in a terminal: tables, the lineage of versions, a loss curve, a gate report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from comfyloop.records import (
    BASE,
    CanaryReport,
    Forgotten,
    Loop,
    LoopStatus,
    Run,
    Snapshot,
    Version,
    VersionState,
)
from comfyloop.train.swift.command_line import FromSwift

COLOURS = {"live": "green", "candidate": "cyan", "rejected": "red", "retired": "dim", "failed": "red"}
BLOCKS = " ▁▂▃▄▅▆▇█"


def state(word: str) -> Text:
    return Text(word, style=COLOURS.get(word, ""))


def when(at: datetime | None) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M") if at else ""


def lineage(live: int, versions: Sequence[Version]) -> RenderableType:
    """The versions as a tree: each under the version that it was trained from."""
    children: dict[int, list[Version]] = {}
    for version in sorted(versions, key=lambda v: v.number):
        children.setdefault(version.parent, []).append(version)
    numbers = {version.number for version in versions}
    root = Tree(Text("base", style="green bold" if live == BASE else ""))

    def grow(tree: Tree, number: int) -> None:
        for version in children.get(number, []):
            grow(tree.add(_version_line(version)), version.number)

    for parent in sorted(children):
        if parent == BASE:
            grow(root, BASE)
        elif parent not in numbers:  # an older one that is not in this listing
            grow(root.add(f"… {parent}"), parent)
    return root


def _version_line(version: Version) -> Text:
    line = Text.assemble(
        (f"v{version.number} ", "bold"), state(version.state), ("  " + when(version.created_at), "dim")
    )
    if (origin := version.origin) is not None:
        line.append(f"  {origin.project}@{origin.number} of {origin.publisher}", style="magenta")
    if version.gate is not None and version.gate.reasons:
        line.append(f"  {version.gate.reasons[0]}", style="dim")
    elif version.state is VersionState.CANDIDATE:
        line.append("  not judged yet", style="dim")
    return line


def snapshot(record: Snapshot) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_row("snapshot", record.id[:12])
    table.add_row("training samples", f"{record.train} and {record.replay} of replay")
    table.add_row("held out", str(record.holdout))
    for reason, count in record.dropped.items():
        table.add_row("left out", f"{count} {reason.replace('_', ' ')}")
    table.add_row("in", record.path)
    return table


def runs(records: Iterable[Run]) -> Table:
    table = Table("run", "state", "recipe", "from", "begun", "error", box=None)
    for run in records:
        origin = "base" if run.parent == BASE else f"v{run.parent}"
        table.add_row(run.id, state(run.state), run.recipe, origin, when(run.created_at), run.error)
    return table


def loop(status: Loop) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_row("project", status.project)
    table.add_row("loop", status.state)
    if status.outcome:
        table.add_row("last turn", status.outcome.replace("_", " "))
    if status.reason:
        table.add_row("because", status.reason)
    if status.note:
        table.add_row("note", status.note)
    if status.version and status.outcome in ("rejected", "ask", "not_enough_evidence", "waiting"):
        table.add_row("", f"comfyloop gate show {status.version} shows what was seen.")
    if status.error:
        table.add_row("because", Text(status.error, style="red"))
    if isinstance(status, LoopStatus) and status.canary is not None:
        table.add_row("canary", canary(status.canary))
    return table


def canary(report: CanaryReport) -> str:
    """How a version does that is tried beside the live one, in a line."""
    sentence = report.reason or "Nothing was said about its answers yet."
    if report.canary_outcomes and report.live_outcomes:
        sentence += f" (difference {report.low:+.2f} to {report.high:+.2f})"
    return f"v{report.version} beside v{report.live}, {report.share:.0%} of the conversations: {sentence}"


def forgotten(outcome: Forgotten) -> list[RenderableType]:
    """What was taken back, in sentences."""
    count = len(outcome.feedback)
    lines = [f"{outcome.project}: {count} piece{'s' * (count != 1)} of feedback deleted."]
    if outcome.versions:
        numbers = ", ".join(f"v{number}" for number in outcome.versions)
        lines.append(f"Withdrawn, since they learned from it: {numbers}.")
    else:
        lines.append("No version had learned from it.")
    if outcome.live != outcome.previous:
        now = f"v{outcome.live}" if outcome.live else "the base model"
        lines.append(f"v{outcome.previous} was live; {now} answers now.")
    if outcome.retrains:
        lines.append("A turn begins that learns the rest without it.")
    return list(lines)


def bundle(manifest: Mapping[str, Any], files: Mapping[str, int]) -> list[str]:
    """What a bundle holds, a line each."""
    bases = [manifest[side]["name"] for side in ("text_base", "image_base") if manifest[side]]
    lines = [
        f"{manifest['project']}@{manifest['number']} of {manifest['publisher']}, for {' and '.join(bases)}",
        f"licence: {manifest['licence'] or 'none given'}",
        *([f"trigger words: {manifest['trigger_words']}"] if manifest["trigger_words"] else []),
        *(f"  {name:<34} {size:>12,} bytes{_NOTES.get(name, '')}" for name, size in files.items()),
    ]
    inside = [what for name, what in _PERSONAL.items() if name in files]
    lines.append(
        f"With {' and '.join(inside)}." if inside else "No prompts, answers or pictures, and no names."
    )
    return [escape(line) for line in lines]


def suites(standings: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What a version and its base model gave on suites."""
    table = Table("suite", "items", "base", "this version", box=None)
    for one in standings:
        table.add_row(Text(one["suite"]), str(one["items"]), f"{one['base']:.3f}", f"{one['this']:.3f}")
    return table


def index(entries: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """The bundles of a community's index; the bad ones as such."""
    if not entries:
        return ["There are no bundles here yet."]
    table = Table("version", "by", "for", "licence", "gate", "file", box=None)
    for entry in entries:
        if entry["problem"]:
            table.add_row(
                Text("bad", style="red"), "", "", "", "", Text(f"{entry['file']}: {entry['problem']}", "red")
            )
            continue
        bases = " + ".join(entry[side]["name"] for side in ("text_base", "image_base") if entry[side])
        cells = (
            entry["name"],
            entry["publisher"],
            bases,
            entry["licence"] or "none",
            entry["verdict"],
            entry["file"],
        )
        table.add_row(*map(escape, cells))
    return [table]


_PERSONAL = {
    "contact-sheet.png": "pictures (the contact sheet)",
    "examples.json": "prompts and answers (examples)",
}
_NOTES = {"gate.json": "  (verdict and measures)", "spec.json": "  (how it was trained)"}


def loss_curve(lines: Sequence[Mapping[str, Any]], width: int = 60, height: int = 8) -> RenderableType:
    """The training loss over the steps, in block characters; held-out loss beside its last value. Of a joint run
    one curve a side."""
    sides = dict.fromkeys(str(line.get("side", "")) for line in lines)
    if len(sides) > 1:
        curves = ([x for x in lines if str(x.get("side", "")) == side] for side in sides)
        return Group(
            *(Group(Text(side), loss_curve(x, width, height)) for side, x in zip(sides, curves, strict=True))
        )
    points = [(int(x["step"]), float(x["loss"])) for x in lines if x.get("loss") is not None]
    if not points:
        return Text("No step has been taken yet.", style="dim")
    values = _resample([loss for _, loss in points], width)
    top, bottom = max(values), min(0.0, min(values))
    span = (top - bottom) or 1.0
    rows = []
    for row in range(height, 0, -1):
        low = (row - 1) / height
        cells = "".join(_block(((value - bottom) / span - low) * height) for value in values)
        label = f"{top:7.3f} " if row == height else f"{bottom:7.3f} " if row == 1 else " " * 8
        rows.append(Text.assemble((label, "dim"), (cells, "cyan")))
    last = f"step {points[-1][0]}   loss {points[0][1]:.3f} -> {points[-1][1]:.3f}"
    held = [float(x["holdout_loss"]) for x in lines if x.get("holdout_loss") is not None]
    if held:
        last += f"   held out {held[0]:.3f} -> {held[-1]:.3f}"
    return Group(*rows, Text(" " * 8 + last, style="dim"))


def _resample(values: Sequence[float], width: int) -> list[float]:
    """At most `width` values: means of equal stretches, so that no spike is dropped unseen."""
    if len(values) <= width:
        return list(values)
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]


def _block(filled: float) -> str:
    return BLOCKS[max(0, min(8, math.ceil(filled * 8)))]


def from_swift(command: FromSwift) -> list[str]:
    """What became of an ms-swift command line, a line each."""
    lines = [
        escape(
            f"--{flag}: {became}" + (f" (--{command.renamed[flag]} today)" if flag in command.renamed else "")
        )
        for flag, became in command.honoured.items()
    ]
    lines += [
        f"--{old} is --{new} today" for old, new in command.renamed.items() if old not in command.honoured
    ]
    lines += [f"[dim]no --{flag}: {escape(how)}[/]" for flag, how in command.differs.items()]
    lines += [f"[dim]--{flag} makes no difference: {why}[/]" for flag, why in command.needless.items()]
    lines += [
        f"[yellow]--{escape(flag)} cannot be honoured: {escape(why)}[/]"
        for flag, why in command.refused.items()
    ]
    return lines
