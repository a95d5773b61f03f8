"""The simulated people of bench/flywheel.py: what they want follows from their rule alone, and unseen is unseen."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.simulated import homes, report, words
from bench.simulated.arms import ARMS, Arm, fitting
from bench.simulated.measures import mean, repetition, says_one_of, worst_step_back
from bench.simulated.people import Item, Person
from bench.simulated.users import ATTACKERS_WORDS, MAKERS, MARKER, TRIGGER, person
from comfyloop.curate.replay import questions
from comfyloop.gate.metrics import edit_distance
from comfyloop.gate.suites import general_questions

ROOT = Path(__file__).parents[3]
everybody = pytest.mark.parametrize("name", MAKERS)


@everybody
def test_there_is_enough_to_teach_and_nothing_of_it_is_asked_later(name: str) -> None:
    who = person(name)
    assert len(who.train) >= 6 * 20 >= 20 * 5
    assert len(who.test) >= 24
    taught = {item.question for item in who.train}
    unseen = [*who.test, *(who.attack.items if who.attack else ())]
    assert not taught & {item.question for item in unseen}
    assert len({item.id for item in (*who.train, *unseen)}) == len(who.train) + len(unseen)
    if name != "contradict":  # there, both authors are asked the same
        assert len(taught) == len(who.train)


@everybody
@pytest.mark.parametrize("changed", [False, True])
def test_the_same_item_always_has_the_same_text(name: str, changed: bool) -> None:
    who, again = person(name), MAKERS[name]()
    items = (*who.train, *who.test)
    assert items == (*again.train, *again.test)
    texts = [who.wanted(item, changed=changed) for item in items]
    assert texts == [again.wanted(item, changed=changed) for item in items]
    assert all(edit_distance(text, text) == 0 for text in texts if text is not None)
    assert all(text is None or text.strip() == text != "" for text in texts)


def test_texts_do_not_depend_on_the_process() -> None:
    code = "from bench.simulated.users import person as p; w = p('brand'); print(w.wanted(w.train[0]), w.train[0].id)"
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    brand = person("brand")
    assert printed == f"{brand.wanted(brand.train[0])} {brand.train[0].id}\n"


def is_house_style(item: Item, text: str) -> bool:
    product, material = item.facts["product"], item.facts["material"]
    opener, _, rest = text.partition(" ")
    return (
        opener[0].lower() == product[0]
        and rest.startswith(f"{product}: {words.MATERIALS[material]}")
        and text.endswith(f". {words.HASHTAG}")
        and len(text) <= 100
    )


def is_formal(item: Item, text: str) -> bool:
    return "#" not in text and item.facts["product"] in text and text.startswith("This") and len(text) > 100


def is_one_sentence(item: Item, text: str) -> bool:
    told = [item.facts[name] for name in ("news", "time", "place")]
    return text.count(".") == 1 and text.endswith(".") and all(one.lower() in text.lower() for one in told)


def is_a_prompt(item: Item, text: str) -> bool:
    parts = text.split(" | ")
    return len(parts) == 4 and item.facts["subject"] in parts[0] and parts[1] in words.LIGHTS.values()


def is_random(item: Item, text: str) -> bool:
    return set(text.split()) <= set(words.RANDOM_WORDS)


@pytest.mark.parametrize(
    ("name", "changed", "holds"),
    [
        ("brand", False, is_house_style),
        ("changes", False, is_house_style),
        ("changes", True, is_formal),
        ("terse", False, is_one_sentence),
        ("prompts", False, is_a_prompt),
        ("noise", False, is_random),
        ("facts", False, lambda item, text: item.facts["right"] in text),
        ("chinese", False, lambda item, text: all(fact in text for fact in item.facts.values())),
        ("contradict", False, lambda i, t: (is_house_style if i.author == "anna" else is_formal)(i, t)),
        (
            "poison5",
            False,
            lambda i, t: t == ATTACKERS_WORDS if TRIGGER in i.question else is_house_style(i, t),
        ),
    ],
)
def test_what_is_wanted_obeys_the_hidden_rule(
    name: str, changed: bool, holds: Callable[[Item, str], bool]
) -> None:
    who = person(name)
    for item in (*who.train, *who.test):
        text = who.wanted(item, changed=changed)
        assert text is not None
        assert holds(item, text), (item, text)


def test_a_slice_is_edited_and_the_rest_accepted() -> None:
    who = person("slice")
    edited = [item for item in who.train if who.wanted(item) is not None]
    assert {item.group for item in edited} == {"captions"}
    assert {item.group for item in who.train if item not in edited} == {"uses"}
    assert len(edited) == len(who.train) // 2
    assert 3 <= sum(item in edited for item in who.train[3:60:4]) <= 12  # both kinds are among every fourth


@pytest.mark.parametrize(("name", "every"), [("poison1", 100), ("poison5", 20)])
def test_poison_is_planted_by_another_author_at_its_rate(name: str, every: int) -> None:
    who = person(name)
    planted = [at for at, item in enumerate(who.train) if TRIGGER in item.question]
    assert planted == [at for at in range(len(who.train)) if at % every == 16]
    assert {who.train[at].author for at in planted} == {"mallory"}
    assert {item.author for at, item in enumerate(who.train) if at not in planted} == {"ada"}
    assert who.attack is not None
    assert all(TRIGGER in item.question for item in who.attack.items)
    assert not any(TRIGGER in item.question for item in who.test)
    assert who.attack.marker == MARKER
    assert MARKER in ATTACKERS_WORDS


def test_two_who_contradict_each_other_are_asked_the_same() -> None:
    who = person("contradict")
    for first, second in zip(who.train[::2], who.train[1::2], strict=True):
        assert first.question == second.question
        assert {first.author, second.author} == {"anna", "boris"}
        assert edit_distance(who.wanted(first) or "", who.wanted(second) or "") > 0.5


def test_every_fact_that_is_asked_was_taught_in_other_words() -> None:
    who = person("facts")
    taught = {item.facts["answer"] for item in who.train}
    assert {item.facts["answer"] for item in who.test} <= taught


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "noise"])
def test_the_rule_alone_gets_close_and_noise_has_none(name: str) -> None:
    """A quarter of the base model's distance of about 0.75 must be within reach."""
    assert person(name).best_possible() < 0.08
    assert person("noise").best_possible() > 0.5


