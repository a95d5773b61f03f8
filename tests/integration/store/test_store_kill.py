"""A writer is killed (SIGKILL) at random moments: what it was told is stored, is stored."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter

from comfyloop.records import Project, Version
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback, open_store, projects, versions

ROUNDS = 6

SUBMIT = """
import sys, threading
from pathlib import Path
from comfyloop import capture
from comfyloop.records import AnswerAccepted, Generation, Message
from comfyloop.settings import Settings
from comfyloop.store import generations, open_store
home, url, name = sys.argv[1:]
settings = Settings(home=Path(home), database_url=url)
store = open_store(settings)
lock = threading.Lock()

def client(who):
    for turn in range(100_000):
        batch = f"{name}.{who}.{turn}"
        made = Generation(id=f"gen_{batch}", project="acme", version=0, model="acme",
                          messages=(Message.of("user", "q"),), answer="a")
        with store.begin(durable=False) as conn:
            generations.add(conn, made)
        items = [AnswerAccepted(id=f"{batch}.{i}", project="acme", generation=made.id) for i in range(3)]
        receipt = capture.feedback.submit(store, items, settings)
        with lock:
            for id in receipt.stored:
                print(id, flush=True)

for who in range(3):
    threading.Thread(target=client, args=(who,)).start()
"""

PROMOTE = """
import sys
from pathlib import Path
from comfyloop.settings import Settings
from comfyloop.store import open_store, versions
home, url, name = sys.argv[1:]
store = open_store(Settings(home=Path(home), database_url=url))
for turn in range(100_000):
    with store.begin() as conn:
        if turn % 3 == 2:
            versions.rollback(conn, "acme")
        else:
            versions.promote(conn, "acme", turn % 2 + 1)
    print(turn, flush=True)
"""


def killed(program: str, settings: Settings, name: str, seconds: float) -> list[str]:
    """The whole lines that a process printed before it was killed, so long after its first."""
    arguments = [sys.executable, "-c", program, str(settings.home), settings.database_url, name]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stderr is not None
    try:
        first = child.stdout.readline()
        assert first.endswith("\n"), child.stderr.read()
        time.sleep(seconds)
    finally:
        child.kill()
        rest = child.stdout.read()  # what was in the pipe
        child.stderr.close()
        child.wait()
    return [line[:-1] for line in (first + rest).splitlines(keepends=True) if line.endswith("\n")]


def test_no_acknowledged_feedback_is_lost(store: Store, settings: Settings) -> None:
    acknowledged: list[str] = []
    for number in range(ROUNDS):
        acknowledged += killed(SUBMIT, settings, f"r{number}", random.uniform(0, 0.3))
    time.sleep(0.2)  # PostgreSQL may still be finishing a commit whose client is gone
    with open_store(settings) as again, again.read() as conn:
        stored = [item.id for _, item in feedback.list_by(conn, "acme", limit=1_000_000)]
        if conn.dialect.name == "sqlite":
            assert conn.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
            assert conn.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    assert len(acknowledged) >= 3 * ROUNDS
    assert set(acknowledged) <= set(stored)
    assert len(stored) == len(set(stored))
    batches = Counter(id.rpartition(".")[0] for id in stored)
    assert set(batches.values()) == {3}, "a batch is stored whole or not at all"


def test_no_promotion_is_left_half_done(store: Store, settings: Settings) -> None:
    with store.begin() as conn:
        for number in (1, 2):
            versions.add(conn, Version(project="acme", number=number, text_adapter="x"))
    for _ in range(3):
        killed(PROMOTE, settings, "", random.uniform(0, 0.2))
        time.sleep(0.1)
        with open_store(settings) as again, again.begin() as conn:
            live = [v.number for v in versions.list_by(conn, "acme") if v.state == "live"]
            project = projects.get(conn, "acme").live
            assert live == [n for n in [project] if n]
            assert versions.history(conn, "acme", limit=1)[0].number == project
            while projects.get(conn, "acme").live:  # the next round starts at the base model again
                versions.rollback(conn, "acme")
            assert isinstance(projects.get(conn, "acme"), Project)
