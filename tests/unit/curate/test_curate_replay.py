"""Replay: how many, asked once a base model, never against a person's word, no question of the gate's."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.curate import replay
from comfyloop.curate.samples import Source, make
from comfyloop.gate.suites import general_questions, picture
from comfyloop.records import Message
from comfyloop.texts import whole_sentences


class Model:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, questions: Sequence[str]) -> list[str]:
        self.asked += questions
        return [f"About {question[:10]}: yes. And th" for question in questions]


def test_the_questions_are_many_of_mixed_kinds_and_none_is_the_gates() -> None:
    questions = replay.questions()
    assert len(questions) == len(set(questions)) == 64
    assert sum(not question.isascii() for question in questions) >= 5
    every = {q.casefold() for q in replay.every_question()}
    assert len(every) == len(replay.every_question()) == replay.most() > 100
    assert not every & {q.question.casefold() for q in general_questions()}
    assert all(answer and len(answer) < 100 for _, answer in replay.answered())


@given(st.integers(1, 5000), st.floats(0, 0.9))
def test_as_many_are_added_as_make_up_the_share(train: int, share: float) -> None:
    count = replay.needed(train, share)
    assert count / (train + count) >= share - 1e-9
    assert count == 0 or (count - 1) / (train + count - 1) < share


def test_a_question_is_asked_once_per_base_model(tmp_path: Path) -> None:
    model = Model()
    first = replay.samples("acme", "m1", model, tmp_path, 5)
    assert replay.samples("other", "m1", model, tmp_path, 7)[:5] == [
        sample.model_copy(update={"project": "other"}) for sample in first
    ]
    assert model.asked == list(replay.questions()[:4]), "every second one has its answer"
    assert {s.prompt[0].text: s.answer for s in first}.items() >= dict(replay.answered()[:2]).items()
    replay.samples("acme", "m2", model, tmp_path, 1)
    assert len(model.asked) == 5
    assert all(sample.replay and sample.slice == "general" for sample in first)


def test_answers_cut_off_by_a_limit_end_with_their_last_whole_sentence(tmp_path: Path) -> None:
    (sample,) = replay.samples("acme", "m", Model(), tmp_path, 1)
    assert sample.answer.endswith(": yes.")


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("It is 3.5 metres. Then", "It is 3.5 metres."),
        ("Steps:\n1. Boil water.\n2. Ad", "Steps:\n1. Boil water."),
        ("The answer is 12.", "The answer is 12."),
        ("水在零度结冰。因为", "水在零度结冰。"),
        ('He said "Stop!" and ran', 'He said "Stop!"'),
        ("no end at all", "no end at all"),
        ("  ", ""),
    ],
)
def test_whole_sentences(text: str, whole: str) -> None:
    assert whole_sentences(text) == whole


def test_a_torn_cache_is_only_asked_anew(tmp_path: Path) -> None:
    model = Model()
    replay.samples("acme", "m", model, tmp_path, 2)
    for file in (tmp_path / "replay").iterdir():
        file.write_text('{"Why is')
    assert len(replay.samples("acme", "m", model, tmp_path, 2)) == 2
    assert len(model.asked) == 2


def test_what_a_person_answered_is_not_replayed_otherwise(tmp_path: Path) -> None:
    made = replay.samples("acme", "m", Model(), tmp_path, 3)
    question = made[1].prompt[0].text.upper()
    turns = (Message.of("user", question), Message.of("assistant", "Because."))
    corrected = make("sft", turns, Source("acme", ("fb",), "answer_edited", "ada"))
    assert replay.choose(made, [corrected], 2) == (made[0], made[2])


@given(pictures=st.integers(0, 15), shipped=st.integers(0, 5), count=st.integers(0, 200))
def test_no_picture_is_asked_a_question_twice_before_all_were_asked(
    pictures: int, shipped: int, count: int
) -> None:
    names = [f"{number:064x}" for number in range(pictures)]
    others = [f"{number:064x}" for number in range(100, 100 + shipped)]
    with tempfile.TemporaryDirectory() as cache:
        made = replay.of_pictures(
            "acme", "m", lambda asked: ["Well." for _ in asked], Path(cache), names, others, count
        )
    pairs = {(sample.images, sample.prompt[0].text) for sample in made}
    most = (pictures + shipped) * len(replay.picture_questions())
    assert len(pairs) == len(made) == min(count, most)
    times = Counter(sample.images[0] for sample in made)
    for kind in (names, others):
        asked = [times[name] for name in kind]
        assert not asked or max(asked) - min(asked) <= 1
    first = [sample.images[0] in names for sample in made][: 2 * min(pictures, shipped)]
    assert sum(first) * 2 - len(first) in (0, 1), "own pictures and shipped ones in turn"


def test_what_everybody_s_base_model_answered_is_shipped(tmp_path: Path) -> None:
    model = Model()
    assert len(replay.samples("acme", "starter", model, tmp_path, replay.most())) > replay.most() * 0.9
    assert not model.asked
    shipped = [hashlib.sha256(picture).hexdigest() for picture in replay.shipped_pictures()]
    told = replay.of_pictures(
        "acme", "starter", lambda asked: pytest.fail("asked"), tmp_path, (), shipped, 24
    )
    assert len(told) > 20 and len({sample.images for sample in told}) == 12


def test_the_replayed_pictures_are_none_of_the_gate_s() -> None:
    gates = {picture(q.picture) for q in general_questions() if q.picture}
    assert len(replay.shipped_pictures()) == 12 and gates.isdisjoint(replay.shipped_pictures())
