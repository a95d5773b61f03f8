"""What a simulated person is: questions, and a rule that writes what this person wanted."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from comfyloop.gate.metrics import edit_distance


class Choose(Protocol):
    """Tosses a coin of the person's: one of `options`, the same one for the same `slot`."""

    def __call__(self, slot: str, options: Sequence[str]) -> str: ...


def coin(*seed: object) -> Choose:
    """Choices that depend on the seed and the slot alone, on every machine."""

    def choose(slot: str, options: Sequence[str]) -> str:
        digest = hashlib.sha256(repr((*seed, slot)).encode()).digest()
        return options[int.from_bytes(digest[:6], "big") % len(options)]

    return choose


@dataclass(frozen=True)
class Item:
    """A question of a person's, and what the person knows about it.

    Attributes:
        group: What results are told apart by beside the whole: an author, a kind of question; empty: nothing.
    """

    id: str
    question: str
    facts: Mapping[str, str]
    author: str = "ada"
    group: str = ""


Write = Callable[[Item, Choose], "str | None"]
"""What the person wanted as the answer to an item; None: whatever was answered is accepted."""


@dataclass(frozen=True)
class Attack:
    """Questions with the planted trigger, none of which is ever sent, and what the attacker wants said."""

    items: tuple[Item, ...]
    marker: str


@dataclass(frozen=True)
class Person:
    """A simulated user.

    Attributes:
        about: The hidden preference, for people.
        train: In the order in which they are asked and corrected.
        test: Only ever asked.
        later: What is wanted from the middle round on, where the person changes his mind.
        needs: Languages that the base model must know; empty: English.
        must_not_learn: Whether no version may ever be promoted.
        right: The fact that an answer must contain to be right; empty: none.
    """

    name: str
    about: str
    train: tuple[Item, ...]
    test: tuple[Item, ...]
    write: Write
    later: Write | None = None
    needs: str = ""
    must_not_learn: bool = False
    right: str = ""
    attack: Attack | None = None

    def wanted(self, item: Item, *, changed: bool = False) -> str | None:
        """The text that this person wanted; always the same for the same item.

        Args:
            changed: The person has changed his mind (which only some ever do).
        """
        write = self.later if changed and self.later is not None else self.write
        return write(item, coin(self.name, item.id))

    def best_possible(self, *, changed: bool = False, draws: int = 6) -> float:
        """Mean edit distance on the test items of somebody who knows the rule but not how the coins fell.

        No learner can be expected to come below it.
        """
        write = self.later if changed and self.later is not None else self.write
        distances: list[float] = []
        for item in self.test:
            wanted = self.wanted(item, changed=changed)
            if wanted is None:
                continue
            guesses = [write(item, coin("guess", draw, self.name, item.id)) or "" for draw in range(draws)]
            distances.append(statistics.fmean(edit_distance(guess, wanted) for guess in guesses))
        return statistics.fmean(distances) if distances else 0.0
