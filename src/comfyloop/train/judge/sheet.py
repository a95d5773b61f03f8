"""A contact sheet: pictures side by side under the words from which they were made, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from comfyloop.media.text_overlay import font_for, lines

SIDE, GAP, LINE, LINES = 256, 8, 15, 3
"""In pixels: the most of a picture's side, what is between pictures, and a line of text; lines a prompt."""


@dataclass(frozen=True)
class SheetRow:
    """One row: as many pictures (RGB) as the sheet has columns, each with what it was made from."""

    pictures: tuple[Image.Image, ...]
    prompts: tuple[str, ...]


def contact_sheet(columns: Sequence[str], rows: Sequence[SheetRow]) -> Image.Image:
    """An RGB picture with a heading a column."""
    width, height = SIDE + GAP, SIDE + GAP + LINE * LINES
    canvas = Image.new("RGB", (GAP + width * len(columns), GAP + LINE + height * len(rows)), "white")
    pen = ImageDraw.Draw(canvas)
    for column, heading in enumerate(columns):
        pen.text((GAP + column * width, GAP // 2), heading, fill="black", font=font_for(heading, LINE - 4))
    for number, row in enumerate(rows):
        top = GAP + LINE + number * height
        for column, (picture, prompt) in enumerate(zip(row.pictures, row.prompts, strict=True)):
            left = GAP + column * width
            scale = SIDE / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            canvas.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, top))
            font = font_for(prompt, LINE - 4)
            text = "\n".join(lines(prompt, font, SIDE, LINES))
            pen.multiline_text((left, top + SIDE + 2), text, fill="#444444", font=font, spacing=2)
    return canvas
