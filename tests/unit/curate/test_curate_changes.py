"""Who wants other answers than before to the same kind of question is found; who only does something else is not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from bench.simulated.users import MAKERS, person
from comfyloop.curate import changes
from comfyloop.curate.samples import Draft, Source, make
from comfyloop.records import Flag, Message
from comfyloop.store.flags import BOTH

When = dict[str, tuple[datetime, int]]
Written = Sequence[tuple[str, str, str]]
"""Questions, wanted answers and their authors."""


def written(name: str, count: int, *, changed_at: int | None = None) -> list[tuple[str, str, str]]:
    who = person(name)
    asked = [
        (item.question, who.wanted(item, changed=changed_at is not None and place >= changed_at), item.author)
        for place, item in enumerate(who.train[:count])
    ]
    return [(question, wanted, author) for question, wanted, author in asked if wanted is not None]


def drafts(rows: Written) -> tuple[list[Draft], When]:
    made, when = [], {}
    for place, (question, answer, author) in enumerate(rows):
        turns = (Message.of("user", question), Message.of("assistant", answer))
        made.append(Draft(make("sft", turns, Source("acme", (f"fb_{place}",), "answer_edited", author))))
        when[f"fb_{place}"] = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=place), place)
    return made, when


def places(flag: Flag) -> set[int]:
    return {int(id.removeprefix("fb_")) for id in flag.outdated}


@pytest.mark.parametrize(("at", "count"), [(20, 28), (20, 40), (60, 68), (60, 80), (60, 120)])
def test_what_was_wanted_before_a_change_of_mind_is_outdated(at: int, count: int) -> None:
    made, when = drafts(written("changes", count, changed_at=at))
    (flag,) = changes.find(made, when)
    assert (flag.kind, flag.id) == ("change", f"change-fb_{at}")
    assert places(flag) <= set(range(at)) and len(places(flag)) >= 0.9 * at
    assert [choice.feedback for choice in flag.choices][1] == f"fb_{at}"
    kept, dropped, asked = changes.apply(made, {}, [flag])
    assert {lost.feedback for lost in dropped} == set(flag.outdated) and asked == [flag]
    assert len(kept) == len(made) - len(dropped)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "changes"])
def test_nobody_who_keeps_his_mind_is_said_to_have_changed_it(name: str) -> None:
    rows = written(name, 120)
    for seed in range(10):
        assert changes.find(*drafts(random.Random(seed).sample(rows, len(rows)))) == []


def test_a_new_task_outdates_nothing() -> None:
    captions, summaries = written("brand", 60), written("terse", 60)
    assert changes.find(*drafts([*captions[:40], *summaries[:30]])) == []
    by_turns = [row for both in zip(captions, summaries, strict=True) for row in both]
    assert changes.find(*drafts(by_turns)) == []


def test_of_two_tasks_the_one_that_did_not_change_goes_on() -> None:
    captions, summaries = written("changes", 60, changed_at=40), written("terse", 60)
    (flag,) = changes.find(*drafts([row for both in zip(captions, summaries, strict=True) for row in both]))
    old_captions, old_summaries = set(range(0, 80, 2)), set(range(1, 80, 2))
    assert len(places(flag) & old_captions) >= 36 and len(places(flag) & old_summaries) <= 2


def test_another_authors_answers_are_nobody_elses_change() -> None:
    """Two people in turn want opposite things, as they always did."""
    rows = [(question, answer, "ada") for question, answer, _ in written("changes", 40, changed_at=0)]
    others = [(question, answer, "boris") for question, answer, _ in written("changes", 40)]
    assert changes.find(*drafts([*others, *rows])) == []


def test_a_person_may_say_that_both_hold_and_is_not_asked_again() -> None:
    made, when = drafts(written("changes", 80, changed_at=40))
    (flag,) = changes.find(made, when)
    assert changes.apply(made, {flag.id: BOTH}, [flag]) == (made, [], [])
    assert changes.find(made, when, [flag]) == []
    kept, dropped, asked = changes.apply(made, {flag.id: changes.NEWER}, [flag])
    assert len(kept) < len(made) and dropped and not asked


def test_who_changes_his_mind_twice_is_noticed_twice() -> None:
    captions = written("changes", 90)
    formal = written("changes", 90, changed_at=0)
    made, when = drafts([*captions[:30], *formal[30:60]])
    (first,) = changes.find(made, when)
    made, when = drafts([*captions[:30], *formal[30:60], *captions[60:90]])
    kept, _, _ = changes.apply(made, {}, [first])
    (second,) = changes.find(kept, when, [first])
    assert second.id == "change-fb_60" and places(second) <= set(range(30, 60)) and len(places(second)) >= 27
