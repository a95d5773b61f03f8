"""What filters may say of a draft, what is set of them, and what is remembered of their measuring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comfyloop.curate import filters, measurements
from comfyloop.curate.measurements import Measurements
from comfyloop.curate.report import REASONS
from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft, Source, make
from comfyloop.errors import InvalidInput
from comfyloop.records import Message
from comfyloop.settings import Settings

PICTURE, OTHER = "a" * 64, "b" * 64


class Stored:
    """All pictures are there; reading one is counted."""

    def __init__(self) -> None:
        self.read_ones: list[str] = []

    def exists(self, sha: str) -> bool:
        return True

    def is_whole(self, sha: str) -> bool:
        return True

    def look(self, sha: str) -> None:
        return None

    def read(self, sha: str) -> bytes:
        self.read_ones.append(sha)
        return sha.encode()


def draft(feedback: str, answer: str, images: Sequence[str] = (), author: str = "ada") -> Draft:
    messages = (Message.of("user", "What is it?", images), Message.of("assistant", answer))
    return Draft(make("sft", messages, Source("acme", (feedback,), "answer_edited", author)))


class Sharpness(Options):
    least: float = 10


def sharpness(drafts: Sequence[Draft], ground: Ground, options: Sharpness) -> Iterator[Ruling]:
    def measure(hashes: Sequence[str]) -> list[float]:
        return [float(ord(ground.pictures.read(sha).decode()[0]) - ord("a")) * 20 for sha in hashes]

    hashes = list(dict.fromkeys(sha for draft in drafts for sha in draft.sample.images))
    scores = dict(zip(hashes, ground.measurements.of_pictures("sharpness/1", hashes, measure), strict=True))
    for one in drafts:
        worst = min((scores[sha] for sha in one.sample.images), default=None)
        blurred = worst is not None and worst < options.least
        yield Ruling("drop", "it is blurred", worst) if blurred else replace(KEEP, score=worst)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """These alone are there, and what a test adds."""
    names = ("empty", "untrainable", "secret", "duplicate")
    monkeypatch.setattr(filters, "FILTERS", {name: filters.FILTERS[name] for name in names})


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes filters for a test, as if each had its file."""

    def add(filter: Filter) -> None:
        monkeypatch.setitem(filters.FILTERS, filter.name, filter)
        monkeypatch.setitem(REASONS, filter.name, filter.sentence)

    return add


def settings(**options: dict[str, Any]) -> Settings:
    return Settings(filters=options)


def test_a_filter_of_pictures_measures_each_once_whatever_is_asked_of_the_score(
    toy: Any, tmp_path: Path
) -> None:
    toy(Filter("sharpness", "its picture is blurred", sharpness, options=Sharpness))
    stored = Stored()
    drafts = [draft("fb_1", "A.", [PICTURE]), draft("fb_2", "B.", [OTHER]), draft("fb_3", "C.", [PICTURE])]
    found = filters.apply(drafts, Ground(Settings(), stored, Measurements(tmp_path)))
    assert [(d.feedback, d.reason, d.detail) for d in found.dropped] == [
        ("fb_1", "sharpness", "it is blurred"),
        ("fb_3", "sharpness", "it is blurred"),
    ]
    assert stored.read_ones == [PICTURE, OTHER]
    strict = Ground(settings(sharpness={"least": 30}), stored, Measurements(tmp_path))
    assert filters.apply(drafts, strict).kept == [] and stored.read_ones == [PICTURE, OTHER]
    measurements.forget(tmp_path, [PICTURE])
    filters.apply(drafts, replace(strict, measurements=Measurements(tmp_path)))
    assert stored.read_ones == [PICTURE, OTHER, PICTURE]


def test_a_filter_that_is_off_says_nothing(toy: Any) -> None:
    toy(Filter("sharpness", "its picture is blurred", sharpness, options=Sharpness))
    off = Ground(settings(sharpness={"on": False}), Stored())
    assert len(filters.apply([draft("fb_1", "A.", [PICTURE])], off).kept) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"blurr": {}}, "a filter 'blurr'"),
        ({"secret": {"of": False}}, "filters.secret.of"),
        ({"duplicate": {"on": "perhaps"}}, "filters.duplicate.on"),
    ],
)
def test_what_is_set_of_no_filter_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        filters.apply([], Ground(settings(**options), Stored()))


def test_a_mended_sample_takes_the_place_of_its_own_and_later_filters_see_it(toy: Any) -> None:
    def trim(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
        for one in drafts:
            (feedback,) = one.sample.feedback
            mended = draft(feedback, one.sample.answer.removesuffix(" As an AI, I hope this helps."))
            yield Ruling("mend", "a closing phrase", mended=mended.sample) if mended != one else KEEP

    toy(Filter("closing", "it ends in an empty phrase", trim))
    drafts = [draft("fb_1", "A cat."), draft("fb_2", "A cat. As an AI, I hope this helps.")]
    found = filters.apply(drafts, Ground(Settings(), Stored()))
    assert [d.sample.answer for d in found.kept] == ["A cat."]
    assert [(d.feedback, d.reason) for d in found.dropped] == [("fb_2", "duplicate")]


def test_what_a_filter_is_unsure_of_or_could_not_measure_is_learned_and_told(toy: Any) -> None:
    def ask(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
        for one in drafts:
            answer = one.sample.answer
            yield (
                Ruling("unsure", "it may be about something else")
                if answer == "A dog."
                else Ruling("unmeasured")
            )

    toy(Filter("mismatch", "answer and picture may not fit", ask))
    found = filters.apply([draft("fb_1", "A cat."), draft("fb_2", "A dog.")], Ground(Settings(), Stored()))
    assert len(found.kept) == 2 and not found.dropped
    assert [(d.feedback, d.reason, d.detail) for d in found.unsure] == [
        ("fb_2", "mismatch", "it may be about something else")
    ]
    assert found.unmeasured == {"mismatch": 1}


def test_a_ruling_a_draft_no_more_and_no_less(toy: Any) -> None:
    toy(Filter("short", "says too little", lambda drafts, ground, options: [KEEP]))
    with pytest.raises(ValueError, match="shorter"):
        filters.apply([draft("fb_1", "A."), draft("fb_2", "B.")], Ground(Settings(), Stored()))


def test_the_same_text_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyloop.curate.filters import untrainable

    looked: list[str] = []
    own = untrainable.why
    monkeypatch.setattr(untrainable, "why", lambda sample: looked.append(sample.answer) or own(sample))
    drafts = [draft("fb_1", "A cat."), draft("fb_2", "A\0dog.")]
    ground = Ground(Settings(), Stored(), Measurements(tmp_path))
    first = filters.apply(drafts, ground)
    assert filters.apply([*drafts, draft("fb_3", "A cow.")], ground).dropped == first.dropped
    assert looked == ["A cat.", "A\0dog.", "A cow."]
    measurements.forget(tmp_path, [])  # nothing tells which text is of the feedback that is forgotten
    filters.apply(drafts, replace(ground, measurements=Measurements(tmp_path)))
    assert looked[3:] == ["A cat.", "A\0dog."]


def test_a_damaged_cache_is_measured_anew(tmp_path: Path) -> None:
    (tmp_path / measurements.FILE).write_bytes(b"not a database" * 100)
    found = filters.apply([draft("fb_1", "A\0dog.")], Ground(Settings(), Stored(), Measurements(tmp_path)))
    assert [d.reason for d in found.dropped] == ["untrainable"]
    measurements.forget(tmp_path, [])
    assert not (tmp_path / measurements.FILE).exists()
