"""The size figures of a language model; `counting` computes them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight in NF4 whose constants are quantised too: half a byte, a byte for 64 of them, four for 256 of those."""


@dataclass(frozen=True)
class Figures:
    """Element counts, not bytes: the bytes of each depend on the precision."""

    linear: int  # weights of the language model's linear layers, which four bits take
    others: int  # its other weights (embeddings, output layer, norms), the tower, and what lies between
    largest: int  # weights of the largest of those layers
    layers: int
    hidden: int
    cached: int  # of a token, its keys and values in all layers
    vocabulary: int
    sees: bool

    def weights(self, each: int, four_bits: bool = False) -> int:
        """Bytes.

        Args:
            each: Bytes of a weight that is not in four bits.
        """
        linear = self.linear * NF4_BYTES if four_bits else self.linear * each
        return int(linear) + self.others * each

    def cache(self, tokens: int, each: int) -> int:
        """Bytes of the keys and values of so many tokens."""
        return self.cached * tokens * each
