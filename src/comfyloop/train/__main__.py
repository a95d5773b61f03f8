"""`python -m comfyloop.train RUN_DIR`: start or resume the run of that directory.

A run of several processes (world_size in its spec) starts them itself; under `torchrun` each is one of them.

Exit codes: 0 the adapter is whole; 2 the spec is wrong; 3 a file is missing; 4 another process has this
run; 7 the disk refused; 8 the model cannot be loaded; 9 the data cannot be trained on; 10 training failed;
21 the memory limit was passed; 130 cancelled; 143 told to end by a signal (start it again to go on).
`status.json` says it in a sentence.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

from comfyloop import platforms
from comfyloop.errors import ComfyLoopError, InvalidInput, NotFound
from comfyloop.files import there
from comfyloop.train import recipes
from comfyloop.train.libraries import import_libraries, import_once
from comfyloop.train.parallel.launch import launch
from comfyloop.train.parallel.ranks import Rank, first_line, is_loss, join, refuse_other_size, why_lost
from comfyloop.train.run.control import (
    FIRST_TO_GO,
    Cancelled,
    Control,
    Terminated,
    use_threads,
    watch_memory,
)
from comfyloop.train.run.directory import LOCK_VARIABLE, RunDirectory, TrainState
from comfyloop.train.specs.base import RunSpec
from comfyloop.train.specs.files import read_spec
from comfyloop.train.specs.image import ImageTrainSpec
from comfyloop.train.specs.joint import JointSpec
from comfyloop.train.specs.judge import JudgeSpec
from comfyloop.train.specs.needs import refuse_unmet
from comfyloop.train.specs.text import TrainSpec

if TYPE_CHECKING:
    from comfyloop.train.run.log import RunLog

CANCELLED_EXIT_CODE = 130
TERMINATED_EXIT_CODE = 143


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m comfyloop.train RUN_DIR", file=sys.stderr)
        return 2
    directory = RunDirectory(arguments[0])
    if not directory.path.is_dir():
        print(NotFound(f"There is no run directory {directory.path}.", "Make it and put a spec.json in it."))
        return NotFound.exit_code
    rank = Rank.here()
    lock = directory.lock() if rank.leads or LOCK_VARIABLE in os.environ else -1
    if lock is None:
        print(
            f"The run {directory.path} is already being worked on by process {directory.read_status().pid}."
        )
        return 4
    return work(directory, rank, lock)


def work(directory: RunDirectory, rank: Rank, lock: int) -> int:
    """Execute the run, or one rank's part of it, and record how it ended; the exit code."""
    from comfyloop.train.run.log import RunLog

    log = RunLog(rank.log_directory(directory), silent=not rank.leads)
    try:
        spec = read_spec(directory.path)
        if directory.adapter.is_dir() or directory.model.is_dir():
            log.end(TrainState.SUCCEEDED)
            return 0
        if spec.world_size > 1 and not isinstance(spec, TrainSpec):
            raise InvalidInput("Runs with an image side are trained by one process.", "Set world_size = 1.")
        text = spec.text if isinstance(spec, JointSpec) else spec
        if isinstance(text, TrainSpec):
            refuse_unmet(text)
        if isinstance(spec, TrainSpec) and spec.world_size > 1 and not rank.launched:
            return launch(directory, spec, lock, import_once, lambda: main([str(directory.path)]))
        refuse_other_size(spec.world_size, rank)
        prepare(spec, log)
        control = Control(directory, log.held, leads=rank.leads)
        recipe(directory, spec, log, control)
    except Cancelled:
        log.end(TrainState.CANCELLED, error="The run was cancelled.", exit_code=CANCELLED_EXIT_CODE)
        return CANCELLED_EXIT_CODE
    except Terminated:
        log.say("told to end by a signal; start the run again to go on")
        return TERMINATED_EXIT_CODE
    except ComfyLoopError as error:
        log.end(TrainState.FAILED, error=str(error), exit_code=error.exit_code)
        return error.exit_code
    except MemoryError:
        log.end(TrainState.FAILED, error="The machine has no memory left for training.", exit_code=21)
        return 21
    except Exception as error:
        if rank.launched and is_loss(error):
            log.lost(why_lost(directory, rank.world_size), first_line(error))
            return 1
        traceback.print_exc()
        what = f"Training stopped on an unexpected {type(error).__name__}: {error}. "
        log.end(TrainState.FAILED, error=what + f"{directory.output_file.name} has the details.", exit_code=1)
        return 1
    log.end(TrainState.SUCCEEDED)
    return 0


def prepare(spec: RunSpec | JointSpec | JudgeSpec, log: RunLog) -> None:
    """Everything that must be set before torch is imported."""
    platforms.step_back(spec.nice, FIRST_TO_GO)
    use_threads(spec.threads)
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Metal cannot do the processor does
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if there(spec.model) is not None:
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is to be asked of a hub about a local model
    watch_memory(spec.memory_gb, lambda sentence: log.end(TrainState.FAILED, error=sentence, exit_code=21))


def recipe(
    directory: RunDirectory,
    spec: TrainSpec | ImageTrainSpec | JointSpec | JudgeSpec,
    log: RunLog,
    control: Control,
) -> None:
    log.phase("importing libraries")
    text = spec.text if isinstance(spec, JointSpec) else spec
    import_libraries(quantised=isinstance(text, TrainSpec) and text.quant_method is not None)
    if spec.world_size == 1 and not (isinstance(spec, TrainSpec) and spec.train_engine == "swift"):
        from comfyloop.train.run.aside import Aside

        directory.parked_file.unlink(missing_ok=True)  # of a trainer that was killed on hold
        control.give_memory_back(
            Aside(spec.step_aside_after, directory.parked_file, warn=log.warn), log.aside
        )
    if isinstance(spec, JointSpec):
        from comfyloop.train.recipes import joint

        joint.run(directory, spec, log, control, recipe)
        return
    if isinstance(spec, JudgeSpec):
        from comfyloop.train.judge import judge

        judge.run(directory, spec, log, control)
        return
    if isinstance(spec, TrainSpec) and spec.train_engine == "swift":
        from comfyloop.train.swift import engine as swift

        swift.run(directory, spec, log, control)
        return
    if spec.world_size > 1:
        log.phase(f"meeting the other {spec.world_size - 1} processes")
        join(spec, Rank.here())
    from comfyloop.train.run.within_memory import within_memory

    within_memory(lambda less: recipes.run(directory, less, log, control), spec, log, _more_room(spec))


def _more_room(spec: TrainSpec | ImageTrainSpec) -> str:
    """The settings that help when memory does not suffice even for one sample at a time."""
    if isinstance(spec, ImageTrainSpec):
        return "Lower image_resolution, close what else uses the device, or name a smaller image model."
    four_bits = "" if spec.quant_method else "Set quant_method = bnb, lower max_pixels"
    return (
        f"{four_bits or 'Lower max_pixels'}, close what else uses the device, or name a smaller base model."
    )


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written: taking the libraries down would keep the run locked for seconds
