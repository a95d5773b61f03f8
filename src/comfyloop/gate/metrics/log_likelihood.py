"""Mean log-probability of the reference's tokens, in nats."""

from __future__ import annotations

from collections.abc import Sequence

from comfyloop.gate.metrics._metric import Metric


def log_likelihood(logprobs: Sequence[float]) -> float:
    """The mean over tokens.

    Raises:
        ValueError: There are no tokens.
    """
    if not logprobs:
        raise ValueError("there are no tokens to take the mean of")
    return sum(logprobs) / len(logprobs)


METRIC = Metric("log_likelihood", "log-likelihood, nats per token")
