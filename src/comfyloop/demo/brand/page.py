"""The brand's page: posters before, after a turn, and after another, with all that was said about them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from comfyloop.demo.page import curve, figures, head, picture, seconds

_STYLE = """
<style>
.posters td { width: 33% } .posters td img { width: 100%; height: auto; border-radius: .4rem }
.prompt { font-size: .85rem; color: var(--dim) }
</style>
"""


def render(report: Mapping[str, Any], posters: Sequence[Sequence[Image.Image]]) -> str:
    """The page of a brand report, pictures and all; `posters` holds those of each of its columns."""
    columns, turns, other = report["columns"], report["turns"], report["background"]
    copy, colours = ([column[name] for column in columns] for name in ("edit_distance", "palette_distance"))
    outcomes = ", ".join(str(turn["outcome"] or "none").replace("_", " ") for turn in turns)
    parts = [
        *head(
            f"{report['brand']}: a brand painter",
            "Style guide, pictures and copy went in, then corrections. No product below was among them: each was "
            "only asked for by its name, with the same noise each time.",
        ),
        _STYLE,
        figures(
            (outcomes, "what became of the turns"),
            (" → ".join(f"{value:.2f}" for value in copy), "edit distance of the copy to the brand's own"),
            (
                " → ".join(f"{value:.3f}" for value in colours),
                "distance of the pictures to the brand's colours",
            ),
            (f"{report['seconds']['demo']:.0f} s", "the whole demo"),
            (f"{other['failed']} of {other['asked']}", "requests of another client failed meanwhile"),
            (f"{report['peak_memory_gib']:.1f} GiB", "peak memory of everything"),
        ),
        "<h2>Posters</h2>",
        _posters(columns, posters),
        "<h2>The style guide</h2>",
        *(f"<p><b>{escape(question)}</b> {escape(answer)}</p>" for question, answer in report["guide"]),
    ]
    for number, turn in enumerate(turns, start=1):
        states = ", ".join(f"{name} {value:.0f} s" for name, value in turn["states"].items())
        parts += [
            f"<h2>Turn {number}: {escape(turn['sent'])}</h2><p class=dim>{escape(states)}</p>",
            curve(turn["log"]),
            f"<pre>{escape(turn['gate_text'])}</pre>",
        ]
    return "\n".join([*parts, seconds(report["seconds"]), "</html>"])


def _posters(columns: Sequence[Mapping[str, Any]], posters: Sequence[Sequence[Image.Image]]) -> str:
    titles = "".join(f"<th>{escape(column['title'])}" for column in columns)
    lines = [f"<table class=posters><tr>{titles}"]
    for row in range(len(posters[0])):
        cells = []
        for column, made in zip(columns, posters, strict=True):
            work = column["works"][row]
            cells.append(
                f"<td>{picture(_webp(made[row]), 'image/webp', work['product'])}<p>{escape(work['copy'])}</p>"
                f"<p class=prompt>{escape(work['prompt'])}</p>"
            )
        lines.append("<tr>" + "".join(cells))
    return "\n".join([*lines, "</table>"])


def _webp(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, format="WEBP", quality=90)
    return data.getvalue()
