"""Poster sketches: a drawn picture with the product's name and copy set under it, and the sheet of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from comfyloop.demo.brand.material import Colour
from comfyloop.media.text_overlay import font_for, lines

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
    pen.text((MARGIN, top), name.capitalize(), fill=palette["teal"], font=font_for(name, NAME_SIZE))
    small = font_for(copy, COPY_SIZE)
    text = "\n".join(lines(copy, small, WIDTH - 2 * MARGIN, COPY_LINES))
    pen.multiline_text((MARGIN, top + NAME_SIZE + 12), text, fill=palette["teal"], font=small)
    return canvas


def contact_sheet(columns: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """A column for each title, a row for each product; the posters of all columns are in one order."""
    rows = max(len(posters) for _, posters in columns)
    head = TITLE_SIZE + 2 * GAP
    size = (len(columns) * (WIDTH + GAP) + GAP, head + rows * (WIDTH + TEXT_HEIGHT + GAP))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, (title, posters) in enumerate(columns):
        left = GAP + number * (WIDTH + GAP)
        pen.text((left, GAP), title, fill="black", font=font_for(title, TITLE_SIZE))
        for row, poster in enumerate(posters):
            sheet.paste(poster, (left, head + row * (WIDTH + TEXT_HEIGHT + GAP)))
    return sheet


def palette_distance(picture: Image.Image, palette: Mapping[str, Colour]) -> float:
    """How far a picture's pixels are from the nearest colour of the palette, on average: 0..1 in RGB."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)[:, :, None]
    colours = np.array(list(palette.values()), np.float32)
    nearest = np.linalg.norm(pixels - colours, axis=-1).min(-1)
    return round(float(nearest.mean() / np.linalg.norm([255.0] * 3)), 4)
