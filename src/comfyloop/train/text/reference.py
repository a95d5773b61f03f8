"""Log-probabilities of the answers before training: the reference of preference recipes.

The reference is the model as it is loaded: the base with a fresh LoRA, or the parent version if the run continues
from one. It is evaluated once, before the first step, so that no second copy of it is ever in memory, and the
results are stored with the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from comfyloop.train.data.batches import in_groups
from comfyloop.train.data.examples import Example
from comfyloop.train.data.reading import fingerprint
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory, write_atomically
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.answers import EVALUATION_TOKENS, read_answers
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.models import Loaded


@torch.no_grad()
def reference_log_probs(
    directory: RunDirectory,
    spec: TrainSpec,
    model: Loaded,
    features: ImageFeatures,
    examples: Sequence[Example],
    control: Control,
) -> Tensor:
    """[n] log-probability of the answer of each example, before any training.

    Call it before a checkpoint is restored. A resumed run reads the stored values.
    """
    mark = fingerprint(spec, examples)
    saved_sums = _saved(directory.reference, mark)
    if saved_sums is not None:
        return saved_sums.to(model.device)
    model.eval()
    sums = torch.empty(len(examples), dtype=torch.float32)
    for indices in in_groups(examples, EVALUATION_TOKENS):
        control.check()
        sums[indices] = read_answers(model, features, [examples[i] for i in indices]).sums.cpu()
    write_atomically(directory.reference, save({"log_probs": sums}, metadata={"fingerprint": mark}))
    return sums.to(model.device)


def _saved(file: Path, mark: str) -> Tensor | None:
    try:
        with safe_open(file, "pt") as opened:
            if opened.metadata().get("fingerprint") == mark:
                tensor: Tensor = opened.get_tensor("log_probs")
                return tensor
    except (OSError, SafetensorError):
        pass  # not there yet, or torn: it is asked again
    return None
