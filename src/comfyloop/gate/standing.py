"""How a version and its base model stand on the general suites and on what is held out: numbers for its card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import fsum
from typing import NamedTuple

from comfyloop.gate import suites
from comfyloop.gate.asking import Asker, Scorer
from comfyloop.gate.kept import Kept
from comfyloop.gate.suites import Question
from comfyloop.records import Sample

HELD_OUT = "held-out corrections, log-likelihood in nats per token"
GENERAL = "general questions, chance of the right answer"
IN_FLIGHT = 6


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
    progress: Callable[[int, int], None] | None = None,
) -> list[Standing]:
    """Ask both for every item, each thing once.

    Args:
        base, this: What the engine calls the base model and the version.
        holdout: Samples that the version was not trained on; answers that were not wanted are left out.
        images: The bytes of an image by its hash.
        progress: Called with how many items are done, of how many. May raise to stop.
    """
    asker = Asker(engine, kept, (base, this), base, images)
    wanted = [sample for sample in holdout if sample.label is not False]
    questions = [question for question in suites.general_questions() if question.right]

    def recalled(question: Question) -> tuple[str, float, float] | None:
        """None where the model does not see and is shown a picture."""
        seen = asker.recall(question)
        return (f"{GENERAL}: {question.suite}", seen.scores[0], seen.scores[2]) if seen is not None else None

    def looked(sample: Sample) -> tuple[str, float, float]:
        return (HELD_OUT, *asker.look(sample).likelihood)

    found: dict[str, list[tuple[float, float]]] = {}
    with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="standing") as pool:
        pending: Iterable[tuple[str, float, float] | None] = (
            one for part in (pool.map(looked, wanted), pool.map(recalled, questions)) for one in part
        )
        for done, one in enumerate(pending, 1):
            if one is not None:
                found.setdefault(one[0], []).append(one[1:])
            if progress is not None:
                progress(done, len(wanted) + len(questions))
    return [
        Standing(suite, len(pairs), *(fsum(column) / len(pairs) for column in zip(*pairs, strict=True)))
        for suite, pairs in found.items()
    ]
