"""A disk cache of image features: keyed by what they depend on, verified on reading, limited in size, evicted by
age.

A file is named by a hash of the processed pixels (image bytes and processing together) and of the tower's weights,
so it never becomes stale, and several processes can share the folder: files appear by rename, and a damaged file
counts as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from comfyloop.durable import replace_whole

_LEFT = 0.9
"""Share of the limit that eviction leaves."""


class FeatureCache:
    """
    Args:
        folder: Made when it is absent.
        tower: What the features depend on besides the pixels, as `tower_hash` tells it.
        limit: Bytes on the disk.
    """

    def __init__(self, folder: Path, tower: bytes, limit: int) -> None:
        self.folder = folder
        self._tower = tower
        self._limit = limit
        self._size: int | None = None  # of all files, as far as this process knows

    def get(self, pixels: bytes) -> dict[str, Tensor] | None:
        """The tensors under this hash of pixels; None if there are none, or the file is damaged."""
        path = self._path(pixels)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                whole = (file.metadata() or {}).get("crc32") == str(_crc32(tensors))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError):
            whole = False
        if not whole:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # its age counts from its last use
        return dict(sorted(tensors.items(), key=lambda item: _order(item[0])))

    def put(self, pixels: bytes, tensors: dict[str, Tensor]) -> None:
        """Store tensors. A disk error is ignored: they are computed again another time."""
        path = self._path(pixels)
        on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        metadata = {"crc32": str(_crc32(on_cpu))}
        with contextlib.suppress(OSError, SafetensorError):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_whole(path, lambda draft: save_file(on_cpu, draft, metadata=metadata))
            self._make_room(path.stat().st_size)

    def _path(self, pixels: bytes) -> Path:
        name = hashlib.blake2b(pixels + self._tower, digest_size=20).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _make_room(self, written_bytes: int) -> None:
        if self._size is not None:
            self._size += written_bytes
        if self._size is not None and self._size <= self._limit:
            return
        files = []
        for path in self.folder.glob("??/*.safetensors"):
            with contextlib.suppress(OSError):  # another process may have evicted it
                stat = path.stat()
                files.append((stat.st_mtime, stat.st_size, path))
        self._size = sum(size for _, size, _ in files)
        if self._size <= self._limit:
            return
        for _, size, path in sorted(files):
            if self._size <= self._limit * _LEFT:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            self._size -= size


def tower_hash(parameters: Iterable[tuple[str, Tensor]], conditions: str) -> bytes:
    """A hash of weights that differs when any of them does, at the speed of memory.

    Args:
        parameters: Names and weights of all that features depend on.
        conditions: What else they depend on: precision, versions, attention.
    """
    digest = hashlib.blake2b(conditions.encode(), digest_size=20)
    for name, weight in parameters:
        flat = weight.detach().reshape(-1)
        bits = flat.view(
            {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[flat.element_size()]
        )
        some = bits[:: max(1, bits.numel() // 64)].cpu()
        digest.update(f"{name} {tuple(weight.shape)} {int(bits.sum(dtype=torch.int64))}".encode())
        digest.update(some.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()


def _crc32(tensors: dict[str, Tensor]) -> int:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return value


def _order(path: str) -> list[tuple[int, str]]:
    """Sorts `a/2` before `a/10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split("/")]
