"""The before/after page: one HTML file, pictures and all."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a8f4c; --dim: #888; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.8rem; margin-bottom: .2rem } h2 { margin-top: 2.5rem } .dim { color: var(--dim) }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0 }
.figure { border: 1px solid var(--line); border-radius: .6rem; padding: .7rem 1rem; min-width: 9rem }
.figure b { display: block; font-size: 1.5rem }
table { border-collapse: collapse; width: 100% }
td, th { border-bottom: 1px solid var(--line); padding: .6rem; text-align: left; vertical-align: top }
td img { width: 96px; height: 96px; object-fit: cover; border-radius: .5rem }
.after { color: var(--good); font-weight: 600 } pre { white-space: pre-wrap }
svg { width: 100%; height: 180px }
"""


def render(report: Mapping[str, Any], pictures: Path) -> str:
    """The page of a demo report; `pictures` is where the file names in its items are found."""
    turns = report["turns"]
    corrections = " and ".join(str(len(turn["corrections"])) for turn in turns)
    parts = [
        *head(
            "ComfyLoop, before and after",
            f"{corrections} corrections were sent, a turn of the loop after each. Nothing below was "
            "corrected: these questions were only asked, before and after each turn.",
        ),
        figures(
            (
                " → ".join(f"{distance:.2f}" for distance in report["edit_distance"]),
                "edit distance to the person's own answers",
            ),
            (
                " and ".join(f"{turn['seconds']:.0f} s" for turn in turns),
                "from the corrections to the new version's answers",
            ),
            (
                f"{report['background']['failed']} of {report['background']['asked']}",
                "requests failed meanwhile",
            ),
            (f"{report['seconds']['promote_to_first_token']:.2f} s", "promote to first token"),
            (f"{report['peak_memory_gib']:.1f} GiB", "peak memory, service and training"),
        ),
    ]
    columns = ["Before", *(f"After turn {number}" for number in range(1, len(turns) + 1))]
    for number, scene in enumerate(report["scenes"], start=1):
        rows = [item for item in report["held_out"] if item["scene"] == scene["name"]]
        voice = f"{scene['voice']} Corrected before turn {number}."
        parts += [f"<h2>{escape(scene['title'])}</h2><p class=dim>{escape(voice)}</p>"]
        parts += [_table(rows, columns, pictures, since=number)]
    parts += [
        "<h2>What has nothing to do with it</h2>",
        _table(report["general"], ["Before", "After both turns"], pictures, since=2),
    ]
    for number, turn in enumerate(turns, start=1):
        parts += [f"<h2>Turn {number}: the loss</h2>", curve(turn["log"])]
        parts += [f"<h2>Turn {number}: what the gate said</h2>", f"<pre>{escape(turn['gate_text'])}</pre>"]
    parts += [seconds(report["seconds"]), "</html>"]
    return "\n".join(parts)


def head(title: str, below: str) -> list[str]:
    """Everything down to the heading and the line below it."""
    return [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>",
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        f"<p class=dim>{escape(below)}</p>",
    ]


def figures(*pairs: tuple[str, str]) -> str:
    """A row of large numbers, each with what it says."""
    boxes = (f"<div class=figure><b>{escape(number)}</b>{escape(what)}</div>" for number, what in pairs)
    return "\n".join(["<div class=figures>", *boxes, "</div>"])


def picture(data: bytes, media_type: str, name: str) -> str:
    encoded = base64.b64encode(data).decode("ascii")
    return f"<img alt='{escape(name)}' src='data:{media_type};base64,{encoded}'>"


def seconds(stages: Mapping[str, float]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}<td>{value:.1f} s" for name, value in stages.items())
    return f"<h2>Seconds</h2><table>{rows}</table>"


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], pictures: Path, *, since: int) -> str:
    """A row a question; its answers stand under `columns`, those of versions that were taught it set off."""
    lines = ["<table><tr><th><th>Question" + "".join(f"<th>{escape(column)}" for column in columns)]
    for row in rows:
        shown = ""
        if row.get("picture"):
            shown = picture((pictures / row["picture"]).read_bytes(), "image/webp", row["picture"])
        first, *later = (escape(answer) for answer in row["answers"])
        after = "".join(
            f"<td{' class=after' if number >= since else ''}>{answer}"
            for number, answer in enumerate(later, 1)
        )
        lines.append(f"<tr><td>{shown}<td>{escape(row['question'])}<td>{first}{after}")
    return "\n".join([*lines, "</table>"])


def curve(log: Sequence[Mapping[str, Any]]) -> str:
    """The training loss over the steps; of a joint run a curve a side."""
    sides = dict.fromkeys(str(line.get("side", "")) for line in log)
    return "\n".join(_curve(side, [x for x in log if str(x.get("side", "")) == side]) for side in sides)


def _curve(side: str, log: Sequence[Mapping[str, Any]]) -> str:
    points = [(float(x["step"]), float(x["loss"])) for x in log if x.get("loss") is not None]
    if not points:
        return ""
    right, top = max(s for s, _ in points), max(loss for _, loss in points)
    path = " ".join(f"{s / right * 980 + 10:.1f},{170 - loss / top * 160:.1f}" for s, loss in points)
    begin = f"{side} side: " if side else ""
    return (
        "<svg viewBox='0 0 1000 180' role=img aria-label='training loss by step'>"
        f"<polyline fill=none stroke='#1a8f4c' stroke-width=3 points='{path}'/></svg>"
        f"<p class=dim>{begin}{points[0][1]:.2f} at step {points[0][0]:.0f}, {points[-1][1]:.2f} at the end</p>"
    )
