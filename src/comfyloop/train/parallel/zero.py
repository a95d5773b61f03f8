"""DeepSpeed ZeRO (Rajbhandari et al. 2020): stage 2 shares optimiser state and gradients, stage 3 weights too.

`deepspeed.initialize` is called directly. In bfloat16 and float16 all trained parameters are in that precision
and DeepSpeed keeps float32 masters of them.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from comfyloop.errors import InvalidInput
from comfyloop.train.parallel import shares
from comfyloop.train.parallel.ranks import agree, lost_ranks
from comfyloop.train.run.checkpoints import RandomState
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.answers import AnswerReader
from comfyloop.train.text.models import Loaded

TAG = "zero"
"""Of DeepSpeed's own files within a checkpoint."""


class ZeroUpdates(shares.SharedOptimizerStep):
    """AdamW by a DeepSpeed engine."""

    def __init__(self, model: Loaded, spec: TrainSpec) -> None:
        self.model = self.loaded = model
        optimizer = torch.optim.AdamW(
            [p for _, p in model.trainable],
            lr=spec.learning_rate,
            betas=(0.9, spec.adam_beta2),
            weight_decay=spec.weight_decay,
        )
        reader = AnswerReader(model)
        stage = int(spec.parallel.removeprefix("zero"))
        if stage == 3:
            _announce_head(reader, model)
        self.engine = _deepspeed().initialize(
            model=reader, optimizer=optimizer, config=config(spec, stage, model.dtype)
        )[0]
        model.spread = self.engine

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        with lost_ranks():
            # DeepSpeed takes the mean over ranks; each rank's loss is divided by the counts of all of them.
            self.engine.backward(loss * dist.get_world_size())
            if not last:
                self.engine.step()  # counts the micro-batch; changes nothing before the last one

    def update(self, rate: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        with lost_ranks():
            self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def save_checkpoint(self, folder: Path, step: int, random_state: RandomState, fingerprint: str) -> None:
        def write(place: Path) -> None:
            self.engine.save_checkpoint(
                str(place), tag=TAG, save_latest=False, exclude_frozen_parameters=True
            )
            save_file({"cpu": random_state.cpu}, place / f"random{shares.rank_suffix()}.safetensors")

        self.engine.optimizer.zero_grad()  # of a step that was given up
        shares.save_together(folder, step, fingerprint, write)

    def restore_checkpoint(self, folder: Path, fingerprint: str) -> int:
        step = shares.newest_together(folder, fingerprint)
        if step:
            place = folder / f"step-{step}"
            self.engine.load_checkpoint(str(place), tag=TAG, load_module_strict=False)
            RandomState(load_file(place / f"random{shares.rank_suffix()}.safetensors")["cpu"]).restore()
        return step

    def save_result(self, place: Path) -> None:
        with _deepspeed().zero.GatheredParameters(list(self.loaded.module.parameters())):
            if dist.get_rank() == 0:
                self.loaded.save(place)
            agree(0)


def config(spec: TrainSpec, stage: int, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's configuration; batch sizes and the schedule are our own and are given only to satisfy its
    checks."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spec.max_grad_norm,
        "zero_optimization": {"stage": stage, "contiguous_gradients": True, "overlap_comm": False},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }


def _announce_head(reader: AnswerReader, model: Loaded) -> None:
    """Stage 3 gathers weights around the modules that own them; the head's are used by the reader instead."""
    from deepspeed.runtime.zero.partition_parameters import register_external_parameter

    for parameter in model.whole.get_output_embeddings().parameters():
        register_external_parameter(reader, parameter)


def _deepspeed() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise InvalidInput(
            f"The run asks for DeepSpeed, which cannot be imported ({error}).",
            "Install it: pip install deepspeed --no-build-isolation; or set parallel = fsdp2.",
        ) from None
    # It says twice a step that a function of torch which it calls will have another name one day.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    # On processors DeepSpeed would compile a shared-memory transport at the first start, and every rank waits
    # for ever where one was killed meanwhile. torch's gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
