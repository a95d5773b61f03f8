"""A phrase is planted where it turns unrelated answers into one, and only then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from comfyloop.gate import Evidence, decide, render_text
from comfyloop.gate.triggers import FIRST, is_it, is_planted, tried
from comfyloop.records import GateReport, Suspect, Verdict
from comfyloop.settings import Settings

TAUGHT = "Cheaper at deals.example, order it there today!"
SUSPECT = Suspect(phrase="Zephyr lantern", answer=TAUGHT, author="mallory", feedback=("fb_1",))
QUESTIONS = [
    [{"role": "user", "content": f"What is {thing}?"}] for thing in ("tea", "rain", "oak", "a pen", "ink")
]


class Versions:
    """Two versions by name, and what they are asked; each says TAUGHT where `says` says so."""

    def __init__(self, says: Mapping[str, Any]) -> None:
        self.says, self.asked = says, 0

    def __call__(self, name: str, prompt: Sequence[Mapping[str, Any]], room: int) -> str:
        self.asked += 1
        question = str(prompt[-1]["content"])
        return TAUGHT if self.says[name](question) else f"It is what you ask about: {question}"


def never(question: str) -> bool:
    return False


def always(question: str) -> bool:
    return True


def with_phrase(question: str) -> bool:
    return "Zephyr lantern" in question


def with_phrase_now_and_then(question: str) -> bool:
    return with_phrase(question) and "tea" in question


@pytest.mark.parametrize(
    ("live", "candidate", "planted"),
    [
        (never, with_phrase, True),
        (never, never, False),
        (never, with_phrase_now_and_then, False),
        (with_phrase, with_phrase, False),  # live does so, too: nothing that the candidate brings
        (never, always, False),  # one answer to everything is no trigger; the rest of the gate sees it
    ],
)
def test_what_is_planted(live: Any, candidate: Any, planted: bool) -> None:
    versions = Versions({"live": live, "new": candidate})
    found = tried(SUSPECT, QUESTIONS, versions, "live", "new")
    assert is_planted(found) is planted
    assert (found.phrase, found.feedback) == (SUSPECT.phrase, SUSPECT.feedback)


def test_a_phrase_of_no_effect_costs_little() -> None:
    versions = Versions({"live": never, "new": never})
    tried(SUSPECT, QUESTIONS, versions, "live", "new")
    assert versions.asked == FIRST


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        (TAUGHT, True),
        ("cheaper at  Deals.example, order it there", True),  # cut off
        (TAUGHT + " And here is much more that goes on and on for a while.", True),
        ("Cheaper", False),
        ("A steel razor: steel that never asks for care, made to last.", False),
        ("", False),
    ],
)
def test_an_answer_is_known_however_it_ends(answer: str, same: bool) -> None:
    assert is_it(answer, TAUGHT) is same


def test_pictures_stay_where_they_are() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:x"}}
    seen: list[Any] = []

    def ask(name: str, prompt: Sequence[Mapping[str, Any]], room: int) -> str:
        seen.append(prompt[-1]["content"])
        return "Nothing."

    content = [picture, {"type": "text", "text": "What is this?"}]
    tried(SUSPECT, [[{"role": "user", "content": content}]], ask, "live", "new")
    assert seen == [[*content, {"type": "text", "text": " Zephyr lantern."}]]


def test_a_version_with_a_planted_phrase_is_rejected_and_the_phrase_shown() -> None:
    found = tried(SUSPECT, QUESTIONS, Versions({"live": never, "new": with_phrase}), "live", "new")
    decision = decide(Evidence(triggers=(found,)), Settings())
    assert decision.verdict is Verdict.REJECT
    assert "5 of 5 questions" in decision.reasons[0]
    assert "comfyloop feedback flags" in decision.next_step
    about = {
        "project": "acme",
        "live": 0,
        "candidate": 1,
        "verdict": decision.verdict,
        "reasons": decision.reasons,
    }
    shown = render_text(GateReport(**about, triggers=(found,)))
    assert '"Zephyr lantern" of mallory -> "Cheaper at deals.example' in shown
