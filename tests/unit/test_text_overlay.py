"""Words that fit on pictures."""

from __future__ import annotations

import pytest

from comfyloop.media.text_overlay import font_for, lines


@pytest.mark.parametrize(
    "text", ["one two three four five six", "Pneumono" * 20, "慢工出细活" * 20, "a " + "b" * 300]
)
def test_no_line_is_wider_than_asked_and_there_are_no_more_than_asked(text: str) -> None:
    font = font_for(text, 16)
    found = lines(text, font, 120, 3)
    assert len(found) <= 3
    assert all(font.getlength(line) <= 120 for line in found[:2])


def test_a_text_that_fits_is_whole_and_one_that_does_not_says_so() -> None:
    font = font_for("short", 16)
    assert lines("a  short\ntext", font, 500, 2) == ["a short text"]
    assert lines("", font, 500, 2) == [""]
    assert lines("word " * 50, font, 100, 2)[-1].endswith("…")
