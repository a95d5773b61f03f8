"""What is measured of one item, one file a metric, each declaring its `METRIC`."""

from __future__ import annotations

from comfyloop.declared import declared
from comfyloop.gate.metrics._metric import Metric

METRICS: dict[str, Metric] = declared(__name__, Metric)

# After the table, which imports the modules: these functions have the names of theirs.
from comfyloop.gate.metrics.edit_distance import edit_distance  # noqa: E402
from comfyloop.gate.metrics.log_likelihood import log_likelihood  # noqa: E402
from comfyloop.gate.metrics.right_answer import right_answer_of  # noqa: E402

LOG_LIKELIHOOD, EDIT_DISTANCE, RIGHT_ANSWER = "log_likelihood", "edit_distance", "right_answer"
DENOISING_LOSS, PICK_MARGIN, PICK_ACCURACY = "denoising_loss", "pick_margin", "pick_accuracy"
TEXT_SIMILARITY, KEPT_SIMILARITY, TASTE = "text_similarity", "kept_similarity", "taste"


def of_answers(answers: tuple[str, str], wanted: str) -> dict[str, tuple[float, float]]:
    """What metrics of answers say of the live version's and the candidate's."""
    live, candidate = answers
    return {
        name: (metric.of_answer(live, wanted), metric.of_answer(candidate, wanted))
        for name, metric in METRICS.items()
        if metric.of_answer is not None
    }


__all__ = [
    "DENOISING_LOSS",
    "EDIT_DISTANCE",
    "KEPT_SIMILARITY",
    "LOG_LIKELIHOOD",
    "METRICS",
    "PICK_ACCURACY",
    "PICK_MARGIN",
    "RIGHT_ANSWER",
    "TASTE",
    "TEXT_SIMILARITY",
    "Metric",
    "edit_distance",
    "log_likelihood",
    "of_answers",
    "right_answer_of",
]
