"""Run a program that is not ours so that it never outlives us: ``python guard.py PARENT_PID PROGRAM ARGS``.

The program gets a process group of its own with all that it starts. When we are told to leave, or our parent
is gone, the group is told to leave, and killed when it has not done so in time. The program's exit code is
ours. This file runs with the program's environment, which need not lead to ComfyLoop.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[3]))

from comfyloop import platforms

PATIENCE_SECONDS = 4.0


def main(parent: int, argv: list[str]) -> int:
    told = False

    def leave(*_: object) -> None:
        nonlocal told
        told = True

    for signal_ in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_, leave)
    program = subprocess.Popen(argv, **platforms.apart())
    while not told and platforms.alive(parent):
        try:
            return program.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
        finally:
            if program.returncode is not None:
                platforms.kill_group(program.pid)  # what it started and left behind
    platforms.ask_to_end(program)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while program.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    platforms.kill_group(program.pid)
    program.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
