"""A database that cannot be used is refused with a sentence, and without showing its password."""

from __future__ import annotations

import os
import socket
import sqlite3
from pathlib import Path

import pytest

from comfyloop.errors import InvalidInput, StorageError
from comfyloop.settings import Settings
from comfyloop.store import db, open_store


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://", "in-memory"),
        ("sqlite:///:memory:", "in-memory"),
        ("mysql://secret@host/x", "'mysql' is not supported"),
        ("secret words", "cannot be read"),
    ],
)
def test_a_url_that_is_none_of_ours(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        open_store(Settings(home=tmp_path, database_url=url))
    assert "secret" not in str(refused.value)
    assert "postgresql://user" in refused.value.hint


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgresql_that_does_not_answer(tmp_path: Path, scheme: str) -> None:
    port = free_port()
    with pytest.raises(StorageError, match=r"cannot be reached.*PostgreSQL runs there") as refused:
        open_store(Settings(home=tmp_path, database_url=f"{scheme}://me:secret@127.0.0.1:{port}/x"))
    assert "secret" not in str(refused.value) and f":{port}/x" in str(refused.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "comfyloop.db").write_bytes(b"these are not the bytes of a database " * 100)
    with pytest.raises(StorageError, match="damaged or not a database"):
        open_store(Settings(home=tmp_path))


@pytest.mark.parametrize("name", ["what? now", "100%20 done", "#1 höme 汉字", "a&b;c@d:e"])
def test_a_home_is_a_path_whatever_its_name_would_mean_in_a_url(tmp_path: Path, name: str) -> None:
    settings = Settings(home=tmp_path / name)
    with open_store(settings) as store:
        sha = store.blobs.put(b"a picture")
        assert store.blobs.get(sha) == b"a picture"
    assert [place.name for place in tmp_path.iterdir()] == [name]
    assert {"comfyloop.db", "blobs"} <= {place.name for place in settings.home.iterdir()}


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot be made.*COMFYLOOP_HOME"):
        open_store(Settings(home=tmp_path / "file" / "home"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="cannot be opened"):
            open_store(Settings(home=tmp_path))
    finally:
        tmp_path.chmod(0o700)


def test_a_database_that_another_program_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "BUSY_SECONDS", 0.2)
    with open_store(Settings(home=tmp_path)) as store:
        other = sqlite3.connect(tmp_path / "comfyloop.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="stayed busy") as refused, store.begin():
            pass
        assert refused.value.retry_after == 1.0
        other.execute("ROLLBACK")
        other.close()
        with store.begin():
            pass


def test_no_alembic_when_there_is_nothing_to_migrate(tmp_path: Path) -> None:
    """The service starts in under two seconds: importing what it does not need would take some of it."""
    import subprocess
    import sys

    open_store(Settings(home=tmp_path)).close()
    program = (
        "import sys; from pathlib import Path\n"
        "from comfyloop import capture\n"
        "from comfyloop.settings import Settings; from comfyloop.store import open_store\n"
        f"open_store(Settings(home=Path({str(tmp_path)!r}))).close()\n"
        "print([name for name in ('alembic', 'torch', 'transformers', 'psycopg') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
