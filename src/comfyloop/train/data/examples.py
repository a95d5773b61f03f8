"""Training samples as tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from comfyloop.formats import Part
from comfyloop.train.kernels.losses import Targets


@dataclass
class Room:
    """The memory budget for pixels: bytes left."""

    left: int


class Pixels:
    """The processed pixels of a sample's images: kept in memory while there is room, otherwise computed again from
    the files on demand."""

    def __init__(
        self, fields: dict[str, Tensor], digest: bytes, make: Callable[[], dict[str, Tensor]], room: Room
    ) -> None:
        self.digest = digest  # of these and of all else that the vision tower is given
        self._make = make
        self._room = room
        self._held_bytes = sum(v.nbytes for v in fields.values())
        self._fields: dict[str, Tensor] | None = fields
        room.left -= self._held_bytes
        if room.left < 0:
            self.let_go()

    def let_go(self) -> None:
        self._fields = None
        self._room.left += self._held_bytes
        self._held_bytes = 0

    def __del__(self) -> None:
        self.let_go()

    def get(self) -> dict[str, Tensor]:
        return self._fields if self._fields is not None else self._make()


@dataclass(frozen=True, eq=False)
class Example:
    """One row as tensors. L tokens, of which A are answer tokens."""

    id: str
    line: int
    input_ids: Tensor  # [L] int64
    positions: Tensor  # [L] int64, or [n, L] where the model's positions have n dimensions (M-RoPE)
    answer: Tensor  # [A] int64: where the answer's tokens are, ascending, each >= 1
    images: dict[str, Tensor] = field(
        default_factory=dict
    )  # what the image processor gives besides pixels: image_grid_thw, image_sizes, ...
    pixels: Pixels | None = None  # None without images
    token_kinds: dict[str, Tensor] = field(
        default_factory=dict
    )  # per-token extras, [L]: mm_token_type_ids, ...
    image_tokens: int = 0  # tokens that stand for image features
    image_span: tuple[int, int] = (0, 0)  # the first of them and one past the last
    part: Part = "new"
    targets: Targets | None = None  # what the answer's tokens are to be, where not these alone: [A, k]

    def __len__(self) -> int:
        return self.input_ids.numel()

    def seen(self) -> dict[str, Tensor]:
        """All inputs of the vision tower; empty without images."""
        return self.images | self.pixels.get() if self.pixels is not None else {}


def digest_of(fields: dict[str, Tensor]) -> bytes:
    """A hash of names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=20)
    for name in sorted(fields):
        tensor = fields[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
