from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui.spool import Spool, SpoolError


def items(*names: str) -> list[dict]:
    return [{"id": name, "kind": "test"} for name in names]


def waiting(spool: Spool) -> list[str]:
    return [entry.item["id"] for entry in spool.pending(10**6, 10**9)]


def test_what_was_appended_waits_in_order_and_survives_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(items("a", "b"))
    spool.append(items("c"))
    spool.close()
    again = Spool(tmp_path)
    assert waiting(again) == ["a", "b", "c"]
    assert again.waiting == 3


def test_a_spool_that_was_emptied_takes_more_after_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(items("a"))
    spool.delivered(spool.pending())
    spool.close()
    again = Spool(tmp_path)
    again.append(items("b", "c"))
    assert waiting(again) == ["b", "c"]


STEPS = st.lists(
    st.one_of(
        st.integers(1, 4).map(lambda n: ("append", n)),
        st.integers(1, 5).map(lambda n: ("deliver", n)),
        st.just(("restart", 0)),
        st.just(("tear", 0)),
        st.just(("refuse", 1)),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_nothing_is_lost_or_doubled_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, steps: Any
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, segment_bytes=60)
    expected: list[str] = []
    delivered: list[str] = []
    sent = 0
    for what, count in steps:
        if what == "append":
            names = [str(sent + i) for i in range(count)]
            sent += count
            spool.append(items(*names))
            expected += names
        elif what == "deliver":
            entries = spool.pending(count)
            spool.delivered(entries)
            delivered += [entry.item["id"] for entry in entries]
        elif what == "refuse":
            for entry in spool.pending(1):
                spool.refuse(entry, "no")
                delivered.append(entry.item["id"])
        else:
            spool.close()
            if what == "tear":  # a crash in the middle of a line that was never acknowledged
                last = max(folder.glob("[0-9]*.jsonl"), default=None)
                if last is not None:
                    with last.open("ab") as file:
                        file.write(b'{"id": "torn')
            spool = Spool(folder, segment_bytes=60)
        assert delivered + waiting(spool) == expected
        assert spool.waiting == len(expected) - len(delivered)
    spool.close()


def test_images_stay_until_no_waiting_item_needs_them(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for name in ("a", "b"):
        spool.append([{"id": name, "kind": "image_rated", "image": "f" * 64}], {"f" * 64: b"png"})
    first, second = spool.pending()
    spool.delivered([first])
    assert spool.image("f" * 64) == b"png"
    spool.refuse(second, "There is no project 'x'.")
    assert spool.image("f" * 64) == b"png"  # it may be tried again
    assert spool.retry_refused() == 1
    spool.delivered(spool.pending())
    assert spool.image("f" * 64) is None


def test_what_was_refused_is_thrown_away_with_its_images(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([{"id": "a", "kind": "image_rated", "image": "f" * 64}], {"f" * 64: b"png"})
    spool.append([{"id": "b", "kind": "image_rated", "image": "e" * 64}], {"e" * 64: b"png"})
    spool.refuse(spool.pending(1)[0], "There is no project 'x'.")
    assert spool.discard_refused() == 1 and spool.refused() == [] and spool.refused_count == 0
    assert spool.image("f" * 64) is None and spool.image("e" * 64) == b"png"
    assert waiting(spool) == ["b"] and spool.discard_refused() == 0
    spool.close()
    assert Spool(tmp_path).refused_count == 0


def test_a_full_spool_refuses_with_a_sentence_and_keeps_what_it_has(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=200)
    spool.append(items("a"))
    with pytest.raises(SpoolError, match=r"Capture is paused: 1 items .* wait for the service"):
        spool.append([{"id": "b", "text": "x" * 300}])
    assert waiting(spool) == ["a"]
    spool.delivered(spool.pending())
    spool.append(items("c"))
    assert spool.problem == ""


def test_a_full_disk_pauses_capture_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.append(items("a"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SpoolError, match="No space left on device"):
            spool.append(items("b"))
    spool.append(items("c"))
    assert waiting(spool) == ["a", "c"]


def test_a_disk_that_is_really_full_pauses_capture_in_words(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("NOT PROVED: this system has no /dev/full")
    spool = Spool(tmp_path)
    segment = spool._path(spool._writing)
    segment.symlink_to("/dev/full")  # every write says that the disk is full
    with pytest.raises(SpoolError, match=r"Capture is paused: .*No space left on device.*Free some space"):
        spool.append(items("a"))
    assert spool.problem and spool.waiting == 0
    segment.unlink()
    spool.append(items("a"))
    assert spool.problem == "" and waiting(spool) == ["a"]


def test_a_folder_that_cannot_be_used_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file is in the way")
    with pytest.raises(SpoolError, match=r"Capture is paused: .*spool cannot be used"):
        Spool.open(tmp_path / "spool")


def test_half_a_character_costs_itself_and_nothing_else(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([{"id": "a", "kind": "test", "text": "fox \ud83e!"}])
    (entry,) = spool.pending()
    assert entry.item["text"] == "fox ?!"


def test_two_processes_never_share_a_spool(tmp_path: Path) -> None:
    first, second = Spool.open(tmp_path), Spool.open(tmp_path)
    assert first.folder != second.folder


def test_threads_may_append_together(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=500)
    threads = [
        threading.Thread(target=lambda n=n: [spool.append(items(f"{n}-{i}")) for i in range(20)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waiting(spool)) == sorted(f"{n}-{i}" for n in range(4) for i in range(20))
