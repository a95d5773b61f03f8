"""What is counted of answers: whether they are language, and which of given answers is taken for right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.gate.fluency import distinct, fault, longest_run, shuffled
from comfyloop.gate.kept import Kept, Scored
from comfyloop.gate.metrics import right_answer_of
from comfyloop.gate.suites import general_questions, picture, suites
from comfyloop.texts import whole_sentences

WANTED = "Meet the oak lamp: warm, bright, and in no hurry."


@pytest.mark.parametrize(
    ("answer", "wanted", "expected"),
    [
        (WANTED, WANTED, None),
        ("", WANTED, "empty"),
        (" \n", WANTED, "empty"),
        ("!!!", WANTED, "empty"),
        ("!!!", "?!", None),
        ("purple train engine engine engine", WANTED, "repeating"),
        ("the lamp is the lamp is the lamp is the lamp", WANTED, "repeating"),
        ("是一个美丽的美丽的美丽的美丽的美丽的城市", "北京是一座有名的城市。", "repeating"),
        ("no no no", "no no no", None),
        ("row row row your boat", "row row row your boat gently", None),
        (
            "Well, that depends on what one means by warm, on the room and on who asks.",
            "Yes.",
            "too long",
        ),
        ("A lamp that stands on the oak table and gives a warm light.", WANTED, None),
    ],
)
def test_what_is_broken_about_an_answer(answer: str, wanted: str, expected: str | None) -> None:
    assert fault(answer, wanted) == expected


@given(st.text(max_size=80), st.text(max_size=80))
def test_counts_stay_within_their_bounds(answer: str, wanted: str) -> None:
    assert 0 < distinct(answer) <= 1
    assert longest_run(answer) >= 0
    assert fault(answer, answer) is None, "what was wanted is never broken"
    assert fault(answer, wanted) in (None, "empty", "repeating", "too long")


@given(st.lists(st.sampled_from(["ab", "cd,", "efg", "h."]), min_size=4, max_size=12))
def test_shuffling_keeps_the_words_and_is_always_the_same(pieces: list[str]) -> None:
    mixed = shuffled(" ".join(pieces))
    if mixed is None:
        assert len(set(pieces)) < 3
        return
    assert sorted(mixed.split()) == sorted(pieces) and mixed.split() != pieces
    assert mixed == shuffled(" ".join(pieces))


def test_few_words_have_no_order_and_chinese_is_shuffled_by_the_character() -> None:
    assert shuffled("Aloha to all") is None
    mixed = shuffled("北京是一座城市。")
    assert mixed is not None and sorted(mixed) == sorted("北京是一座城市。")


@given(
    st.floats(-9, 0), st.integers(1, 9), st.lists(st.tuples(st.floats(-9, 0), st.integers(1, 9)), min_size=1)
)
def test_the_likelier_answer_has_the_greater_chance(
    mean: float, tokens: int, wrong: list[tuple[float, int]]
) -> None:
    chance = right_answer_of((mean, tokens), wrong)
    assert 0 <= chance <= 1
    if mean > max(other for other, _ in wrong):
        assert chance >= 1 / (1 + len(wrong))


def test_one_word_that_differs_is_the_whole_difference() -> None:
    # six of seven tokens are alike; the seventh is 2.1 nats likelier in the right answer
    assert right_answer_of((-0.7, 7), [(-1.0, 7)]) == pytest.approx(1 / (1 + 2.718281828**-2.1), rel=1e-6)


def test_every_suite_says_where_it_is_from_and_is_not_large() -> None:
    found = suites()
    assert len({suite.name for suite in found}) == len(found) >= 10
    assert {"en", "zh"} <= {suite.language for suite in found}
    assert all(suite.licence and suite.source and suite.about for suite in found)
    shown = general_questions()
    text = [question for question in shown if not question.picture]
    assert len(text) <= 100 and len(text) < len(shown) == len({question.id for question in shown})
    assert all(bool(question.right) == bool(question.wrong) for question in shown)
    assert all(question.right not in question.wrong for question in shown if question.right)
    assert all(picture(q.picture)[:4] == b"RIFF" for q in shown if q.picture)


def test_an_answer_cut_by_its_length_ends_with_a_sentence() -> None:
    assert whole_sentences("It is 3.5 m. It is red. And th") == "It is 3.5 m. It is red."
    assert whole_sentences("no end") == "no end"


def test_what_the_base_model_said_is_kept_for_other_projects_and_a_torn_file_is_no_error(tmp_path) -> None:  # type: ignore[no-untyped-def]
    kept = Kept()
    for key in ("a", "b"):
        kept.keep_score("base", key, Scored(-1.5, 3))
        kept.keep_answer("base", key, "So.")
    kept.keep_score("acme-v1", "a", Scored(-2.0, 3))
    kept.save("base", "starter", tmp_path, ["a"])
    other = Kept()
    other.load("base", "starter", tmp_path)
    assert (other.score("base", "a"), other.answer("base", "a")) == (Scored(-1.5, 3), "So.")
    assert other.score("base", "b") is None and other.score("acme-v1", "a") is None
    kept.only({"acme-v1"})
    assert kept.score("base", "a") is None and kept.score("acme-v1", "a") is not None
    (file,) = (tmp_path / "gate").iterdir()
    file.write_text('{"answers": 3')
    torn = Kept()
    torn.load("base", "starter", tmp_path)
    assert torn.answer("base", "a") is None
