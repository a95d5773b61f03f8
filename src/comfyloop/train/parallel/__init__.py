"""One run by several processes: FSDP2 and DeepSpeed ZeRO, each called directly.

`launch` starts the ranks on one machine (torchrun or Ray does so on several), `ranks` lets them find each other and
agree, `fsdp2` and `zero` shard the weights and the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfyloop.errors import InvalidInput

if TYPE_CHECKING:
    from comfyloop.train.run.updates import OptimizerStep
    from comfyloop.train.specs.text import TrainSpec
    from comfyloop.train.text.models import Loaded


def make_updates(model: Loaded, spec: TrainSpec) -> OptimizerStep:
    """The optimizer step of this run: by this process alone, or together with the other ranks.

    Raises:
        InvalidInput: This model cannot be shared in that way, or DeepSpeed is not installed.
    """
    if spec.world_size == 1:
        from comfyloop.train.run.updates import OptimizerStep

        return OptimizerStep(model, spec)
    refuse_unlike(model, spec)
    if spec.parallel == "fsdp2":
        from comfyloop.train.parallel.fsdp2 import ShardedUpdates

        return ShardedUpdates(model, spec)
    from comfyloop.train.parallel.zero import ZeroUpdates

    return ZeroUpdates(model, spec)


def refuse_unlike(model: Loaded, spec: TrainSpec) -> None:
    """Refuse settings under which ranks would run different parts of the model at the same time and deadlock.

    Raises:
        InvalidInput: A vision tower is trained, which a rank whose samples have no image would leave out; or it
            is to be shared (ZeRO-3), though each rank looks at images when it needs them. Likewise for weights
            and precisions that a way of sharing does not know.
    """
    text = (model.whole.get_decoder(), model.whole.get_output_embeddings())
    language = {id(p) for module in text for p in module.parameters()}
    tower = [p for p in model.whole.parameters() if id(p) not in language]
    if any(p.requires_grad for p in tower):
        raise InvalidInput(
            "The run trains a vision tower or projector, which several processes cannot do here.",
            "Freeze them, or set world_size = 1.",
        )
    if tower and spec.parallel == "zero3":
        raise InvalidInput(
            "ZeRO-3 would share the vision tower too, and each process looks at other images.",
            "Set parallel = fsdp2 or zero2.",
        )
    if spec.quant_method is not None and spec.parallel != "fsdp2":
        raise InvalidInput("DeepSpeed cannot share quantised weights.", "Set parallel = fsdp2.")
    if str(model.dtype) == "torch.float16" and spec.parallel == "fsdp2":
        raise InvalidInput(
            "Float16 needs its loss scaled, which is not done with FSDP2 here.",
            "Set dtype to bfloat16 or float32, or parallel to zero2.",
        )
