"""Libraries imported once for several processes that are forked afterwards.

A fork has only the thread that forked it, so the parent must have no other: a lock that one holds would stay
locked for ever. Nor may the parent touch CUDA, which no fork can use again.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import psutil


def settle() -> None:
    """Call it before the first fork: a collection in a fork would write to, and so copy, every page."""
    gc.collect()
    gc.freeze()


def count_threads() -> int:
    return int(psutil.Process().num_threads())


def end_with(function: Callable[[], int]) -> NoReturn:
    """In a fork: do this and end with its result as the exit code, whatever it raises."""
    code = 1
    try:
        code = function()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # nothing that the parent registered for its own end is run
