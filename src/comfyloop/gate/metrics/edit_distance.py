"""Characters to change from the answer to the reference, over the longer one's length: 0 equal, 1 all."""

from __future__ import annotations

from comfyloop.gate.metrics._metric import Metric


def edit_distance(answer: str, reference: str) -> float:
    """Levenshtein distance of two texts in characters over the longer one's length, 0..1.

    White space at the ends does not count.
    """
    from rapidfuzz.distance import Levenshtein  # not where the service starts: it brings all its kinds along

    first, second = answer.strip(), reference.strip()
    return Levenshtein.normalized_distance(first, second)


METRIC = Metric("edit_distance", "edit distance, 0 to 1", higher_is_better=False, of_answer=edit_distance)
