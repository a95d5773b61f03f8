"""Locks, processes and files as this system has them, and as Windows would (`tests/windows/sitecustomize.py`)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(params=["here", "as windows"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    folders = [REPOSITORY / "src"]
    if request.param == "as windows":
        folders.insert(0, REPOSITORY / "tests" / "windows")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "KIND": request.param}


def start(code: str, environment: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not check():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def is_gone(process: psutil.Process) -> bool:
    """Ended, collected by its parent or not."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    """With what it started, which keeps its pipes open."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for one in (*started, process):
        one.kill()
    process.communicate()


HOLD = """
import sys
from pathlib import Path
from comfyloop import platforms
path = Path(sys.argv[1])
fd = platforms.lock(path)
print("none" if fd is None else "held", platforms.is_locked(path), flush=True)
sys.stdin.read()
"""


def test_a_lock_is_one_processs_until_it_ends_however_it_does(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    first = start(HOLD, environment, tmp_path / "lock")
    try:
        assert line(first) == "held True"
        second = start(HOLD, environment, tmp_path / "lock")
        assert line(second) == "none True"
        end(second)
    finally:
        end(first)  # kill -9
    third = start(HOLD, environment, tmp_path / "lock")
    try:
        assert line(third) == "held True"
    finally:
        end(third)


HAND_DOWN = """
import os, subprocess, sys
from pathlib import Path
from comfyloop import platforms
path = Path(sys.argv[1])
CHILD = '''
import os, sys
from pathlib import Path
from comfyloop import platforms
fd = platforms.take_over(os.environ.pop("THE_LOCK"), Path(sys.argv[1]))
if fd is None:
    sys.exit(1)
sys.stdin.read()
'''
fd = platforms.lock(path)
down = platforms.HandedDown(fd, "THE_LOCK")
environment = {**os.environ, **down.environment}
again = subprocess.Popen(
    [sys.executable, "-c", CHILD, str(path)], env=environment, stdin=subprocess.PIPE, **down.options
)
down.wait(again)
seen = platforms.is_locked(path)
os.close(fd)
print(again.pid, seen, platforms.is_locked(path), again.poll(), flush=True)
sys.stdin.read()
"""


def test_a_lock_is_handed_down_without_a_free_moment(tmp_path: Path, environment: dict[str, str]) -> None:
    parent = start(HAND_DOWN, environment, tmp_path / "lock")
    pid, *said = line(parent).split()
    child = psutil.Process(int(pid))
    try:
        assert said == ["True", "True", "None"]
        child.suspend()  # or it would end with its parent, whose pipe it reads
        parent.kill()
        parent.wait()
        taker = start(HOLD, environment, tmp_path / "lock")
        assert line(taker) == "none True"
        end(taker)
    finally:
        child.kill()
        end(parent)


REPLACE = """
import os, sys
from pathlib import Path
from comfyloop.durable import write_whole
print("begins", flush=True)
write_whole(Path(sys.argv[1]), "new")
print("done", flush=True)
"""


def test_a_file_that_somebody_reads_is_replaced_when_he_has_closed_it(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    file = tmp_path / "status.json"
    file.write_text("old", "utf-8")
    with file.open("r", encoding="utf-8") as reading:
        writer = start(REPLACE, environment, file)
        assert line(writer) == "begins"
        if environment["KIND"] == "as windows":
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(0.3)  # it goes on trying
            assert file.read_text("utf-8") == "old"
        assert reading.read() == "old" or environment["KIND"] == "here"
    try:
        assert line(writer) == "done"
        assert file.read_text("utf-8") == "new"
        assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    finally:
        end(writer)


FAMILY = """
import subprocess, sys
from comfyloop import platforms
GRANDCHILD = "import sys; sys.stdin.read()"
CHILD = '''
import subprocess, sys
one = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(one.pid, flush=True)
one.wait()
'''
child = subprocess.Popen([sys.executable, "-c", CHILD, GRANDCHILD], stdin=subprocess.PIPE, **platforms.apart())
print(child.pid, flush=True)
for word in sys.stdin:
    {"freeze": platforms.freeze, "thaw": platforms.thaw, "kill": platforms.kill_group}[word.strip()](child.pid)
    print("did", flush=True)
"""


def test_a_program_and_what_it_started_are_held_let_go_on_and_ended(environment: dict[str, str]) -> None:
    process = start(FAMILY, environment)
    assert process.stdin is not None
    family = [psutil.Process(int(line(process))) for _ in range(2)]

    def tell(word: str) -> None:
        assert process.stdin is not None
        print(word, file=process.stdin, flush=True)
        assert line(process) == "did"

    try:
        tell("freeze")
        eventually(lambda: {one.status() for one in family} == {psutil.STATUS_STOPPED})
        tell("thaw")
        eventually(lambda: psutil.STATUS_STOPPED not in {one.status() for one in family})
        tell("kill")
        eventually(lambda: all(is_gone(one) for one in family))
    finally:
        end(process)


def test_a_process_is_alive_until_it_has_ended(environment: dict[str, str]) -> None:
    other = start("import sys; sys.stdin.read()", environment)
    asked = start(
        "import sys; from comfyloop import platforms\n"
        "for line in sys.stdin: print(platforms.alive(int(line)), flush=True)",
        environment,
    )
    assert asked.stdin is not None
    try:
        print(other.pid, file=asked.stdin, flush=True)
        assert line(asked) == "True"
        assert other.poll() is None  # asking is no Ctrl-C
        end(other)
        print(other.pid, file=asked.stdin, flush=True)
        assert line(asked) == "False"
    finally:
        end(asked)
