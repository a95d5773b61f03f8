"""Training in bfloat16 with float32 masters, their moving average, and checkpoints that survive a kill.

On a CPU with bfloat16 instructions the convolutions run several times faster than in float32; the masters
keep the small updates that bfloat16 would round away.
"""

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comfyloop.durable import replace_whole


class TrainingState:
    """One module, its masters, average and optimizer, and where the run stands.

    Args:
        faster: How many times the rate the weights of some names learn with, by the ends of those names.
        muon_except: Train matrices and convolutions by Muon (Jordan et al. 2024), but for those whose names begin so;
            None leaves all to AdamW.
    """

    def __init__(
        self,
        module: nn.Module,
        rate: float,
        decay: float,
        weight_decay: float = 0.0,
        faster: dict[str, float] | None = None,
        muon_except: tuple[str, ...] | None = None,
    ) -> None:
        self.module = module
        self.names = [name for name, _ in module.named_parameters()]
        self.masters = [p.detach().float().clone() for p in module.parameters()]
        module.to(torch.bfloat16)
        self.average = [m.clone() for m in self.masters]
        self.decay = decay
        # for the optimizers: the same memory, a matrix where Muon takes it
        self.views = list(self.masters)
        kinds: dict[tuple[bool, float], list[Tensor]] = {}
        for i, (name, master) in enumerate(zip(self.names, self.masters, strict=True)):
            times = next((f for end, f in (faster or {}).items() if name.endswith(end)), 1.0)
            matrix = muon_except is not None and master.ndim > 1 and not name.startswith(muon_except)
            if matrix:
                self.views[i] = master.view(len(master), -1)
            kinds.setdefault((matrix, times), []).append(self.views[i])
        groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for (matrix, times), weights in kinds.items():
            groups[matrix].append({"params": weights, "times": times})
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                groups[False], lr=rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
            )
        ]
        if groups[True]:
            self.optimizers.append(
                torch.optim.Muon(
                    groups[True], lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
                )
            )
        self.step = 0
        self.chance = random.Random(0)

    def update(self, rate: float, max_norm: float = 1.0) -> float:
        """Apply the gradients that stand on the module; returns their norm."""
        for view, p in zip(self.views, self.module.parameters(), strict=True):
            assert p.grad is not None
            view.grad = p.grad.float().contiguous().view_as(view)
            p.grad = None
        norm = float(nn.utils.clip_grad_norm_(self.views, max_norm))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["times"]
            optimizer.step()
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (20 + self.step))
        torch._foreach_lerp_(self.average, self.masters, 1 - decay)
        self.copy_to_module(self.masters)
        return norm

    @torch.no_grad()
    def copy_to_module(self, weights: list[Tensor]) -> None:
        for p, weight in zip(self.module.parameters(), weights, strict=True):
            p.copy_(weight)

    def averaged(self) -> dict[str, Tensor]:
        return {name: w.clone() for name, w in zip(self.names, self.average, strict=True)}

    def save(self, path: Path) -> None:
        state = {
            "masters": self.masters,
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "chance": self.chance.getstate(),
            "torch": torch.get_rng_state(),
        }
        replace_whole(path, lambda draft: torch.save(state, draft))

    def resume(self, path: Path) -> bool:
        if not path.exists():
            return False
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
        for mine, saved in ((self.masters, state["masters"]), (self.average, state["average"])):
            for target, source in zip(mine, saved, strict=True):
                target.copy_(source)
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        self.step = state["step"]
        self.chance.setstate(state["chance"])
        torch.set_rng_state(state["torch"])
        self.copy_to_module(self.masters)
        return True
