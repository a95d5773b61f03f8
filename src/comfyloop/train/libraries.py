"""Imports that every run needs: seconds that one process can spend for several runs."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path
from typing import Any

SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def import_libraries(quantised: bool = False) -> None:
    """Import what every recipe needs. Takes seconds; starts no thread and touches no GPU."""
    if not quantised:  # PEFT imports bitsandbytes wherever it is installed, which costs a second
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    # transformers imports these for losses and ways to write that are not used here.
    hidden = [name for name in ("scipy", "sklearn") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    gc.disable()  # what is imported stays: looking through it for rubbish takes a sixth of the time
    try:
        import transformers
        from torch.utils import tensorboard  # noqa: F401

        import_models()
        from comfyloop.train.recipes import sft  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
        for name in hidden:
            del sys.modules[name]
    transformers.utils.logging.disable_progress_bar()


def import_models() -> None:
    """Import `transformers.models` without repeating the scan of all its files that `import transformers` has just
    done.

    The two scans differ only in a prefix, and each takes a third of a second.
    """
    from transformers.utils import import_utils

    look = import_utils.define_import_structure
    models = Path(import_utils.__file__).parents[1] / "models"
    # The very call that transformers has made, which is remembered; it has added modules of its own since.
    structure = {
        needs: {name[len("models.") :]: has for name, has in modules.items() if name.startswith("models.")}
        for needs, modules in look(models, prefix="models").items()
    }
    of_models = {needs: modules for needs, modules in structure.items() if modules}

    def once(module_path: str, prefix: str | None = None) -> Any:
        asks_again = prefix is None and Path(module_path) == models / "__init__.py"
        return of_models if asks_again else look(module_path, prefix)

    import_utils.define_import_structure = once
    try:
        importlib.import_module("transformers.models")
    finally:
        import_utils.define_import_structure = look


def import_once(quantised: bool = False) -> None:
    """Import what every run needs, starting no thread. Call it before torch is imported."""
    os.environ.update(SINGLE_THREADED)
    # Read when OpenMP is loaded, and so for the forks too; `use_threads` says why.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

    import_libraries(quantised)
    import torch
    import tqdm

    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0  # a progress bar would start a thread that watches it


def import_image_side() -> None:
    """After `import_once`, import what runs with an image side and comparisons of image versions need in
    addition."""
    from comfyloop.train.judge import judge  # noqa: F401
    from comfyloop.train.recipes import image_dpo, image_sft, joint  # noqa: F401
