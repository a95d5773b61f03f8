"""A directory appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyloop.durable import appear


def test_a_directory_appears_with_all_that_was_written(tmp_path: Path) -> None:
    place = tmp_path / "versions" / "text"

    def write(making: Path) -> None:
        (making / "deeper").mkdir()
        (making / "deeper" / "file").write_text("whole")
        assert not place.exists()

    appear(place, write)
    assert (place / "deeper" / "file").read_text() == "whole"
    assert [path.name for path in place.parent.iterdir()] == ["text"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def write(making: Path) -> None:
        (making / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        appear(tmp_path / "text", write)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".text.making").mkdir()
    (tmp_path / ".text.making" / "old").write_text("old")
    appear(tmp_path / "text", lambda making: (making / "new").write_text("new"))
    assert [path.name for path in (tmp_path / "text").iterdir()] == ["new"]
