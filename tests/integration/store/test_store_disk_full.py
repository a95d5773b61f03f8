"""A disk that is really full: a sentence, nothing lost, and on it goes when there is room."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from comfyloop import capture
from comfyloop.errors import StorageError
from comfyloop.records import AnswerEdited, Generation, Project
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback, generations, open_store, projects

MEGABYTE = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many bytes in memory."""
    places: list[Path] = []

    def mount(size: int) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", str(place)]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {made.stderr.strip()}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(store: Store, generation: Callable[..., Generation]) -> list[str]:
    """Submit until the disk is full; the acknowledged ids."""
    with store.begin() as conn:
        projects.ensure(conn, Project(name="acme", base_model="m"))
        generations.add(conn, generation("acme", "gen_1"))
    acknowledged: list[str] = []
    with pytest.raises(StorageError, match=r"is full; nothing was written and nothing was lost\. Make room"):
        for number in range(10_000):
            text = f"{number} " + "long " * 4000
            item = AnswerEdited(project="acme", generation="gen_1", edited=text)
            acknowledged += capture.feedback.submit(store, [item], Settings()).stored
    return acknowledged


def check(store: Store, acknowledged: list[str], room: Callable[[], None]) -> None:
    """Everything acknowledged is there, and once there is room, new things are stored."""
    with store.read() as conn:
        assert [item.id for _, item in feedback.list_by(conn, "acme")] == acknowledged
    room()
    item = AnswerEdited(project="acme", generation="gen_1", edited="short " * 4000)
    assert capture.feedback.submit(store, [item], Settings()).stored == (item.id,)
    with store.read() as conn:
        assert [item.id for _, item in feedback.list_by(conn, "acme")] == [*acknowledged, item.id]


def test_sqlite_on_a_full_disk(
    small_disk: Callable[[int], Path], generation: Callable[..., Generation]
) -> None:
    disk = small_disk(3 * MEGABYTE)
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * MEGABYTE)
    with open_store(Settings(home=disk)) as store:
        acknowledged = fill(store, generation)
        assert len(acknowledged) > 5
        check(store, acknowledged, ballast.unlink)
    with open_store(Settings(home=disk)) as store, store.read() as conn:
        assert conn.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
        assert feedback.count_after(conn, "acme", 0) == len(acknowledged) + 1


def test_postgresql_on_a_full_disk(
    postgres: str, small_disk: Callable[[int], Path], generation: Callable[..., Generation]
) -> None:
    disk = small_disk(24 * MEGABYTE)
    place = disk / "space"
    place.mkdir()
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        os.chown(place, user.pw_uid, user.pw_gid)
    for folder in [disk, *disk.parents]:  # the server is another user: let it through to its disk
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    ballast = disk / "ballast"
    with psycopg.connect(postgres.format(database="postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE TABLESPACE small LOCATION '{place}'")  # type: ignore[call-overload]
        admin.execute("CREATE DATABASE small TABLESPACE small")
        try:
            with open_store(Settings(database_url=postgres.format(database="small"))) as store:
                used = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
                ballast.write_bytes(b"x" * (24 * MEGABYTE - used - 2 * MEGABYTE))
                acknowledged = fill_incompressible(store, generation)
                assert len(acknowledged) > 5
                check(store, acknowledged, ballast.unlink)
        finally:
            ballast.unlink(missing_ok=True)
            admin.execute("DROP DATABASE small WITH (FORCE)")
            admin.execute("DROP TABLESPACE small")


def fill_incompressible(store: Store, generation: Callable[..., Generation]) -> list[str]:
    """As `fill`, with text that PostgreSQL cannot compress away."""
    with store.begin() as conn:
        projects.add(conn, Project(name="acme", base_model="m"))
        generations.add(conn, generation("acme", "gen_1"))
    acknowledged: list[str] = []
    with pytest.raises(StorageError, match=r"is full; nothing was written and nothing was lost\. Make room"):
        for _ in range(10_000):
            item = AnswerEdited(project="acme", generation="gen_1", edited=os.urandom(30_000).hex())
            acknowledged += capture.feedback.submit(store, [item], Settings()).stored
    return acknowledged


def test_blobs_on_a_full_disk(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(2 * MEGABYTE)
    (disk / "ballast").write_bytes(b"x" * MEGABYTE)
    with open_store(Settings(home=disk / "home")) as store:
        kept: dict[str, bytes] = {}
        with pytest.raises(StorageError, match=r"is full; .* was not stored\. Make room"):
            for _ in range(100):
                data = os.urandom(100_000)
                kept[store.blobs.put(data)] = data
        assert {sha: store.blobs.get(sha) for sha in store.blobs.list()} == kept
        assert not list((disk / "home" / "blobs").rglob("*.part"))
        (disk / "ballast").unlink()
        assert store.blobs.get(store.blobs.put(data)) == data


LIMITED = """
import resource, signal, sys
from pathlib import Path
from comfyloop import capture
from comfyloop.errors import StorageError
from comfyloop.records import AnswerEdited, Generation, Message, Project
from comfyloop.settings import Settings
from comfyloop.store import generations, open_store, projects
settings = Settings(home=Path(sys.argv[1]))
store = open_store(settings)
with store.begin() as conn:
    projects.add(conn, Project(name="acme", base_model="m"))
    generations.add(conn, Generation(id="gen_1", project="acme", version=0, model="acme",
                                     messages=(Message.of("user", "q"),), answer="a"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
try:
    for number in range(10_000):
        item = AnswerEdited(project="acme", generation="gen_1", edited=f"{number}" * 5000)
        print(*capture.feedback.submit(store, [item], settings).stored, flush=True)
except StorageError as error:
    print(error, file=sys.stderr)
"""


def test_a_file_that_may_not_grow_needs_no_rights_to_try(tmp_path: Path) -> None:
    """The same without mounting anything: the operating system refuses to let files grow."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "comfyloop.db" in done.stderr
    with open_store(Settings(home=tmp_path)) as store, store.read() as conn:
        assert [item.id for _, item in feedback.list_by(conn, "acme")] == done.stdout.split()
        assert conn.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
    assert len(done.stdout.split()) > 5
