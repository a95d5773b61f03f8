"""A directory appears whole or not at all, and a file is there whole or as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyloop.durable import appear, replace_whole, write_whole


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


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "cache" / "kept.json"
    write_whole(file, "猫", durable=durable)
    write_whole(file, b"\xff", durable=durable)
    assert file.read_bytes() == b"\xff"

    def write(part: Path) -> None:
        part.write_text("half")
        assert file.read_bytes() == b"\xff"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_whole(file, write, durable=durable)
    assert file.read_bytes() == b"\xff" and list(file.parent.iterdir()) == [file]


def test_a_folder_that_was_removed_does_not_come_back_with_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_whole(tmp_path / "gone" / "status.json", lambda part: part.write_text("late"))
    assert list(tmp_path.iterdir()) == []
