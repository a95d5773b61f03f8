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

SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def import_once(quantised: bool = False) -> None:
    """Import what every run needs, starting no thread. Call it before torch is imported."""
    os.environ.update(SINGLE_THREADED)
    # Read when OpenMP is loaded, and so for the forks too; `use_threads` says why.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

    from comfyloop.train.__main__ import import_libraries

    import_libraries(quantised)
    import torch
    import tqdm

    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0  # a progress bar would start a thread that watches it


def import_image_side() -> None:
    """Import, after `import_once`, what runs with an image side and comparisons of image versions need besides."""
    from comfyloop.train.judge import judge  # noqa: F401
    from comfyloop.train.recipes import image_dpo, image_sft, joint  # noqa: F401


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
