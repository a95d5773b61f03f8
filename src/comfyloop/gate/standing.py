"""Scores of a version and its base model on the general suites and on held-out items, for the version's card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import fsum
from typing import NamedTuple

from comfyloop.errors import InvalidInput, TooLarge
from comfyloop.gate import suites
from comfyloop.gate.asking import Asker, Progress, Scorer, at_once, run
from comfyloop.gate.kept import Kept
from comfyloop.gate.suites import Question
from comfyloop.records import Sample
from comfyloop.settings import Settings

HELD_OUT = "held-out corrections, log-likelihood in nats per token"
GENERAL = "general questions, chance of the right answer"


class Standing(NamedTuple):
    """Means over the items of one suite; more is better."""

    suite: str
    items: int
    base: float
    this: float


def standings(
    engine: Scorer,
    kept: Kept,
    base: str,
    this: str,
    holdout: Sequence[Sample],
    images: Callable[[str], bytes],
    settings: Settings,
    progress: Progress | None = None,
) -> list[Standing]:
    """Measure both on every item, each once. A held-out item that the engine refuses (it is too long, or its picture
    cannot be read) is not counted.

    Args:
        base, this: What the engine calls the base model and the version.
        holdout: Samples that the version was not trained on; answers that were not wanted are left out.
        images: The bytes of an image by its hash.
    """
    asker = Asker(engine, kept, (base, this), base, images)
    wanted_samples = [sample for sample in holdout if sample.label is not False]
    questions = [question for question in suites.general_questions() if question.right]

    def recalled(question: Question) -> tuple[str, float, float] | None:
        """None where the model does not see and is shown a picture."""
        result = asker.recall(question)
        return (
            (f"{GENERAL}: {question.suite}", result.scores[0], result.scores[2])
            if result is not None
            else None
        )

    def looked(sample: Sample) -> tuple[str, float, float] | None:
        try:
            return (HELD_OUT, *asker.look(sample).likelihood)
        except (InvalidInput, TooLarge):
            return None

    calls: list[Callable[[], tuple[str, float, float] | None]] = [
        *(partial(looked, sample) for sample in wanted_samples),
        *(partial(recalled, question) for question in questions),
    ]
    pairs_by_suite: dict[str, list[tuple[float, float]]] = {}
    for one in run(calls, at_once(settings), progress):
        if one is not None:
            pairs_by_suite.setdefault(one[0], []).append(one[1:])
    return [
        Standing(suite, len(pairs), *(fsum(column) / len(pairs) for column in zip(*pairs, strict=True)))
        for suite, pairs in pairs_by_suite.items()
    ]
