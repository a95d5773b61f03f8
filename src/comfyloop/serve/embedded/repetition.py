"""An answer that goes round in a circle, noticed while it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Repetition:
    """When an answer counts as going round: a pattern of so many tokens, so many times in a row. Names are vLLM's."""

    max_pattern_size: int
    min_pattern_size: int
    min_count: int


class Circle:
    """Looks at each new token of one answer; the work is a comparison for each size of pattern."""

    def __init__(self, rule: Repetition) -> None:
        self._count = rule.min_count
        # by size: how many of the last tokens are those that stood so many places before them
        self._alike = dict.fromkeys(range(max(1, rule.min_pattern_size), rule.max_pattern_size + 1), 0)

    def closed(self, answer: Sequence[int]) -> bool:
        """Whether, with its newest token, the answer ends in a pattern often enough in a row."""
        newest, found = len(answer) - 1, False
        for size, alike in self._alike.items():
            again = newest >= size and answer[newest] == answer[newest - size]
            self._alike[size] = alike + 1 if again else 0
            found = found or (again and alike + 1 >= size * (self._count - 1))
        return found
