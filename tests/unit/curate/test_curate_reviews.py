"""What a person decided in the review queue, and what the queue asks first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from comfyloop.curate import filters, review_queue, reviews
from comfyloop.curate.reviews import Reviewed
from comfyloop.curate.rulings import Ground
from comfyloop.curate.samples import Draft, Source, make
from comfyloop.records import Answered, Feedback, Message, QueueItem, SampleReviewed
from comfyloop.settings import Settings

NOTHING: Any = None
START = datetime(2026, 1, 1, tzinfo=UTC)
ONLY_TEXTS = {name: {"on": False} for name in filters.FILTERS if "image" in name or name == "label_errors"}
"""Filters that look at pictures are off: there is no store here."""


def draft(
    answer: str, id: str = "fb_1", *, origin: str = "answer_edited", kind: Any = "sft", **more: Any
) -> Draft:
    messages = (Message.of("user", "What is it?"), Message.of("assistant", answer))
    return Draft(make(kind, messages, Source("acme", (id,), origin, "ada"), **more))


def upload(answer: str, id: str = "fb_1") -> Draft:
    return draft(answer, id, origin="sample_uploaded")


def decision(
    what: Any, *drafts: Draft, by: str = "eve", asked: Sequence[str] = (), at: int = 0, **more: Any
) -> SampleReviewed:
    items = tuple(Answered(item=one.item, filters=tuple(asked)) for one in drafts)
    when = START + timedelta(minutes=at)
    return SampleReviewed(
        project="acme", author=by, decision=what, items=items, created_at=when, **more
    )  # fmt: skip


def applied(drafts: Sequence[Draft], *decisions: Feedback) -> Reviewed:
    return reviews.apply(drafts, reviews.verdicts_of(decisions))


def said(drafts: Sequence[Draft]) -> list[tuple[str, str, str | None]]:
    return [(one.sample.kind, one.sample.answer, one.sample.rejected) for one in drafts]


def looked_at(
    drafts: Sequence[Draft], *decisions: Feedback, losses: dict[str, float] | None = None
) -> tuple[list[Draft], list[QueueItem]]:
    """What is learned of drafts, and the queue."""
    settings = Settings(filters=ONLY_TEXTS)
    done = applied(drafts, *decisions)
    ground = Ground(settings, NOTHING, taught=done.taught)
    found = filters.apply(done.drafts, ground)
    return found.kept, review_queue.of(done, found.doubts, found.kept, losses or {}, ground)


def test_what_is_rejected_is_not_learned_whoever_sends_it_again() -> None:
    one, again, other = upload("A red mug."), upload("A red mug.", "fb_2"), upload("A blue mug.", "fb_3")
    no = decision("reject", one)
    done = applied([one, again, other], no)
    assert said(done.drafts) == [("sft", "A blue mug.", None)]
    assert [(lost.feedback, lost.reason) for lost in done.dropped] == [
        ("fb_1", reviews.REJECTED),
        ("fb_2", reviews.REJECTED),
    ]
    assert "eve" in done.dropped[0].detail and no.id in done.dropped[0].detail


def test_one_item_is_an_answer_and_its_being_preferred() -> None:
    edit = draft("A red mug.")
    preferred = draft("A red mug.", kind="preference", rejected="Behold!")
    assert edit.item == preferred.item
    assert applied([edit, preferred], decision("reject", edit)).drafts == []
    assert draft("A red mug.", kind="labelled", label=False).item != edit.item


def test_a_fix_is_an_edit_of_what_was_there() -> None:
    one = upload("A read mug.")
    fix = decision("fix", one, text=" A red mug. ")
    done = applied([one], fix)
    assert said(done.drafts) == [("sft", "A red mug.", None), ("preference", "A red mug.", "A read mug.")]
    assert {d.sample.feedback for d in done.drafts} == {("fb_1", fix.id)}
    assert {d.sample.author for d in done.drafts} == {"eve"}  # who wrote it

    edit = draft("A read mug.", kind="preference", rejected="Behold!")
    assert said(applied([edit], decision("fix", edit, text="A red mug.")).drafts) == [
        ("preference", "A red mug.", "Behold!")
    ]
    bad = draft("Behold!", kind="labelled", label=False, origin="answer_rated")
    assert said(applied([bad], decision("fix", bad, text="A red mug.")).drafts) == [
        ("sft", "A red mug.", None),
        ("preference", "A red mug.", "Behold!"),
    ]


def test_a_fix_of_a_caption_keeps_its_picture() -> None:
    prompt = (Message.of("user", "a read mug"),)
    shown = make(
        "captioned_image", prompt, Source("acme", ("fb_1",), "sample_uploaded", "ada"), picked="a" * 64
    )
    (fixed,) = applied([Draft(shown)], decision("fix", Draft(shown), text="a red mug")).drafts
    assert (fixed.sample.kind, fixed.sample.answer, fixed.sample.picked) == (
        "captioned_image",
        "a red mug",
        "a" * 64,
    )


def test_the_newest_decision_counts_and_one_taken_back_does_not() -> None:
    one = upload("A red mug.")
    no, yes = decision("reject", one, at=2), decision("accept", one, at=1)
    assert applied([one], no, yes).drafts == []  # by when it was made, not by when it came
    undo = SampleReviewed(project="acme", decision="undo", undoes=no.id)
    assert [d.item for d in applied([one], no, yes, undo).drafts] == [one.item]
    redo = SampleReviewed(project="acme", decision="undo", undoes=undo.id)
    assert applied([one], no, yes, undo, redo).drafts == []
    twice = SampleReviewed(project="acme", decision="undo", undoes=no.id)
    assert applied([one], no, undo, twice).drafts == [one]


def test_a_fixed_text_can_be_looked_at_again() -> None:
    one, two = upload("one"), upload("two")
    to_two = decision("fix", one, text="two", at=1)
    assert applied([one], to_two, decision("reject", two, at=2)).drafts == []
    back = applied([one], to_two, decision("fix", two, text="one", at=2))
    assert {d.sample.answer for d in back.drafts if d.sample.kind == "sft"} == {"one"}


def test_what_is_in_doubt_waits_and_is_asked_once() -> None:
    edit = draft("TODO")  # by a person: learned, and asked about
    kept, items = looked_at([edit])
    (item,) = items
    assert item.state == "waiting" and item.learned and said(kept) == [("sft", "TODO", None)]
    assert [reason.filter for reason in item.reasons] == ["placeholder"]
    assert "TODO" in item.reasons[0].detail and item.reasons[0].sentence
    yes = decision("accept", edit, asked=["placeholder"])
    kept, (item,) = looked_at([edit], yes)
    assert (item.state, item.learned, said(kept)) == ("decided", True, [("sft", "TODO", None)])
    assert item.decided is not None and item.decided.id == yes.id
    _, (item,) = looked_at([edit], decision("accept", edit, asked=["refusal"]))  # another filter has asked
    assert item.state == "waiting"


def test_what_a_filter_left_out_can_be_taken_in_but_not_what_nothing_can_train_on() -> None:
    left_out, empty = upload("TODO"), upload(" ", "fb_2")
    kept, (item,) = looked_at([left_out, empty])
    assert (item.state, item.learned, kept) == ("left_out", False, [])
    kept, _ = looked_at([left_out, empty], decision("accept", left_out), decision("accept", empty))
    assert said(kept) == [("sft", "TODO", None)]


def test_a_fixed_upload_is_asked_about_and_not_left_out() -> None:
    one = upload("TODO")
    fixed = decision("fix", one, text="As an AI language model, I cannot say.", asked=["placeholder"])
    kept, items = looked_at([one], fixed)
    assert [i.state for i in items] == ["waiting", "decided"] and items[0].reasons[0].filter == "refusal"
    assert len(kept) == 2


def test_the_live_version_asks_about_what_it_does_far_worse_on() -> None:
    drafts = [draft(f"Mug number {n} is a mug.", f"fb_{n}") for n in range(30)]
    losses = {one.sample.id: 0.5 + 0.01 * n for n, one in enumerate(drafts)}
    losses[drafts[7].sample.id] = 4.0
    _, items = looked_at(drafts, losses=losses)
    assert [(i.id, [r.filter for r in i.reasons], i.loss) for i in items] == [(drafts[7].item, ["live"], 4.0)]
    assert "4.00" in items[0].reasons[0].detail
    _, items = looked_at(drafts, decision("accept", drafts[7], asked=["live"]), losses=losses)
    assert [i.state for i in items] == ["decided"]
    few = dict(list(losses.items())[:10])
    assert looked_at(drafts, losses=few)[1] == []


def test_decisions_teach_what_is_asked_first() -> None:
    """Uploads that people rejected say what they refuse, and so of those that wait the likest come first."""
    calm = [upload(f"Piece {n} is made slowly, and sold honestly.", f"fb_c{n}") for n in range(24)]
    loud = [upload(f"Wow, amazing deal number {n}, buy it now!!!", f"fb_l{n}") for n in range(24)]
    new = upload("Wow, amazing deal, buy it now, buy!!!", "fb_new")
    assert looked_at([*calm, *loud, new])[1] == []
    taught = [decision("accept", *calm), decision("reject", *loud)]
    kept, items = looked_at([*calm, *loud, new], *taught)
    (asked,) = [item for item in items if item.state == "waiting"]
    assert asked.feedback == ("fb_new",) and [r.filter for r in asked.reasons] == ["learned"]
    assert asked.refused is not None and asked.refused > 0.85
    assert len(kept) == 25
    left_out = [
        upload("Piece {{number}} is made slowly, and sold honestly.", "fb_1"),
        upload("Wow, amazing deal number {{number}}, buy it now!!!", "fb_2"),
    ]
    _, items = looked_at([*calm, *loud, *left_out], *taught)
    assert [item.feedback for item in items if item.state == "left_out"] == [("fb_2",), ("fb_1",)]


ITEMS = [upload("one", "fb_1"), upload("two", "fb_2"), draft("three", "fb_3")]
CHANGES = st.tuples(st.sampled_from(["accept", "reject", "fix"]), st.sampled_from(ITEMS), st.booleans())


@given(st.lists(CHANGES, max_size=8), st.data())
def test_what_is_taken_back_is_as_if_it_had_not_been_decided(changes: list[Any], data: st.DataObject) -> None:
    """As deleting the decision is, too; whenever the taking back comes in, once or twice."""
    made = [
        decision(
            what,
            about,
            at=n,
            **({"text": data.draw(st.sampled_from(["two", "four"]))} if what == "fix" else {}),
        )
        for n, (what, about, _) in enumerate(changes)
    ]
    stays = [one for one, (*_, undone) in zip(made, changes, strict=True) if not undone]
    arrived: list[Feedback] = list(made)
    for one, (*_, undone) in zip(made, changes, strict=True):
        for _ in range(data.draw(st.integers(1, 2)) if undone else 0):
            undo = SampleReviewed(project="acme", decision="undo", undoes=one.id)
            arrived.insert(data.draw(st.integers(arrived.index(one) + 1, len(arrived))), undo)
    left, wanted = applied(ITEMS, *arrived), applied(ITEMS, *stays)
    assert (left.drafts, left.dropped, left.taught) == (wanted.drafts, wanted.dropped, wanted.taught)


@pytest.mark.parametrize(
    "wrong",
    [
        {"decision": "accept"},
        {"decision": "fix", "items": [{"item": "item_1"}]},
        {"decision": "fix", "items": [{"item": "item_1"}], "text": " "},
        {"decision": "fix", "items": [{"item": "item_1"}, {"item": "item_2"}], "text": "x"},
        {"decision": "reject", "items": [{"item": "item_1"}], "text": "x"},
        {"decision": "undo"},
        {"decision": "undo", "undoes": "fb_1", "items": [{"item": "item_1"}]},
    ],
)
def test_a_decision_that_says_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SampleReviewed.model_validate({"project": "acme", **wrong})
