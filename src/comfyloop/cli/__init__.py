"""The command line: one command a verb, no logic.

`up` and `demo` start a service; every other verb talks to one that runs. Exit codes: 0 done, 1 the answer is
no (a doctor's finding, a gate that does not promote), 2 wrong input, then those of `comfyloop.errors` (3 not
found, 4 conflict, 5 busy, 6 no service, 7 storage, 8 model, 9 data, 10 failed run).
"""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

import typer
from rich.markup import escape

from comfyloop.cli.base import app, err
from comfyloop.errors import ComfyLoopError

# Each adds its commands to the application, in the order in which `--help` shows them.
# isort: off
from comfyloop.cli import running, autostart, memory, asking, queue, data, snapshots, learning, sharing  # noqa: F401
from comfyloop.cli import engines, comfyui  # noqa: F401
# isort: on

__all__ = ["app", "main"]


def main() -> NoReturn:
    """The entry point: errors become one sentence on standard error and an exit code."""
    # What we start with `python -m` would else import whatever lies in the working directory.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    # Windows writes into files and pipes in a code page. What it lacks is escaped there, as on standard error; to
    # refuse it would end the command with its work half told.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app(standalone_mode=False) or 0)  # the exit code of a typer.Exit is returned
    except typer.Abort:
        sys.exit(130)
    except ComfyLoopError as error:
        err.print(f"[red]{error.code}[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own: an unknown option, a missing argument
            err.print(f"[red]usage[/red]: {escape(error.format_message())} See --help.", highlight=False)
            sys.exit(2)
        raise
