from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from comfyloop.recall import Recall
from comfyloop.records import AnswerEdited, Generation, Message, Project, new_id
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback, generations, open_store, projects


@dataclass
class Taught:
    """A project, "acme", and what a person made of its answers."""

    store: Store
    recall: Recall

    def answer(
        self,
        question: str,
        answer: str = "Dull.",
        images: tuple[str, ...] = (),
        system: str = "",
        finish_reason: str = "stop",
    ) -> str:
        """The id of a generation."""
        messages = [Message.of("system", system)] if system else []
        messages.append(Message.of("user", question, images))
        made = Generation(
            id=new_id("gen"),
            project="acme",
            version=0,
            model="acme",
            messages=tuple(messages),
            answer=answer,
            finish_reason=finish_reason,
        )
        with self.store.begin(durable=False) as conn:
            generations.add(conn, made)
        return made.id

    def add(self, *items: object) -> None:
        with self.store.begin(durable=False) as conn:
            feedback.add(conn, items)  # type: ignore[arg-type]

    def edit(self, question: str, edited: str, author: str = "local", **generation: object) -> str:
        """The id of the feedback."""
        item = AnswerEdited(
            project="acme",
            generation=self.answer(question, **generation),  # type: ignore[arg-type]
            edited=edited,
            author=author,
        )
        self.add(item)
        return item.id

    def found(
        self,
        question: str,
        most: int = 3,
        *,
        images: tuple[str, ...] = (),
        version: int = 0,
        system: str = "",
        careful: bool = False,
    ) -> list[str]:
        """The answers of the examples for a question, the best first, each once."""
        messages = [Message.of("system", system)] if system else []
        messages.append(Message.of("user", question, images))
        examples = self.recall.examples("acme", version, messages, most, careful=careful)
        return list(dict.fromkeys(example.answer.text for example in reversed(examples)))


@pytest.fixture
def taught(settings: Settings) -> Iterator[Taught]:
    with open_store(settings) as store:
        with store.begin() as conn:
            projects.add(conn, Project(name="acme", base_model="m"))
        yield Taught(store, Recall(store))
