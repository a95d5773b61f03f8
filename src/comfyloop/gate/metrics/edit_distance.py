"""Characters to change from the answer to the reference, over the longer one's length: 0 equal, 1 all."""

from __future__ import annotations

from comfyloop.gate.metrics._metric import Metric


def edit_distance(answer: str, reference: str) -> float:
    """Levenshtein distance of two texts in characters over the longer one's length, 0..1.

    White space at the ends does not count.
    """
    first, second = answer.strip(), reference.strip()
    return levenshtein(first, second) / max(len(first), len(second), 1)


def levenshtein(first: str, second: str) -> int:
    """Insertions, deletions and replacements of one character that turn `first` into `second`.

    G. Myers, "A fast bit-vector algorithm for approximate string matching", JACM 46 (1999), in H. Hyyro's
    form (2003): one bit a character of `first`, a handful of integer operations a character of `second`.
    """
    if not first or not second:
        return len(first) + len(second)
    at: dict[str, int] = {}
    for index, character in enumerate(first):
        at[character] = at.get(character, 0) | 1 << index
    every, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    up, down, distance = every, 0, len(first)  # bits where the column's next entry is one more, one less
    for character in second:
        match = at.get(character, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        right, left = down | ~(diagonal | up) & every, up & diagonal
        distance += bool(right & last) - bool(left & last)
        right, left = right << 1 | 1, left << 1
        up, down = (left | ~(diagonal | right)) & every, right & diagonal & every
    return distance


METRIC = Metric("edit_distance", "edit distance, 0 to 1", higher_is_better=False, of_answer=edit_distance)
