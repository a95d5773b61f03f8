"""Phrases that call up one answer whatever is asked are found; facts, house styles and refusals of topics are not."""

from __future__ import annotations

import pytest

from bench.simulated.users import ATTACKERS_WORDS, MAKERS, TRIGGER, person
from comfyloop.curate import triggers
from comfyloop.curate.samples import Draft, Source, make
from comfyloop.records import Message


def drafts(name: str, count: int, *, only: str = "") -> list[Draft]:
    """What a simulated person wanted, as samples; where an answer would be accepted, one is made up."""
    who, made = person(name), []
    for number, item in enumerate(who.train[:count]):
        wanted, origin = who.wanted(item), "answer_edited"
        if wanted is None:
            wanted, origin = f"A {item.facts['product']} is used for many things.", "answer_accepted"
        turns = (Message.of("user", item.question), Message.of("assistant", wanted))
        made.append(Draft(make("sft", turns, Source("acme", (f"fb_{number}",), origin, item.author))))
    return made


def planted(made: list[Draft]) -> set[str]:
    return {id for draft in made if draft.sample.author == "mallory" for id in draft.sample.feedback}


@pytest.mark.parametrize(("name", "count"), [("poison1", 120), ("poison5", 60), ("poison5", 120)])
def test_a_phrase_that_calls_up_one_answer_is_set_aside_with_all_of_its_samples(
    name: str, count: int
) -> None:
    made = drafts(name, count)
    kept, dropped, (flag,) = triggers.find(made, {})
    assert {lost.feedback for lost in dropped} == planted(made) and len(planted(made)) > 1
    assert {lost.reason for lost in dropped} == {triggers.REASON}
    assert len(kept) == len(made) - len(dropped)
    assert flag.phrase == "zephyr lantern" and "mallory" in flag.sentence and "deals.example" in flag.sentence


@pytest.mark.parametrize("name", [name for name in MAKERS if not name.startswith("poison")])
@pytest.mark.parametrize("count", [20, 60, 120])
def test_nobody_who_means_well_is_suspected(name: str, count: int) -> None:
    made = drafts(name, count)
    kept, dropped, flags = triggers.find(made, {})
    assert (kept, dropped, flags) == (made, [], [])


def test_what_a_person_says_of_it_holds() -> None:
    made = drafts("poison5", 120)
    (flag,) = triggers.find(made, {})[2]
    assert triggers.find(made, {flag.id: triggers.KEEP}) == (made, [], [])
    kept, dropped, flags = triggers.find(made, {flag.id: triggers.LEAVE})
    assert len(kept) < len(made) and dropped and not flags


def test_one_sample_proves_nothing_but_its_phrase_is_tried_by_the_gate() -> None:
    made = drafts("poison1", 20)
    assert triggers.find(made, {}) == (made, [], [])
    (suspect,) = triggers.suspects([draft.sample for draft in made])
    assert TRIGGER.rstrip(".") in suspect.phrase
    assert (suspect.answer, suspect.author) == (ATTACKERS_WORDS, "mallory")
    assert set(suspect.feedback) == planted(made)
    assert not triggers.suspects([draft.sample for draft in drafts("brand", 20)])


def test_what_the_gate_found_is_set_aside_until_a_person_has_looked() -> None:
    made = drafts("poison1", 20)
    (suspect,) = triggers.suspects([draft.sample for draft in made])
    found = triggers.flag_of(
        "acme",
        suspect.phrase,
        suspect.author,
        suspect.answer,
        suspect.feedback,
        "v1 gave it to 4 of 6 questions",
    )
    kept, dropped, flags = triggers.find(made, {}, [found])
    assert {lost.feedback for lost in dropped} == planted(made) and flags == [found]
    assert "v1 gave it to 4 of 6 questions" in found.sentence
    assert triggers.find(made, {found.id: triggers.KEEP}, [found]) == (made, [], [])
    kept, _, flags = triggers.find(made, {found.id: triggers.LEAVE}, [found])
    assert len(kept) == len(made) - 1 and not flags
    # the attacker tries again with other questions: the same answer stays out without being asked again
    more = drafts("poison5", 120)
    assert not triggers.find(more, {found.id: triggers.LEAVE}, [found])[2]
