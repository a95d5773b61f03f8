"""Blobs: what goes in comes out, or a sentence says why not."""

from __future__ import annotations

import hashlib
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfyloop.errors import InvalidInput, NotFound, StorageError
from comfyloop.store import Blobs


@pytest.fixture(params=["folder", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    """In a folder, and through fsspec in a store that is no folder."""
    return Blobs(str(tmp_path / "blobs") if request.param == "folder" else f"memory://{uuid.uuid4().hex}")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=4096))
def test_bytes_come_back_as_they_were_put(blobs: Blobs, data: bytes) -> None:
    sha = blobs.put(data, "image/png")
    assert sha == hashlib.sha256(data).hexdigest()
    assert blobs.put(data) == sha
    assert blobs.exists(sha)
    assert blobs.get(sha) == data
    assert sha in set(blobs.list())


def test_a_file_is_stored_as_its_bytes_are(blobs: Blobs, tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000  # more than one chunk
    source = tmp_path / "source"
    source.write_bytes(data)
    sha = blobs.put_file(source)
    assert (sha, blobs.get(sha)) == (blobs.put(data), data)


def test_deleting_says_whether_there_was_something(blobs: Blobs) -> None:
    sha = blobs.put(b"x")
    assert blobs.delete(sha)
    assert not blobs.delete(sha)
    assert not blobs.exists(sha)
    assert blobs.path(sha) is None
    assert list(blobs.list()) == []
    with pytest.raises(NotFound, match=f"no blob {sha}"):
        blobs.get(sha)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_only_hashes_are_names(blobs: Blobs, name: str) -> None:
    for use in (blobs.get, blobs.exists, blobs.delete, blobs.path):
        with pytest.raises(InvalidInput, match="not the SHA-256"):
            use(name)


def test_the_layout_is_two_folders_deep(tmp_path: Path) -> None:
    blobs = Blobs(str(tmp_path))
    sha = blobs.put(b"x")
    assert blobs.path(sha) == tmp_path / sha[:2] / sha[2:4] / sha


@pytest.mark.parametrize("damage", [b"", b"x", b"y" * 5])
def test_damage_is_named_on_reading_and_mended_by_putting(tmp_path: Path, damage: bytes) -> None:
    blobs = Blobs(str(tmp_path))
    sha = blobs.put(b"rose")
    where = blobs.path(sha)
    assert where is not None
    where.write_bytes(damage)
    with pytest.raises(StorageError, match=f"blob {sha} .* is damaged"):
        blobs.get(sha)
    blobs.put(b"rose")
    assert blobs.get(sha) == b"rose"


def test_readers_never_see_half_a_blob(tmp_path: Path) -> None:
    blobs = Blobs(str(tmp_path))
    data = b"rose" * 200_000
    sha = hashlib.sha256(data).hexdigest()
    done = threading.Event()
    seen = []

    def read() -> None:
        while not done.is_set():
            if blobs.exists(sha):
                seen.append(blobs.get(sha) == data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(blobs.put, [data] * 16)) == {sha}
        while not seen:
            pass
    finally:
        done.set()
        reader.join()
    assert all(seen)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [sha]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_bytes(b"a file is in the way")
    with pytest.raises(StorageError, match="refused"):
        Blobs(str(tmp_path / "blobs")).put(b"x")


def test_an_unknown_kind_of_store_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nope://x"):
        Blobs("nope://x")
