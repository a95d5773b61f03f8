"""The declaration of a metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """
    Attributes:
        name: That of its file, and what it is called in reports.
        words: The same for a person, with its unit.
        digits: After the point, where it is shown.
        of_answer: From an answer and the text that was wanted to the value. Such a metric is measured of every answer
            that both versions are asked for, and told; those that the verdict goes by are named in decision.py. None:
            it is measured where it is asked for.
    """

    name: str
    words: str
    higher_is_better: bool = True
    digits: int = 3
    of_answer: Callable[[str, str], float] | None = None
