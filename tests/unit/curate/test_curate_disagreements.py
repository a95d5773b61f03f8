"""Opposite answers to one question: of one person the newest holds, of two a person chooses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.curate.disagreements import BOTH, NEITHER, ReadAnswer, Settled, key_of, settle
from comfyloop.curate.pictures import picked_drafts
from comfyloop.curate.samples import Draft, drafts_of
from comfyloop.records import (
    AnswerAccepted,
    AnswerEdited,
    AnswerRated,
    Feedback,
    Generation,
    ImagePicked,
    Message,
    SampleUploaded,
)

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
RED, BLUE = "a" * 64, "b" * 64
PLAIN, GRAND = "A steel mug for daily use.", "Behold wondrous craftsmanship, born from fire!"
SAID = "This mug is made of steel and it holds drinks."


def generation(question: str, answer: str = SAID, images: tuple[str, ...] = (), nth: int = 0) -> Generation:
    id = f"gen_{abs(hash((question, images, nth)))}"
    messages = (Message.of("user", question, images),)
    return Generation(id=id, project="acme", version=0, model="acme", messages=messages, answer=answer)


def told(*said: tuple[Feedback, Generation | None], answers: dict[str, str] | None = None) -> Settled:
    drafts: list[Draft] = []
    for item, about in said:
        made = {about.id: about} if about else {}
        found = picked_drafts(item, made)[0] if isinstance(item, ImagePicked) else drafts_of(item, made)[0]
        drafts += found
    when = {item.id: (item.created_at, place) for place, (item, _) in enumerate(said)}
    return settle(drafts, when, answers or {})


def edit(
    id: str, who: str, edited: str, question: str = "Describe the mug.", minute: int = 0, **more: object
) -> tuple[Feedback, Generation]:
    about = generation(question, **more)  # type: ignore[arg-type]
    at = BEGAN + timedelta(minutes=minute)
    item = AnswerEdited(id=id, project="acme", author=who, generation=about.id, edited=edited, created_at=at)
    return item, about


def kept(settled: Settled) -> set[str]:
    return {id for draft in settled.kept for id in draft.sample.feedback}


def reasons(settled: Settled) -> dict[str, str]:
    return {lost.feedback: lost.reason for lost in settled.dropped}


def test_two_people_who_want_opposite_answers_are_asked_about_and_not_learned() -> None:
    both = (edit("a", "anna", PLAIN), edit("b", "boris", GRAND, "describe mug!", nth=1))
    other = edit("c", "boris", "Open from nine.", "When do you open?")
    settled = told(*both, other)
    assert kept(settled) == {"c"}
    assert reasons(settled) == {"a": "disagreement", "b": "disagreement"}
    (flag,) = settled.flags
    assert {choice.feedback for choice in flag.choices} == {"a", "b"}
    assert "Describe the mug." in flag.sentence and PLAIN in flag.sentence and "boris" in flag.sentence


@pytest.mark.parametrize(
    ("answer", "stay"), [("a", {"a"}), ("b", {"b"}), (BOTH, {"a", "b"}), (NEITHER, set())]
)
def test_what_a_person_chose_holds_and_is_not_asked_again(answer: str, stay: set[str]) -> None:
    both = (edit("a", "anna", PLAIN), edit("b", "boris", GRAND))
    settled = told(*both, answers={key_of("a", "b"): answer})
    assert kept(settled) == stay and not settled.flags
    assert set(reasons(settled).values()) <= {"overruled"}


def test_a_third_person_is_asked_about_even_where_two_were_settled() -> None:
    said = (
        edit("a", "anna", PLAIN),
        edit("b", "boris", GRAND),
        edit("c", "carl", "Mugs! Buy seven, pay four."),
    )
    settled = told(*said, answers={key_of("a", "b"): "a"})
    assert reasons(settled) == {"a": "disagreement", "b": "overruled", "c": "disagreement"}
    assert [c.feedback for c in settled.flags[0].choices] == ["a", "c"]


def test_of_one_person_the_newest_holds_whatever_arrived_first() -> None:
    """Not only of one answer: the same question, asked again, may have been answered by another version."""
    for order in (1, -1):
        said = [edit("old", "anna", PLAIN, minute=1), edit("new", "anna", GRAND, minute=2, nth=1)][::order]
        settled = told(*said)
        assert kept(settled) == {"new"} and reasons(settled) == {"old": "superseded"}
        assert not settled.flags


def test_captions_that_one_person_uploads_for_a_picture_stand_beside_each_other() -> None:
    def caption(id: str, text: str, minute: int) -> tuple[Feedback, None]:
        messages = (Message.of("user", "What is in it?", (RED,)), Message.of("assistant", text))
        at = BEGAN + timedelta(minutes=minute)
        return SampleUploaded(id=id, project="acme", messages=messages, created_at=at), None

    settled = told(
        caption("a", "A man rides a wave.", 0),
        caption("b", "Somebody on a surfboard in the ocean.", 1),
        caption("c", "There are 3 surfers.", 2),
        caption("d", "There are 2 surfers.", 3),
    )
    assert reasons(settled) == {"c": "superseded"}, "numbers that differ cannot both be so"


def test_a_changed_mind_is_not_held_against_somebody_else() -> None:
    said = (edit("a1", "anna", PLAIN), edit("b", "boris", GRAND), edit("a2", "anna", GRAND, minute=9, nth=1))
    settled = told(*said)
    assert kept(settled) == {"b", "a2"} and not settled.flags


def test_who_accepts_what_somebody_rewrote_disagrees_with_him() -> None:
    about = generation("Describe the mug.")
    accepted = AnswerAccepted(id="a", project="acme", author="anna", generation=about.id)
    good = AnswerRated(id="r", project="acme", author="anna", generation=about.id, rating=5)
    bad = AnswerRated(id="s", project="acme", author="boris", generation=about.id, rating=1)
    rewritten = AnswerEdited(id="b", project="acme", author="boris", generation=about.id, edited=GRAND)
    mended = AnswerEdited(
        id="m", project="acme", author="boris", generation=about.id, edited=SAID.replace("it holds", "holds")
    )
    assert len(told((accepted, about), (rewritten, about)).flags) == 1
    assert len(told((good, about), (bad, about)).flags) == 1
    assert not told((accepted, about), (mended, about)).flags  # the same answer, put better
    other = generation("Describe the mug.", "Strong, light and yours.", nth=1)
    another = AnswerAccepted(id="c", project="acme", author="boris", generation=other.id)
    assert not told((accepted, about), (another, other)).flags  # both may be good


def test_pictures_picked_the_other_way_round_are_asked_about() -> None:
    def pick(id: str, who: str, picked: str, over: str) -> tuple[Feedback, None]:
        item = ImagePicked(id=id, project="acme", author=who, picked=(picked,), over=(over,), prompt="a mug")
        return item, None

    settled = told(pick("a", "anna", RED, BLUE), pick("b", "boris", BLUE, RED))
    assert len(settled.flags) == 1
    assert {draft.sample.kind for draft in settled.kept} == {"captioned_image"}  # both may be drawn
    assert not told(pick("a", "anna", RED, BLUE), pick("b", "boris", RED, BLUE)).flags


@pytest.mark.parametrize(
    ("one", "other", "opposed"),
    [
        ("Yes, dogs are welcome.", "No, dogs are not welcome.", True),
        ("The mug costs 12 euros.", "The mug costs 15 euros.", True),
        ("The mug costs 12 euros.", "It costs 12 euros, the mug.", False),
        ("A warm wool scarf.", "A warm scarf made of wool, for cold days.", False),
        ("这只杯子很轻。", "这只杯子很轻, 也很结实。", False),
        ("这只杯子很轻。", "欢迎光临本店", True),
        ("", "", False),
    ],
)
def test_what_is_opposite(one: str, other: str, opposed: bool) -> None:
    assert ReadAnswer(one).opposes(ReadAnswer(other)) is opposed is ReadAnswer(other).opposes(ReadAnswer(one))


def test_another_question_picture_or_system_prompt_is_no_contradiction() -> None:
    assert not told(edit("a", "anna", PLAIN), edit("b", "boris", GRAND, "Describe the lamp.")).flags
    red, blue = (
        edit(id, who, text, images=(sha,))
        for id, who, text, sha in (("a", "anna", PLAIN, RED), ("b", "boris", GRAND, BLUE))
    )
    assert not told(red, blue).flags
    formal = (Message.of("system", "Be formal."), Message.of("user", "Describe the mug."))
    uploads = [
        SampleUploaded(id=id, project="acme", author=who, messages=(*asked, Message.of("assistant", text)))
        for id, who, text, asked in (("a", "anna", PLAIN, formal), ("b", "boris", GRAND, formal[1:]))
    ]
    assert not told(*((upload, None) for upload in uploads)).flags


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([PLAIN, GRAND, "Mugs! Buy seven."]), st.booleans()),
        max_size=12,
    )
)
def test_whatever_is_said_nobody_is_learned_against_somebody_else(said: list[tuple[str, str, bool]]) -> None:
    items = [
        edit(f"f{n}", who, text, "Describe the mug." if here else "Describe the lamp.", minute=n, nth=n)
        for n, (who, text, here) in enumerate(said)
    ]
    settled = told(*items)
    texts: dict[str, set[str]] = {}
    for draft in settled.kept:
        texts.setdefault(draft.sample.prompt[0].text, set()).add(draft.sample.answer)
    assert all(len(wanted) == 1 for wanted in texts.values())
    every = {item.id for item, _ in items}
    assert kept(settled) | set(reasons(settled)) == every and not kept(settled) & set(reasons(settled))
    asked = {choice.feedback for flag in settled.flags for choice in flag.choices}
    assert asked == {id for id, reason in reasons(settled).items() if reason == "disagreement"}
