"""Optional libraries that a run needs. Imports none of them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from comfyloop.errors import ModelError
from comfyloop.train.specs.text import TrainSpec


@dataclass(frozen=True)
class Need:
    what: str  # what asks for it, as in a spec
    package: str  # as it is imported
    extra: str  # of this package

    @property
    def is_met(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    @property
    def complaint(self) -> str:
        return f"{self.what} needs {self.package}, which is not installed."

    @property
    def hint(self) -> str:
        return f"pip install 'comfyloop[{self.extra}]'"


QLORA = Need("quant_method = bnb", "bitsandbytes", "quant")
ZERO = Need("parallel = zero2 or zero3", "deepspeed", "deepspeed")


def unmet(spec: TrainSpec) -> list[Need]:
    """The libraries that a run of this spec needs and this environment lacks; ms-swift has its own."""
    if spec.train_engine == "swift":
        return []
    needs = [QLORA] if spec.quant_method == "bnb" else []
    needs += [ZERO] if spec.world_size > 1 and spec.parallel != "fsdp2" else []
    return [need for need in needs if not need.is_met]


def refuse_unmet(spec: TrainSpec) -> None:
    """Raises ModelError when something is missing."""
    for need in unmet(spec):
        raise ModelError(need.complaint, need.hint)
