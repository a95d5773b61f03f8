"""Forking several processes from one that has imported the libraries.

A fork contains only the forking thread, so the parent must have no other thread: a lock held by one would stay
locked forever. Nor may the parent touch CUDA, which cannot be used in a fork.
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
    """Call this before the first fork: garbage collection in a fork would write to, and so copy, every page."""
    gc.collect()
    gc.freeze()


def count_threads() -> int:
    return int(psutil.Process().num_threads())


def end_with(function: Callable[[], int]) -> NoReturn:
    """In a fork: call this and exit with its result as the exit code, whatever it raises."""
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
