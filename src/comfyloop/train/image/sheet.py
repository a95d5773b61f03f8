"""A contact sheet: pictures side by side under the words from which they were made, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, LINE, LINES = 256, 8, 15, 3
"""In pixels: the most of a picture's side, what is between pictures, and a line of text; lines a prompt."""

FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "msyh.ttc", "PingFang.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf",
)  # fmt: skip
"""The first that this machine has is written in: prompts may be in Chinese, which Pillow's own font lacks."""


@dataclass(frozen=True)
class Shown:
    """One row: as many pictures (RGB) as the sheet has columns, each with what it was made from."""

    pictures: tuple[Image.Image, ...]
    prompts: tuple[str, ...]


def contact_sheet(columns: Sequence[str], rows: Sequence[Shown]) -> Image.Image:
    """An RGB picture with a heading a column."""
    width, height = SIDE + GAP, SIDE + GAP + LINE * LINES
    canvas = Image.new("RGB", (GAP + width * len(columns), GAP + LINE + height * len(rows)), "white")
    pen = ImageDraw.Draw(canvas)
    for column, heading in enumerate(columns):
        pen.text((GAP + column * width, GAP // 2), heading, fill="black", font=_font())
    for number, row in enumerate(rows):
        top = GAP + LINE + number * height
        for column, (picture, prompt) in enumerate(zip(row.pictures, row.prompts, strict=True)):
            left = GAP + column * width
            scale = SIDE / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            canvas.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, top))
            text = "\n".join(_lines(prompt, pen))
            pen.multiline_text((left, top + SIDE + 2), text, fill="#444444", font=_font(), spacing=2)
    return canvas


def _lines(text: str, pen: ImageDraw.ImageDraw) -> list[str]:
    """The beginning of a text, broken where it gets too wide: between words, or within one that has no spaces."""
    lines = [""]
    for word in text.replace("\n", " ").split(" "):
        for part in [word] if pen.textlength(word, _font()) <= SIDE else word:
            glue = " " if lines[-1] and part is word else ""
            if pen.textlength(lines[-1] + glue + part, _font()) > SIDE:
                lines.append(part)
            else:
                lines[-1] += glue + part
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], lines[LINES - 1][:-1] + "…"]
    return lines


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, LINE - 4)
        except OSError:
            continue
    return ImageFont.load_default(LINE - 4)
