"""All of a data set is stored, or nothing; what was broken off goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comfyloop import capture
from comfyloop.datasets import DataSet, DataSetState, Request, importing
from comfyloop.datasets.importing import Import
from comfyloop.datasets.place import DataSetFolder
from comfyloop.errors import Conflict, InvalidInput, StorageError, TooLarge
from comfyloop.store import feedback
from tests.unit.datasets.conftest import Adding, picture


def rows(folder: Path, many: int, bad: int | None = None) -> Path:
    lines = []
    for n in range(many):
        (folder / f"{n}.png").write_bytes(picture(f"#0000{n % 256:02x}"))
        row = {"query": f"What is {n}?", "response": f"It is {n}.", "images": [f"{n}.png"]}
        lines.append(json.dumps({"query": "no answer"} if n == bad else row) + "\n")
    (folder / "d.jsonl").write_text("".join(lines))
    return folder


def test_one_bad_row_keeps_all_out_and_leaves_nothing_behind(adding: Adding, tmp_path: Path) -> None:
    done = adding.add(rows(tmp_path, 5, bad=3))
    assert done.state is DataSetState.REFUSED
    assert "1 of 5 rows cannot be used:\nd.jsonl:4: " in done.error
    assert adding.stored() == [] and adding.left_over() == []


def test_bad_rows_are_left_out_where_that_is_wanted(adding: Adding, tmp_path: Path) -> None:
    done = adding.add(rows(tmp_path, 5, bad=3), skip_bad=True)
    assert (done.state, done.stored, done.bad) == (DataSetState.DONE, 4, 1)
    assert done.notes == (
        "1 of 5 rows were left out.",
        "1 picture is in no row that was taken, as 3.png.",
    )


def test_the_same_again_is_stored_once(adding: Adding, tmp_path: Path) -> None:
    rows(tmp_path, 3)
    first, second = adding.add(tmp_path), adding.add(tmp_path)
    assert (first.stored, second.stored, second.duplicates) == (3, 0, 3)
    assert not list((adding.settings.home / "datasets").rglob("*.png"))


def test_a_failure_in_the_middle_of_storing_stores_nothing(
    adding: Adding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = feedback._insert, [1]
    monkeypatch.setattr(feedback, "_MANY", 2)

    def insert(conn: Any, bodies: Any) -> None:
        if not left:
            raise StorageError("The disk is full.", "Make room.")
        left.pop()
        real(conn, bodies)

    monkeypatch.setattr(feedback, "_insert", insert)
    place = adding.place(rows(tmp_path, 5))
    failed = adding.take(place)
    assert (failed.state, failed.error) == (DataSetState.FAILED, "The disk is full. Make room.")
    assert adding.stored() == []
    monkeypatch.setattr(feedback, "_insert", real)
    assert adding.take(place).stored == 5


class Killed(BaseException):
    pass


def test_what_was_killed_goes_on_where_it_was(
    adding: Adding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BATCH", 2)
    place = adding.place(rows(tmp_path, 7))
    decoded: list[int] = []
    real = capture.images.intake

    def intake(data: bytes, settings: Any) -> Any:
        decoded.append(len(data))
        return real(data, settings)

    monkeypatch.setattr(capture.images, "intake", intake)

    def killed_after(many: int) -> Any:
        def tell(known: DataSet) -> None:
            if known.rows >= many:
                raise Killed

        return tell

    for many in (2, 4):
        work = Import(adding.store, adding.settings, place, place.read(), killed_after(many))
        with pytest.raises(Killed):
            work.read()
        with place.items.open("ab") as half:  # of a batch that was being written
            half.write(b'{"place": "hal')
    assert adding.stored() == []
    done = adding.take(place)
    assert (done.state, done.stored, done.pictures) == (DataSetState.DONE, 7, 7)
    assert len(decoded) == 7
    assert [item.messages[-1].text for item in adding.stored()] == [f"It is {n}." for n in range(7)]  # type: ignore[union-attr]


def test_the_same_row_of_two_people_is_two(adding: Adding, tmp_path: Path) -> None:
    adding.add(rows(tmp_path, 2))
    place = adding.place(tmp_path)
    place.write(place.read().model_copy(update={"author": "ada"}))
    assert adding.take(place).stored == 2
    assert len({item.id for item in adding.stored()}) == 4


def test_what_feedback_does_not_keep_is_told(adding: Adding, tmp_path: Path) -> None:
    row = {"query": "What?", "response": "A mug.", "topic": "mugs", "replay": True}
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    first, second = adding.add(tmp_path).notes
    assert "topic (1)" in first and "1 rows were rehearsal or replay" in second


def test_another_way_of_reading_begins_again(adding: Adding, tmp_path: Path) -> None:
    place = adding.place(rows(tmp_path, 4))
    work = Import(adding.store, adding.settings, place, place.read(), lambda known: None)
    work.read()
    assert adding.take(place, limit=2).stored == 2


def test_what_is_given_up_leaves_nothing(adding: Adding, tmp_path: Path) -> None:
    place = adding.place(rows(tmp_path, 3))
    work = Import(adding.store, adding.settings, place, place.read(), lambda known: None)
    work.read()
    assert len(adding.left_over()) == 3
    adding.imports.remove(place)
    assert adding.left_over() == [] and not place.folder.exists()


def test_a_picture_that_others_use_stays_when_a_data_set_is_given_up(adding: Adding, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    adding.add(rows(tmp_path / "one", 1))
    place = adding.place(rows(tmp_path / "one", 3))
    Import(adding.store, adding.settings, place, place.read(), lambda known: None).read()
    adding.imports.remove(place)
    assert len(adding.left_over()) == 1


def test_nothing_is_taken_by_two_at_once(adding: Adding, tmp_path: Path) -> None:
    place = adding.place(rows(tmp_path, 1))
    with place.lock():
        adding.imports.start(place, Request())
        adding.imports.wait(place.folder.name)
        assert adding.stored() == []
        with pytest.raises(Conflict, match="another process"):
            adding.imports.remove(place)
    assert adding.imports.state(place).state is DataSetState.FAILED
    assert adding.take(place).stored == 1
    with pytest.raises(Conflict, match="stored already"):
        adding.imports.start(place, Request())


def test_events_say_how_far_it_is(adding: Adding, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    adding.imports._publish = events.append
    adding.add(rows(tmp_path, 2))
    assert [event["type"] for event in events][-1] == "dataset.stored"
    assert {"project": "acme", "stored": 2}.items() <= events[-1].items()


# --- files that are sent --------------------------------------------------------------------------------------


def receive(place: DataSetFolder, path: str, data: bytes, offset: int = 0, whole: bytes | None = None) -> Any:
    import hashlib

    whole = data if whole is None else whole
    return place.receive(path, data, offset, len(whole), hashlib.sha256(whole).hexdigest(), 1000)


def test_a_file_comes_in_pieces_and_is_checked(adding: Adding) -> None:
    place = adding.place()
    whole = b"0123456789"
    assert receive(place, "a/b.txt", whole[:4], whole=whole).sha256 is None
    assert [(file.path, file.bytes) for file in place.partial()] == [("a/b.txt", 4)]
    with pytest.raises(Conflict, match="4 bytes so far"):
        receive(place, "a/b.txt", whole[6:], 6, whole)
    with pytest.raises(Conflict, match="Not all files"):
        adding.imports.start(place, Request())
    receive(place, "a/b.txt", whole[2:7], 2, whole)
    assert receive(place, "a/b.txt", whole[7:], 7, whole).sha256
    assert (place.files / "a/b.txt").read_bytes() == whole
    assert [file.bytes for file in place.sent()] == [10] and not list(place.partial())


def test_what_arrives_otherwise_than_it_was_sent_is_not_kept(adding: Adding) -> None:
    place = adding.place()
    with pytest.raises(InvalidInput, match="did not arrive as it was sent"):
        place.receive("a.txt", b"abc", 0, 3, "0" * 64, 1000)
    with pytest.raises(InvalidInput, match="more came"):
        receive(place, "a.txt", b"abcd", whole=b"abc")
    receive(place, "a.txt", b"x" * 900)
    with pytest.raises(TooLarge, match="more than 1000 bytes"):
        receive(place, "b.txt", b"x" * 200)
    assert [file.path for file in place.sent()] == ["a.txt"]


@pytest.mark.parametrize(
    "path",
    [
        "../a",
        ".git/config",
        ".outside",
        ".outside/.x",
        "/a",
        "a/../../b",
        "a\\b",
        "C:/a",
        "a\0b",
        "",
        ".",
        ".hidden",
        "a/.git/b",
        "x.part",
        "n" * 300,
        "a" * 2001,
    ],
)
def test_no_file_is_written_outside_of_its_data_set(adding: Adding, path: str) -> None:
    with pytest.raises(InvalidInput, match="no file's name"):
        receive(adding.place(), path, b"x")
