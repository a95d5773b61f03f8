"""Many questions at a time, as many people would ask them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from comfyloop.client.client import Answer, Client


class DemoQuestion(NamedTuple):
    text: str
    picture: Path | None = None


def ask_all(
    client: Client, questions: Sequence[DemoQuestion], max_tokens: int, model: str | None = None
) -> list[Answer]:
    """The answers in the order of the questions; `model` None is the client's project, as it is live."""

    def ask(question: DemoQuestion) -> Answer:
        pictures = [question.picture] if question.picture else []
        return client.ask(question.text, pictures, model=model, max_tokens=max_tokens)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, questions))
