"""Text on pictures: a font with the required characters, and line breaking."""

from __future__ import annotations

from functools import cache

from PIL import ImageFont

FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "msyh.ttc", "PingFang.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf",
)  # fmt: skip
"""The first that this machine has is written in where a text is not ASCII: Pillow's own font lacks Chinese."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_for(text: str, size: int) -> Font:
    """`size` in pixels. ASCII looks the same on every machine: Pillow brings that font along."""
    return ImageFont.load_default(size) if text.isascii() else _machines_own(size)


@cache
def _machines_own(size: int) -> Font:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def lines(text: str, font: Font, width: int, most: int) -> list[str]:
    """The beginning of a text in at most so many lines, broken where one gets wider than `width` pixels: between
    words, or within a word that has no spaces."""
    rows = [""]
    for word in text.split():
        for part in [word] if font.getlength(word) <= width else word:
            glue = " " if rows[-1] and part is word else ""
            if font.getlength(rows[-1] + glue + part) > width:
                rows.append(part)
            else:
                rows[-1] += glue + part
    if len(rows) > most:
        rows = [*rows[: most - 1], rows[most - 1][:-1] + "…"]
    return rows
