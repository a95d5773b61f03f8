"""What is kept from one curation to the next changes nothing of what comes out, whatever happens in between."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from comfyloop import curate
from comfyloop.curate import filters, pipeline, reviews
from comfyloop.curate.known import Known, thread_drafts
from comfyloop.records import (
    AnswerAccepted,
    Answered,
    AnswerEdited,
    AnswerRated,
    Feedback,
    Generation,
    ImagePicked,
    ImageRated,
    Message,
    Project,
    PromptEdited,
    SampleReviewed,
    SampleUploaded,
)
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback, generations, open_store, projects

START = datetime(2026, 1, 1, tzinfo=UTC)
NUMBERS = itertools.count()

TEXTS = (
    "A red mug stands on a wooden table beside the window.",
    "A red mug stands on a wooden table beside the window, too.",
    "A blue lamp is lit.",
    "It is not red.",
    "I'm sorry, but I can't help with that.",
    "My key is sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD",
    "A lamp, and then the",
    "lamp lamp lamp lamp lamp lamp lamp lamp lamp lamp lamp lamp",
    " ",
)


def _picture(seed: int, quality: int) -> bytes:
    drawn = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(drawn).resize((48, 48), Image.Resampling.BICUBIC).save(out, "JPEG", quality=quality)
    return out.getvalue()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("known")
    return Settings(home=home / "home", cache_dir=home / "cache", replay_share=0, holdout_first=1)


@pytest.fixture(scope="module")
def store(settings: Settings) -> Iterator[Store]:
    with open_store(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
def pictures(store: Store) -> list[str]:
    """The second is the first one saved again."""
    return [store.blobs.put(_picture(*which)) for which in ((0, 95), (0, 60), (1, 95), (2, 95))]


few, either = st.integers(0, 3), st.integers(0, 1)
what_is_done = st.one_of(
    st.tuples(st.just("edit"), either, either, st.integers(0, 8)),
    st.tuples(st.just("accept"), either, few),
    st.tuples(st.just("rate"), either, either, st.integers(1, 5)),
    st.tuples(
        st.just("upload"), few, st.integers(-1, 3), st.integers(0, 8), st.sampled_from([None, True, False])
    ),
    st.tuples(st.just("pick"), either, few, few, st.booleans(), either),
    st.tuples(st.just("rate picture"), either, few, st.sampled_from([1, 5]), st.booleans(), either),
    st.tuples(st.just("prompt"), either, either, either),
    st.tuples(st.just("decide"), st.sampled_from(["accept", "fix", "reject"]), few, st.integers(0, 8)),
    st.tuples(st.just("undo"), few),
    st.tuples(st.just("delete"), few),
)


class Person:
    """What people do with one project."""

    def __init__(self, store: Store, settings: Settings, pictures: list[str]) -> None:
        self.store, self.pictures = store, pictures
        self.name = f"p{next(NUMBERS)}"
        self.settings = settings
        self.sent: list[Feedback] = []
        with store.begin() as conn:
            projects.add(conn, Project(name=self.name, base_model="starter"))
            for n in range(4):
                shown = [pictures[1]] if n % 2 else []  # two of each question
                asked = (Message.of("user", f"What is that{'?' * (n % 2)}", shown),)
                generations.add(
                    conn,
                    Generation(
                        id=self.generation(n), project=self.name, version=0, model=self.name, messages=asked,
                        answer=TEXTS[n], finish_reason="error" if n == 3 else "stop",
                    ),
                )  # fmt: skip

    def generation(self, number: int) -> str:
        return f"gen_{self.name}_{number}"

    def does(self, what: str, *how: Any) -> None:
        getattr(self, what.replace(" ", "_"))(*how)

    def says(self, kind: Any, author: int, **more: Any) -> None:
        number = len(self.sent)
        at = START + timedelta(minutes=number * 7 % 10)  # some come late
        item = kind(
            id=f"fb_{self.name}_{number}", project=self.name, author=f"a{author % 2}", created_at=at, **more
        )
        self.sent.append(item)
        with self.store.begin() as conn:
            feedback.add(conn, [item])

    def edit(self, author: int, about: int, text: int) -> None:
        self.says(AnswerEdited, author, generation=self.generation(about), edited=TEXTS[text])

    def accept(self, author: int, about: int) -> None:
        self.says(AnswerAccepted, author, generation=self.generation(about))

    def rate(self, author: int, about: int, rating: int) -> None:
        self.says(AnswerRated, author, generation=self.generation(about), rating=rating)

    def upload(self, author: int, picture: int, text: int, label: bool | None) -> None:
        shown = [self.pictures[picture]] if picture >= 0 else []
        messages = (Message.of("user", "What is it?", shown), Message.of("assistant", TEXTS[text]))
        self.says(SampleUploaded, author, messages=messages, label=label, to_review=text == 2)

    def pick(self, author: int, picked: int, over: int, written: bool, about: int) -> None:
        self.says(
            ImagePicked, author, picked=(self.pictures[picked],), over=(self.pictures[over],),
            prompt=TEXTS[about], generation=self.generation(about) if written else None,
        )  # fmt: skip

    def rate_picture(self, author: int, picture: int, rating: int, written: bool, about: int) -> None:
        self.says(
            ImageRated, author, image=self.pictures[picture], rating=rating,
            prompt=TEXTS[about], generation=self.generation(about) if written else None,
        )  # fmt: skip

    def prompt(self, author: int, before: int, after: int) -> None:
        self.says(PromptEdited, author, before=TEXTS[before], after=TEXTS[after], node="6")

    def decide(self, decision: Any, place: int, text: int) -> None:
        items = curate.queue(self.store, self.name, self.settings)
        if items and (decision != "fix" or TEXTS[text].strip()):
            item = items[place % len(items)]
            said = (Answered(item=item.id, filters=tuple(reason.filter for reason in item.reasons)),)
            more = {"text": TEXTS[text]} if decision == "fix" else {}
            self.says(SampleReviewed, 0, decision=decision, items=said, **more)

    def undo(self, place: int) -> None:
        made = [item for item in self.sent if isinstance(item, SampleReviewed)]
        if made:
            self.says(SampleReviewed, 1, decision="undo", undoes=made[place % len(made)].id)

    def delete(self, place: int) -> None:
        if self.sent:
            with self.store.begin() as conn:
                feedback.delete_some(conn, self.name, [self.sent[-1 - place % len(self.sent)].id])

    def curated(self, known: Known) -> tuple[object, ...]:
        sound = pipeline.sound_of(self.store, self.name, self.settings, known)
        filtered, reviewed = sound.filtered, sound.looked.reviewed
        return (
            sound.kept, sound.dropped, sound.flags, filtered.doubts, filtered.unmeasured,
            reviewed.taught, reviewed.decided, sound.looked.total,
        )  # fmt: skip

    def all_at_once(self) -> list[filters.Passed]:
        """Without threads: whatever says something about something else is there."""
        with self.store.read() as conn:
            items = [item for _, item in feedback.list_by(conn, self.name)]
            made = generations.get_many(conn, [self.generation(n) for n in range(4)])
        place = {item.id: n for n, item in enumerate(items)}
        looked = Known().look(self.store, self.name, self.settings)
        drafts, dropped = thread_drafts(
            [item for item in items if not isinstance(item, SampleReviewed)], made, self.settings
        )
        done = reviews.apply(drafts, reviews.verdicts_of(items))
        done.drafts.sort(key=lambda draft: max(place[id] for id in draft.sample.feedback))
        left_out = {lost.feedback for lost in (*dropped, *done.dropped)}
        assert left_out == {lost.feedback for lost in looked.dropped}
        return filters.each(done.drafts, looked.ground)

    def snapshot(self, known: Known) -> object:
        made = curate.build(self.store, self.name, self.settings, images=True, known=known)
        return made if isinstance(made, curate.NothingToTrain) else made.id


@hypothesis_settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(what_is_done, min_size=8, max_size=24), st.integers(1, 3))
@example([("rate picture", 0, 0, 5, False, 0), ("rate picture", 0, 2, 1, False, 0)], 1)
@example([("pick", 0, 0, 2, True, 0), ("rate picture", 0, 3, 1, True, 2)], 1)
@example([("prompt", 0, 0, 1), ("prompt", 0, 1, 0)], 1)
@example([("edit", 0, 0, 2), ("rate", 0, 0, 5), ("decide", "reject", 0, 0), ("undo", 0)], 1)
def test_what_is_known_changes_nothing_of_what_comes_out(
    store: Store, settings: Settings, pictures: list[str], done: list[tuple[Any, ...]], every: int
) -> None:
    person, known = Person(store, settings, pictures), Known()
    for number, (what, *how) in enumerate(done):
        person.does(what, *how)
        if number % every == 0:
            assert person.curated(known) == person.curated(Known())
    assert person.curated(known) == person.curated(Known())
    passed = Known().look(store, person.name, settings).passed
    assert [one.draft for one in passed] == [one.draft for one in person.all_at_once()]
    assert person.snapshot(known) == person.snapshot(Known())
