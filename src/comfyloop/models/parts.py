"""Which part of a model a module belongs to. A model has up to three: the language model (`llm`, head and embeddings
with it), the vision tower (`vit`) and what lies between them (`aligner`: projector, connector, merger). The words are
ms-swift's."""

from __future__ import annotations

import re
from typing import Any, Literal

Part = Literal["llm", "vit", "aligner"]

_ALIGNER = re.compile(
    r"(^|\.)(multi_?modal_projector|mm_projector|vision_projector|projector|connector|aligner|merger"
    r"|merger_list|deepstack_merger_list|modality_projection|image_newline)(\.|$)"
)


class Parts:
    """Tells which part of a model a module or parameter belongs to, by its name."""

    def __init__(self, base: Any) -> None:
        decoder = base.get_decoder()
        self.prefix = next(name for name, module in base.named_modules() if module is decoder)
        self.vit = base.get_encoder(modality="image")  # the model itself where it has none
        heads = (base.get_output_embeddings(), base.get_input_embeddings())
        self._llm = {name for name, module in base.named_modules() if module is not None and module in heads}
        self._whole = self.vit is base or self.vit is base.base_model

    def of(self, name: str) -> Part:
        if self._whole or name.startswith(self.prefix + ".") or name == self.prefix:
            return "llm"
        if name in self._llm or name.rpartition(".")[0] in self._llm:
            return "llm"
        return "aligner" if _ALIGNER.search(name) else "vit"
