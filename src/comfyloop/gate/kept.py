"""A cache of versions' answers and scores, so that nothing is asked twice.

Names of adapters are never reused, and greedy answers and scores are functions of the question: a version repeats
them, except for the engine's noise, which the gate measures separately. The base model's results are stored in the
cache directory for all projects.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from comfyloop.durable import write_whole

_FORMAT = 2


class Scored(NamedTuple):
    """Mean log-probability of an answer's tokens in nats, and how many there are."""

    mean: float
    tokens: int


class Kept:
    """Answers and scores by (model, question, answer). Thread-safe; empty at first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[str, dict[str, str]] = {}
        self._scores: dict[str, dict[str, Scored]] = {}
        self._changed: set[str] = set()

    def answer(self, model: str, key: str) -> str | None:
        with self._lock:
            return self._answers.get(model, {}).get(key)

    def score(self, model: str, key: str) -> Scored | None:
        with self._lock:
            return self._scores.get(model, {}).get(key)

    def keep_answer(self, model: str, key: str, answer: str) -> None:
        with self._lock:
            self._answers.setdefault(model, {})[key] = answer
            self._changed.add(model)

    def keep_score(self, model: str, key: str, score: Scored) -> None:
        with self._lock:
            self._scores.setdefault(model, {})[key] = score
            self._changed.add(model)

    def only(self, models: Collection[str]) -> None:
        """Drop the results of other versions: they are not judged any more."""
        with self._lock:
            for table in (self._answers, self._scores):
                for model in [name for name in table if name not in models]:
                    del table[model]

    def load(self, model: str, base_model: str, cache_dir: Path) -> None:
        """Add the stored results of the base model, which the engine calls `model`."""
        try:
            cache = json.loads(_file(base_model, cache_dir).read_text(encoding="utf-8"))
            answers = {str(key): str(text) for key, text in cache["answers"].items()}
            scores = {
                str(key): Scored(float(mean), int(tokens)) for key, (mean, tokens) in cache["scores"].items()
            }
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return  # a torn cache is only a reason to ask again
        with self._lock:
            self._answers[model] = answers | self._answers.get(model, {})
            self._scores[model] = scores | self._scores.get(model, {})

    def save(self, model: str, base_model: str, cache_dir: Path, keys: Collection[str]) -> None:
        """Store new results of the base model for other turns and projects: those of these (general) questions."""
        with self._lock:
            if model not in self._changed:
                return
            self._changed.discard(model)
            general_keys = set(keys)
            text = json.dumps(
                {
                    "answers": {k: v for k, v in self._answers.get(model, {}).items() if k in general_keys},
                    "scores": {k: v for k, v in self._scores.get(model, {}).items() if k in general_keys},
                },
                ensure_ascii=False,
            )
        write_whole(_file(base_model, cache_dir), text)


def key_of(messages: Sequence[Mapping[str, Any]], answer: str | int) -> str:
    """A key of a question: a hash of its messages, pictures included, and of the scored answer or the token
    limit."""
    text = json.dumps([list(messages), answer], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _file(base_model: str, cache_dir: Path) -> Path:
    digest = hashlib.sha256(f"{_FORMAT}\0{base_model}".encode()).hexdigest()[:32]
    return cache_dir / "gate" / f"{digest}.json"
