"""Poster sketches: a drawn picture with the product's name and copy set under it, and the sheet of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from comfyloop.demo.brand.material import Colour

WIDTH, TEXT_HEIGHT, MARGIN = 384, 168, 20  # pixels
RULE = 8  # height of the stroke between picture and text
NAME_SIZE, COPY_SIZE, TITLE_SIZE = 30, 17, 24
COPY_LINES = 4
GAP = 16  # between the posters of a sheet


def sketch(picture: Image.Image, name: str, copy: str, palette: Mapping[str, Colour]) -> Image.Image:
    """One poster, WIDTH pixels wide."""
    art = picture.convert("RGB").resize((WIDTH, WIDTH), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (WIDTH, WIDTH + TEXT_HEIGHT), palette["cream"])
    canvas.paste(art, (0, 0))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle([0, WIDTH, WIDTH, WIDTH + RULE], fill=palette["orange"])
    top = WIDTH + RULE + 8
    pen.text((MARGIN, top), name.capitalize(), fill=palette["teal"], font=ImageFont.load_default(NAME_SIZE))
    small = ImageFont.load_default(COPY_SIZE)
    lines = _lines(pen, copy, small, WIDTH - 2 * MARGIN)
    if len(lines) > COPY_LINES:
        lines = [*lines[: COPY_LINES - 1], lines[COPY_LINES - 1] + " …"]
    pen.multiline_text((MARGIN, top + NAME_SIZE + 12), "\n".join(lines), fill=palette["teal"], font=small)
    return canvas


def _lines(
    pen: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int
) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and pen.textlength(longer, font=font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def contact_sheet(columns: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """A column for each title, a row for each product; the posters of all columns are in one order."""
    rows = max(len(posters) for _, posters in columns)
    head = TITLE_SIZE + 2 * GAP
    size = (len(columns) * (WIDTH + GAP) + GAP, head + rows * (WIDTH + TEXT_HEIGHT + GAP))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TITLE_SIZE)
    for number, (title, posters) in enumerate(columns):
        left = GAP + number * (WIDTH + GAP)
        pen.text((left, GAP), title, fill="black", font=font)
        for row, poster in enumerate(posters):
            sheet.paste(poster, (left, head + row * (WIDTH + TEXT_HEIGHT + GAP)))
    return sheet


def palette_distance(picture: Image.Image, palette: Mapping[str, Colour]) -> float:
    """How far a picture's pixels are from the nearest colour of the palette, on average: 0..1 in RGB."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)[:, :, None]
    colours = np.array(list(palette.values()), np.float32)
    nearest = np.linalg.norm(pixels - colours, axis=-1).min(-1)
    return round(float(nearest.mean() / np.linalg.norm([255.0] * 3)), 4)
