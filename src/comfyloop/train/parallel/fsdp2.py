"""FSDP2 (torch.distributed.fsdp.fully_shard): each rank keeps a part of every weight and of the optimiser.

Zhao et al. 2023, "PyTorch FSDP". A layer's weights are gathered just before it is used; gradients are reduced over
all ranks, and each rank updates its own shard.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from comfyloop.train.parallel import shares
from comfyloop.train.parallel.ranks import agree, lost_ranks
from comfyloop.train.run import checkpoints
from comfyloop.train.run.checkpoints import RandomState
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.answers import AnswerReader
from comfyloop.train.text.models import Loaded


class ShardedUpdates(shares.SharedOptimizerStep):
    """AdamW on parameters that are sharded over the ranks."""

    def __init__(self, model: Loaded, spec: TrainSpec) -> None:
        self.loaded = model
        model.spread = self.reader = shard(model)
        super().__init__(model, spec)  # of the sharded parameters

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        self.reader.set_requires_gradient_sync(last)  # earlier micro-batches add up on each rank by itself
        with lost_ranks():
            loss.backward()  # type: ignore[no-untyped-call]

    def save_checkpoint(self, folder: Path, step: int, random_state: RandomState, fingerprint: str) -> None:
        def write(place: Path) -> None:
            checkpoints.save_tensors(
                place, self.kept(), self.optimizer, random_state, suffix=shares.rank_suffix()
            )

        shares.save_together(folder, step, fingerprint, write)

    def restore_checkpoint(self, folder: Path, fingerprint: str) -> int:
        step = shares.newest_together(folder, fingerprint)
        if step:
            place = folder / f"step-{step}"
            checkpoints.load_tensors(place, self.kept(), self.optimizer, suffix=shares.rank_suffix())
            self.write_back()
        return step

    def save_result(self, place: Path) -> None:
        # One after the other, and kept by one rank only: the others have no room for the whole of it.
        leads = dist.get_rank() == 0
        tensors: dict[str, Tensor] = {}
        saved_ids: set[int] = set()
        for name, weight in self.loaded.module.state_dict(keep_vars=True).items():
            if id(weight) in saved_ids or not (self.loaded.peft is None or weight.requires_grad):
                continue  # a head that is the embedding too; base weights below a LoRA
            saved_ids.add(id(weight))
            whole = shares.full(weight.detach()).cpu()
            if leads:
                tensors[name] = whole
        if leads:
            self.loaded.save(place, tensors)
        agree(0)


class _Root(AnswerReader, FSDPModule):
    """What `fully_shard` makes of an AnswerReader, for whoever reads types."""


def shard(model: Loaded) -> _Root:
    """Shard a model layer by layer, and the rest of it (embeddings, head, norms) together.

    A frozen vision tower is left whole on every rank, as its features are computed outside the forward pass;
    so are weights that are no floating-point numbers (quantised ones), which cannot be cut.
    """
    mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
    reader = AnswerReader(model)
    language = {id(p) for module in (model.whole.get_decoder(), model.whole.get_output_embeddings())
                for p in module.parameters()}  # fmt: skip
    whole = {
        p
        for p in reader.parameters()
        if not p.requires_grad and (id(p) not in language or not p.is_floating_point())
    }
    for layer in layers(model):
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    root = cast(_Root, fully_shard(reader, mesh=mesh, ignored_params=whole))
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # Each rank's loss is divided by the counts of all ranks: gradients are added, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return root


def layers(model: Loaded) -> list[nn.Module]:
    """The decoder's layers: the modules that transformers says must not be split over devices."""
    names = set(getattr(model.whole, "_no_split_modules", None) or ())
    decoder: nn.Module = model.whole.get_decoder()
    return [module for module in decoder.modules() if type(module).__name__ in names]
