"""Many threads and several processes on one store."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from comfyloop import capture
from comfyloop.errors import Conflict
from comfyloop.records import AnswerAccepted, Generation, Project, Version
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback, generations, leases, open_store, projects, splits, versions
from tests import counting

ANSWERS = 12


def test_threads_write_and_read_without_being_refused(
    store: Store, generation: Callable[..., Generation]
) -> None:
    def client(number: int) -> None:
        for turn in range(ANSWERS):
            id = f"gen_{number}.{turn}"
            with store.begin(durable=False) as conn:
                generations.add(conn, generation("acme", id))
            item = AnswerAccepted(project="acme", generation=id)
            assert capture.feedback.submit(store, [item], Settings()).stored == (item.id,)
            with store.read() as conn:
                assert feedback.get(conn, item.id) == item
                generations.list_by(conn, "acme", limit=5)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(client, range(16)))
    with store.read() as conn:
        assert feedback.count_after(conn, "acme", 0) == 16 * ANSWERS
        assert counting.generations(conn, "acme") == 16 * ANSWERS + 1


def test_a_reader_that_follows_the_numbers_misses_nothing(store: Store) -> None:
    """Sequence numbers appear in their own order, also where transactions overlap."""
    done = threading.Event()
    seen: list[str] = []

    def follow() -> None:
        last = 0
        while True:
            finished = done.is_set()
            with store.read() as conn:
                rows = feedback.list_by(conn, "acme", after_seq=last)
            seen.extend(item.id for _, item in rows)
            last = rows[-1][0] if rows else last
            if finished and not rows:
                return
            time.sleep(0.001)  # or it holds the interpreter, and writers wait 5 ms at each of their calls

    def write(number: int) -> None:
        for turn in range(15):
            with store.begin() as conn:
                item = AnswerAccepted(id=f"fb_{number}.{turn}", project="acme", generation="gen_1")
                feedback.add(conn, [item])
                time.sleep(0.001 * (number % 4))  # commit late, so that others overtake if they can

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
    finally:  # a follower that is left behind would slow down every later test
        done.set()
        follower.join()
    assert sorted(seen) == sorted(f"fb_{n}.{t}" for n in range(8) for t in range(15))


def test_version_numbers_and_folds_are_given_once(store: Store) -> None:
    def make(number: int) -> int:
        with store.begin() as conn:
            version = versions.next_number(conn, "acme")
            versions.add(conn, Version(project="acme", number=version, text_adapter="x"))
            splits.assign(conn, "acme", dict.fromkeys([f"group {number}", "shared"], "correction"), every=2)
            return version

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(make, range(24))) == list(range(1, 25))
    with store.read() as conn:
        counts = counting.groups(conn, "acme")
    assert sum(counts.values()) == 25 and abs(counts["train"] - counts["holdout"]) <= 1


def test_racing_promotions_leave_one_version_live(store: Store) -> None:
    with store.begin() as conn:
        for number in range(1, 7):
            versions.add(conn, Version(project="acme", number=number, text_adapter="x"))

    def move(number: int) -> None:
        with store.begin() as conn:
            if number % 3:
                versions.promote(conn, "acme", number % 6 + 1)
                return
            try:
                versions.rollback(conn, "acme")
            except Conflict as error:
                assert "nothing to go back to" in str(error)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(move, range(48)))
    with store.read() as conn:
        live = [v.number for v in versions.list_by(conn, "acme") if v.state == "live"]
        assert live == [n for n in [projects.get(conn, "acme").live] if n]


def test_one_of_many_gets_a_lease(store: Store) -> None:
    def take(number: int) -> bool:
        with store.begin() as conn:
            return leases.acquire(conn, "loop:acme", f"owner {number}", 60)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(16))) == 1


OPEN = """
import sys
from pathlib import Path
from comfyloop.records import Project
from comfyloop.settings import Settings
from comfyloop.store import open_store, projects
home, url, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3):
    with open_store(Settings(home=Path(home), database_url=url)) as store, store.begin() as conn:
        projects.ensure(conn, Project(name=name, base_model="m"))
        projects.ensure(conn, Project(name="shared", base_model="m"))
"""


def test_processes_open_one_new_database_at_once(settings: Settings) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(settings.home), settings.database_url, f"p{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in children:
            _, errors = child.communicate(timeout=60)
            assert child.returncode == 0, errors
    finally:
        for child in children:
            child.kill()
            child.wait()
    with open_store(settings) as store, store.read() as conn:
        assert [p.name for p in projects.list_all(conn)] == ["p0", "p1", "p2", "p3", "shared"]


@pytest.mark.parametrize("durable", [True, False])
def test_another_process_that_writes_is_waited_for(settings: Settings, durable: bool) -> None:
    """Two stores on one database are as two processes: neither knows of the other's turns."""
    with open_store(settings) as one, open_store(settings) as other:
        with one.begin() as conn:
            projects.add(conn, Project(name="acme", base_model="m"))

        def write(store: Store, name: str) -> None:
            for turn in range(20):
                with store.begin(durable=durable) as conn:
                    splits.assign(conn, "acme", {f"{name} {turn}": "correction"}, every=2)

        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(write, s, f"{n}") for n, s in enumerate((one, other, one, other))]
            for job in jobs:
                job.result()
        with one.read() as conn:
            assert sum(counting.groups(conn, "acme").values()) == 80
