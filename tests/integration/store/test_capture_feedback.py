"""What feedback is taken in and what is refused, on both databases."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from comfyloop import capture
from comfyloop.errors import Conflict, InvalidInput, NotFound, TooLarge
from comfyloop.records import (
    AnswerAccepted,
    AnswerEdited,
    AnswerRated,
    Feedback,
    GraphEdited,
    ImagePicked,
    ImageRated,
    Message,
    Project,
    PromptEdited,
    SampleUploaded,
    feedback_adapter,
    now,
)
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback, projects

NOWHERE = "f" * 64
LIMITS = Settings(max_text_chars=100, max_feedback_items=5, max_body_bytes=2000)


def picture(store: Store, colour: str) -> str:
    out = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(out, "PNG")
    return capture.images.store_image(store, out.getvalue(), LIMITS).sha256


def test_a_clock_that_is_fast_makes_nothing_newer_than_what_comes_after_it(store: Store) -> None:
    """A laptop five hours ahead: its edit would win over every correction of the next five hours."""
    ahead, late = now() + timedelta(hours=5), now() - timedelta(hours=5)
    first = AnswerEdited(project="acme", generation="gen_1", edited="From a fast clock.", created_at=ahead)
    capture.feedback.submit(store, [first], LIMITS)
    then = AnswerEdited(project="acme", generation="gen_1", edited="Corrected.")
    held = AnswerEdited(project="acme", generation="gen_1", edited="Sent when back.", created_at=late)
    capture.feedback.submit(store, [then, held], LIMITS)
    assert capture.feedback.submit(store, [first], LIMITS).duplicates == (first.id,)
    with store.read() as conn:
        at = {
            id: item.created_at for id, item in feedback.find_many(conn, [first.id, then.id, held.id]).items()
        }
    assert at[held.id] == late < at[first.id] < at[then.id]


def test_every_kind_is_taken_in(store: Store) -> None:
    red, blue = picture(store, "red"), picture(store, "blue")
    items: list[Feedback] = [
        AnswerEdited(project="acme", generation="gen_1", edited="A red rose."),
        AnswerAccepted(project="acme", generation="gen_1"),
        AnswerRated(project="acme", generation="gen_1", rating=2),
        ImagePicked(project="acme", picked=(red,), over=(blue,), prompt="a rose", generation="gen_1"),
        ImageRated(project="acme", image=blue, rating=5),
    ]
    more: list[Feedback] = [
        PromptEdited(project="acme", before="a", after="b", images_before=(red,), images_after=(blue,)),
        GraphEdited(project="acme", before={"1": {}}, after={"2": {}}, aim="sharper", kept=(red,)),
        SampleUploaded(
            project="acme",
            messages=(Message.of("user", "What?", [red]), Message.of("assistant", "A rose.")),
            rejected="No idea.",
        ),
    ]
    for batch in (items, more):
        receipt = capture.feedback.submit(store, batch, LIMITS)
        assert receipt.stored == tuple(item.id for item in batch)
        assert capture.feedback.submit(store, batch, LIMITS).duplicates == receipt.stored
    with store.read() as conn:
        assert [item for _, item in feedback.list_by(conn, "acme")] == items + more


def wrong(**fields: Any) -> Feedback:
    return feedback_adapter.validate_python({"project": "acme", **fields})


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if depth % 2 else {"a": value}
    return value


def pick(workflow: Any) -> Feedback:
    return wrong(kind="image_picked", picked=["e" * 64], workflow=workflow)


SAVE = {"1": {"class_type": "SaveImage", "inputs": {}}}


EDIT = {"kind": "answer_edited", "generation": "gen_1"}


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        (wrong(**EDIT, edited="A rose."), InvalidInput, "equals the answer.*answer_accepted"),
        (wrong(**EDIT, edited="x" * 101), TooLarge, "edited has 101 characters; 100 are allowed"),
        (wrong(**(EDIT | {"generation": "gen_9"}), edited="x"), NotFound, "no generation 'gen_9'"),
        (
            wrong(**EDIT, edited="x").model_copy(update={"project": "nope"}),
            NotFound,
            "no project 'nope'.*acme",
        ),
        (
            wrong(**EDIT, edited="x").model_copy(update={"project": "other"}),
            InvalidInput,
            "of the project 'acme'",
        ),
        (wrong(kind="image_rated", image=NOWHERE, rating=1), NotFound, "no image ffff.*Upload it first"),
        (
            wrong(kind="image_picked", picked=[NOWHERE], over=[NOWHERE]),
            InvalidInput,
            "in `picked` and in `over`",
        ),
        (wrong(kind="prompt_edited", before="x" * 101, after="b"), TooLarge, "before has 101"),
        (wrong(kind="prompt_edited", before="a", after="b", images_after=[NOWHERE]), NotFound, "no image"),
        (wrong(kind="graph_edited", before={"a": "x" * 2000}, after={}), TooLarge, "workflow before has"),
        (wrong(kind="graph_edited", before={}, after={}, kept=[NOWHERE]), NotFound, "no image"),
        (pick({"nodes": [], "links": []}), InvalidInput, "form of ComfyUI's page.*Export"),
        (pick({"prompt": SAVE}), InvalidInput, "wrapped in another object"),
        (pick({"1": {"inputs": {}}}), InvalidInput, "'1' has no class_type"),
        (pick(SAVE | {"2": 7}), InvalidInput, "'2' has no class_type"),
        (pick({"1": {"class_type": "A", "inputs": []}}), InvalidInput, "no inputs"),
        (
            wrong(kind="graph_edited", before={}, after={"a": nested(300)}),
            InvalidInput,
            "after has values nested",
        ),
        (pick({"1": {"class_type": "A", "inputs": {"a": nested(300)}}}), InvalidInput, "more than 32 deep"),
        (pick({"1": {"class_type": "A", "inputs": {"a": nested(5001)}}}), InvalidInput, "more than 32 deep"),
        (
            wrong(kind="sample_uploaded", messages=[Message.of("user", "q")]),
            InvalidInput,
            "ends with the assistant's answer",
        ),
        (
            wrong(kind="sample_uploaded", messages=[Message.of("assistant", "a")]),
            InvalidInput,
            "has a user's message",
        ),
        (
            wrong(
                kind="sample_uploaded",
                messages=[Message.of("user", "q", [NOWHERE]), Message.of("assistant", "a")],
            ),
            NotFound,
            "no image",
        ),
        (
            wrong(
                kind="sample_uploaded", messages=[Message.of("user", "x" * 101), Message.of("assistant", "a")]
            ),
            TooLarge,
            "message 1 has 101",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(
    store: Store, item: Feedback, error: type[Exception], words: str
) -> None:
    with store.begin() as conn:
        projects.add(conn, Project(name="other", base_model="m"))
    with pytest.raises(error, match=words) as refused:
        capture.feedback.submit(store, [item], LIMITS)
    assert type(refused.value) is error
    with store.read() as conn:
        assert feedback.list_by(conn, "acme") == []


def test_ten_megabytes_of_text_are_refused(store: Store) -> None:
    item = wrong(**EDIT, edited="x" * 10_000_000)
    with pytest.raises(TooLarge, match="10000000 characters; 200000 are allowed"):
        capture.feedback.submit(store, [item], Settings())


def test_one_wrong_item_holds_the_batch_and_is_named(store: Store) -> None:
    good = wrong(id="fb_good", **EDIT, edited="A red rose.")
    same = wrong(id="fb_same", **EDIT, edited="A rose.")
    lost = wrong(id="fb_lost", kind="answer_accepted", generation="gen_9")
    with pytest.raises(InvalidInput, match=r"2 of 3 .* none was.*Item 1 \(fb_same\).*Item 2 \(fb_lost\)"):
        capture.feedback.submit(store, [good, same, lost], LIMITS)
    with pytest.raises(NotFound, match=r"1 of 2 .*Item 1 \(fb_lost\): There is no generation"):
        capture.feedback.submit(store, [good, lost], LIMITS)
    with store.read() as conn:
        assert feedback.list_by(conn, "acme") == []
    assert capture.feedback.submit(store, [good], LIMITS).stored == ("fb_good",)


def test_an_id_means_one_thing(store: Store) -> None:
    first, second = (wrong(id="fb_1", **EDIT, edited=text) for text in ("one", "two"))
    with pytest.raises(Conflict, match=r"Item 1 \(fb_1\).*other content"):
        capture.feedback.submit(store, [first, second], LIMITS)
    capture.feedback.submit(store, [first], LIMITS)
    with pytest.raises(Conflict, match=r"fb_1.*other content.*under a new id"):
        capture.feedback.submit(store, [second], LIMITS)


def test_what_was_stored_is_not_judged_again(store: Store) -> None:
    red = picture(store, "red")
    item = ImageRated(project="acme", image=red, rating=4)
    capture.feedback.submit(store, [item], LIMITS)
    store.blobs.delete(red)
    assert capture.feedback.submit(store, [item], LIMITS).duplicates == (item.id,)


def test_a_batch_has_bounds(store: Store) -> None:
    with pytest.raises(InvalidInput, match="no feedback in it"):
        capture.feedback.submit(store, [], LIMITS)
    six = [wrong(kind="answer_accepted", generation="gen_1") for _ in range(6)]
    with pytest.raises(TooLarge, match="6 pieces of feedback; 5 are allowed"):
        capture.feedback.submit(store, six, LIMITS)


@pytest.mark.parametrize("author", ["", "a\x00b", "new\nline", "x" * 201])
def test_an_author_is_a_name(author: str) -> None:
    with pytest.raises(ValidationError):
        AnswerAccepted(project="acme", generation="gen_1", author=author)
