"""The before/after page: one HTML file in the desk's look, pictures and all."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from comfyloop.web.assets import FOLDER

_OWN_STYLE = """
.report { display: block; padding: 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: var(--s4); }
.figures > div { display: grid; gap: var(--s2); align-content: start; }
.figures .figure { font-size: 1.75rem; line-height: 1.15; }
.told { min-width: 44rem; }
.told :is(td, th) { padding: var(--s3) var(--s4) var(--s3) 0; border-top: 1px solid var(--line); vertical-align: top; }
.told thead th { border: 0; color: var(--dim); font-size: .8125rem; }
.told tbody th { width: 24%; }
.told tbody th .thumb { display: block; margin-bottom: var(--s2); }
.told td { white-space: pre-line; overflow-wrap: anywhere; }
.loss svg { display: block; width: 100%; height: 9rem; }
.loss polyline { fill: none; stroke: var(--chart-1); stroke-width: 2; vector-effect: non-scaling-stroke; }
.posters :is(td, th) { padding: 0 var(--s4) var(--s4) 0; vertical-align: top; min-width: 15rem; }
.posters img { width: 100%; border-radius: var(--round); display: block; margin-bottom: var(--s2); }
.narrow { width: auto; margin-top: var(--s2); }
"""


def render(report: Mapping[str, Any], pictures: Path) -> str:
    """The page of a demo report; `pictures` is where the file names in its items are found."""
    turns, other = report["turns"], report["background"]
    numbers = (
        (
            " → ".join(f"{distance:.2f}" for distance in report["edit_distance"]),
            "edit distance to the person's own answers",
        ),
        (
            " and ".join(f"{turn['seconds']:.0f} s" for turn in turns),
            "from the corrections to the new version's answers",
        ),
        (f"{other['failed']} of {other['asked']}", "requests failed meanwhile"),
        (f"{report['seconds']['promote_to_first_token']:.2f} s", "promote to first token"),
        (f"{report['peak_memory_gib']:.1f} GiB", "peak memory, service and training"),
    )
    html = template("demo.html").render(
        report=report,
        numbers=numbers,
        columns=["Before", *(f"After turn {number}" for number in range(1, len(turns) + 1))],
        picture=lambda name: data_url((pictures / name).read_bytes(), "image/webp"),
    )
    return html


def template(name: str) -> Template:
    """A template of a page that stands alone: its style is in it, its fonts are the reader's."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"style": Markup(_style()), "curves": curves}
    return environment.get_template(name)


def data_url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def curves(log: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The training loss over the steps, of a joint run of each side: points of a polyline, and a sentence."""
    sides = dict.fromkeys(str(line.get("side", "")) for line in log)
    all_curves = (_curve(side, [x for x in log if str(x.get("side", "")) == side]) for side in sides)
    return [curve for curve in all_curves if curve]


def _curve(side: str, log: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    points = [(float(x["step"]), float(x["loss"])) for x in log if x.get("loss") is not None]
    if not points:
        return {}
    right, top = max(s for s, _ in points), max(loss for _, loss in points)
    path = " ".join(f"{s / right * 980 + 10:.1f},{170 - loss / top * 160:.1f}" for s, loss in points)
    begin = f"Loss of the {side} side" if side else "Loss"
    return {
        "points": path,
        "told": f"{begin}: {points[0][1]:.2f} at step {points[0][0]:.0f}, {points[-1][1]:.2f} at the end",
    }


@cache
def _style() -> str:
    desk = (FOLDER / "desk.css").read_text("utf-8")
    return re.sub(r"@font-face \{[^}]*\}\n?", "", desk) + _OWN_STYLE
