"""The brand's page: posters before, after a turn, and after another, with all that was said about them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from comfyloop.demo.page import data_url, template


def render(report: Mapping[str, Any], posters: Sequence[Sequence[Image.Image]]) -> str:
    """The page of a brand report, pictures and all; `posters` holds those of each of its columns."""
    columns, turns, other = report["columns"], report["turns"], report["background"]
    copy, colours = ([column[name] for column in columns] for name in ("edit_distance", "palette_distance"))
    numbers = (
        (
            ", ".join(str(turn["outcome"] or "none").replace("_", " ") for turn in turns),
            "what became of the turns",
        ),
        (" → ".join(f"{value:.2f}" for value in copy), "edit distance of the copy to the brand's own"),
        (" → ".join(f"{value:.3f}" for value in colours), "distance of the pictures to the brand's colours"),
        (f"{report['seconds']['demo']:.0f} s", "the whole demo"),
        (f"{other['failed']} of {other['asked']}", "requests of another client failed meanwhile"),
        (f"{report['peak_memory_gib']:.1f} GiB", "peak memory of everything"),
    )
    return str(
        template("brand.html").render(
            report=report,
            numbers=numbers,
            rows=[
                [data_url(_webp(picture), "image/webp") for picture in row]
                for row in zip(*posters, strict=True)
            ],
        )
    )


def _webp(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, format="WEBP", quality=90)
    return data.getvalue()
