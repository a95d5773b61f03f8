"""Latents and text states on disk, each keyed by everything that it depends on.

A picture's latents are keyed by its bytes, the crop and the VAE's weights; a caption's states by the caption and
the text encoders' weights. A second run therefore computes nothing, and changing one picture recomputes one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from comfyloop.durable import replace_whole
from comfyloop.train.run.directory import disk_error

FORM = "1"
"""Raise this when what is stored under a key would change with this code."""


def key(*parts: object) -> str:
    return hashlib.sha256("\x00".join([FORM, *map(str, parts)]).encode()).hexdigest()


def weights_key(modules: Iterable[nn.Module]) -> str:
    """A hash of all weights, dtypes included: half precision gives other latents."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            data = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
            digest.update(np.ascontiguousarray(data.reshape(-1).view(torch.uint8).numpy()).data)
    return digest.hexdigest()


class Cache:
    """Small sets of tensors in a folder, and in memory once they have been used.

    `made` counts what had to be computed since the beginning.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0
        self._in_memory: dict[str, dict[str, Tensor]] = {}

    def get(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors under a key; computed and stored if they are missing.

        Raises:
            StorageError: The disk refuses.
        """
        if name in self._in_memory:
            return self._in_memory[name]
        path = self.folder / name[:2] / f"{name}.safetensors"
        try:
            tensors: dict[str, Tensor] = load_file(path)
        except (OSError, SafetensorError):  # not there, or cut off by a power failure
            tensors = make()
            self.made += 1
            self._write(path, tensors)
        self._in_memory[name] = tensors
        return tensors

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_whole(path, lambda draft: save_file(on_cpu, draft))
        except OSError as error:
            raise disk_error(path, error) from error