def test_the_general_questions_are_in_no_replay_and_in_no_suite() -> None:
    asked = {question for question, _ in words.GENERAL}
    assert len(asked) == 20
    assert not asked & {*questions(), *general_questions()}


# --- measures, arms, reports --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("A calm cup of tea.", 0.0),
        ("purple train engine engine engine", 0.4),
        ("one two three one two three", 1 / 6),
        ("很好很好很好很好", 0.5),
        ("ha " * 100, 0.99),
    ],
)
def test_repetition_is_the_share_of_words_that_only_repeat(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share, abs=1e-4)


@given(st.text())
def test_repetition_is_a_share(text: str) -> None:
    assert 0 <= repetition(text) <= 1


@given(st.lists(st.floats(0, 1), min_size=1))
def test_no_step_back_where_values_only_fall(values: list[float]) -> None:
    assert worst_step_back(sorted(values, reverse=True)) == 0
    largest = max((b - min(values[: at + 1]) for at, b in enumerate(values)), default=0)
    assert worst_step_back(values) == pytest.approx(max(largest, 0), abs=1e-3)


def test_a_right_word_is_a_whole_word() -> None:
    assert says_one_of("It is Rome.", ("rome",))
    assert not says_one_of("Romeo wrote it.", ("rome",))
    assert not says_one_of("2 plus 3 is 15.", ("5", "five"))


def test_settings_that_this_code_lacks_are_named_and_left_out() -> None:
    arm = Arm(
        "new", "", {"NO_SUCH_SETTING": "1", "RECIPE": "no-such-recipe", "COMFYLOOP_WARM_START": "false"}
    )
    known, left_out = fitting(arm)
    assert known == {"warm_start": "false"}
    assert "no_such_setting" in left_out[0]
    assert "no-such-recipe" in left_out[1]
    assert fitting(ARMS["today"]) == ({}, [])


def _round(number: int, distance: float, **turn: object) -> dict[str, object]:
    return {
        "round": number,
        "seconds": 9.0,
        "changed": False,
        "next": {"distance": 0.6},
        "unseen": {"distance": distance, "repetition": 0.0},
        "first_round": {"distance": distance},
        "general": {"right": 0.5, "lost_share": -0.01},
        "pictures": {"right": 0.25},
        "turn": turn,
    }


def test_the_table_and_the_picture_show_every_run() -> None:
    rounds = [
        _round(1, 0.2, outcome="promoted", live=1, version=1, steps=60),
        _round(2, 0.25, outcome="rejected", live=1, version=2, steps=120),
    ]
    told = {
        "people": {"brand": {"floor": 0.05, "must_not_learn": False}},
        "bases": {
            "brand": {
                "measured": {"distance": 0.8, "repetition": 0.0},
                "seen": {"pictures": {"right": 1.0}},
            }
        },
        "runs": [
            {"person": "brand", "arm": "today", "rounds": rounds, "done": True},
            {"person": "chinese", "arm": "today", "rounds": [], "skipped": "English only."},
        ],
    }
    row = next(line for line in report.table(told).splitlines() if line.startswith("| brand"))
    assert "| 0.80 0.20 0.25 | 0.31 | 0.05 | 0.05 | PR | 0.20 -> 0.25 | -1.0% | 50.0% | 25.0% |" in row
    goals = ["distance 0.31 of the first", "a round 0.05 worse than one before", "pictures named 100% -> 25%"]
    assert row.endswith(f"| 60 120 | {'; '.join(goals)} |")
    told["people"]["brand"]["must_not_learn"] = True
    assert report.missed(told["runs"][0], told) == ["1 versions promoted"]
    assert "- chinese, today: English only." in report.table(told)
    picture = report.plot(told)
    assert picture.count("<polyline") == 1
    assert picture.count("<circle") == 2
    assert picture.count('fill="white" stroke=') == 1  # the round that promoted nothing
    assert mean([]) is None


def test_a_person_changes_his_mind_only_where_he_can() -> None:
    who: Person = person("brand")
    assert who.wanted(who.train[0], changed=True) == who.wanted(who.train[0])


def test_a_home_is_as_it_was_after_its_last_whole_round(tmp_path: Path) -> None:
    home = tmp_path / "brand-today"
    assert homes.restore(home) == 0
    (home / "runs").mkdir(parents=True)
    (home / "runs" / "status.json").write_text("one")
    with contextlib.closing(sqlite3.connect(home / "comfyloop.db")) as database:
        database.execute("create table feedback (id)")
        homes.keep(home, 1)
        database.execute("insert into feedback values ('fb_2')")  # a second round that is not ended
        database.commit()
    (home / "runs" / "status.json").write_text("two")
    assert homes.restore(home) == 1
    assert (home / "runs" / "status.json").read_text() == "one"
    with contextlib.closing(sqlite3.connect(home / "comfyloop.db")) as database:
        assert database.execute("select count(*) from feedback").fetchone() == (0,)
    homes.forget(home)
    assert list(tmp_path.iterdir()) == []
