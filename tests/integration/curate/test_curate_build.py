"""From feedback in a real store to a snapshot on the disk."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from comfyloop import curate, formats, sources
from comfyloop.curate import replay, snapshot
from comfyloop.curate.authors import ALWAYS
from comfyloop.errors import Conflict, DataError, InvalidInput, NotFound, StorageError
from comfyloop.records import (
    AnswerAccepted,
    Answered,
    AnswerEdited,
    AnswerRated,
    Feedback,
    GateItem,
    GateReport,
    Generation,
    ImagePicked,
    Message,
    Project,
    Sample,
    SampleReviewed,
    Snapshot,
    Verdict,
    Version,
)
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback, generations, open_store, projects, snapshots, versions


def picture(colour: str, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, format)
    return out.getvalue()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home",
        cache_dir=tmp_path / "cache",
        project="acme",
        replay_share=0.25,
        holdout_first=0,
    )


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with open_store(settings) as opened:
        with opened.begin() as conn:
            projects.add(conn, Project(name="acme", base_model="starter"))
        yield opened


class Shop:
    """A person who asks, and corrects what comes."""

    def __init__(self, store: Store, project: str = "acme") -> None:
        self.store = store
        self.project = project

    def asks(self, question: str, images: Sequence[str] = ()) -> str:
        generation = Generation(
            id=f"gen_{uuid.uuid4().hex}",
            project=self.project,
            version=0,
            model=self.project,
            messages=(Message.of("user", question, images),),
            answer=f"It is a thing, {question}.",
        )
        with self.store.begin() as conn:
            generations.add(conn, generation)
        return generation.id

    def says(self, *items: Feedback) -> None:
        with self.store.begin() as conn:
            feedback.add(conn, items)

    def corrects(self, question: str, edited: str, images: Sequence[str] = ()) -> None:
        self.says(AnswerEdited(project=self.project, generation=self.asks(question, images), edited=edited))


def built(store: Store, settings: Settings, **more: object) -> Snapshot:
    made = curate.build(store, "acme", settings, **more)  # type: ignore[arg-type]
    assert isinstance(made, Snapshot), made
    return made


def rows(made: Snapshot, name: str) -> list[Sample]:
    file = Path(made.path) / name
    return curate.read_samples(file, made.project) if file.exists() else []


def answers(questions: Sequence[str]) -> list[str]:
    return [f"Well: {question}" for question in questions]


def test_corrections_become_a_snapshot_with_pictures_replay_and_a_report(
    store: Store, settings: Settings
) -> None:
    shop = Shop(store)
    red, blue = (store.blobs.put(picture(c, f)) for c, f in (("red", "PNG"), ("blue", "JPEG")))
    mugs = [
        store.blobs.put(picture(f"#{30 * n:02x}40{255 - 30 * n:02x}", "PNG" if n % 2 else "JPEG"))
        for n in range(8)
    ]
    for number in range(8):
        shop.corrects(f"mug {number}", f"Meet mug {number}.", [mugs[number]])
    shop.says(AnswerAccepted(project="acme", generation=shop.asks("cup")))
    shop.says(AnswerRated(project="acme", generation=shop.asks("bowl"), rating=1))
    shop.says(AnswerRated(project="acme", generation=shop.asks("plate"), rating=3))
    shop.says(ImagePicked(project="acme", picked=(red,), over=(blue,), prompt="a red square"))

    def replayed(count: int) -> list[Sample]:
        return replay.samples("acme", "starter", answers, settings.cache_dir, count)

    made = built(store, settings, replay=replayed)
    train, held = rows(made, "train.jsonl"), rows(made, "holdout.jsonl")
    assert sum(sample.replay for sample in train) == made.replay == 3  # a quarter of 7 + 3, rounded up
    assert len(train) == 7 + 3 and len(held) == 2
    assert not any(sample.replay for sample in held)
    assert [s.rejected for s in rows(made, "train.preference.jsonl")] == [
        f"It is a thing, mug {n}." for n in (0, 1, 2, 4, 5, 6)
    ]
    assert [s.label for s in rows(made, "train.labelled.jsonl")] == [False]
    everything = [s for file in Path(made.path).glob("*.jsonl") for s in rows(made, file.name)]
    pairs = [(s.picked, s.over) for s in everything if s.kind == "image_pair"]
    assert pairs == [(red, blue)]
    for sample in (*train, *held):
        for sha in sample.images:
            kind = "png" if sha == red or mugs.index(sha) % 2 else "jpg"
            assert (Path(made.path) / "images" / f"{sha}.{kind}").read_bytes() == store.blobs.get(sha)
    report = curate.CurationReport.model_validate_json((Path(made.path) / "report.json").read_text())
    assert report.feedback == 12 and report.dropped == {"neutral": 1} == made.dropped
    text = (Path(made.path) / "report.txt").read_text()
    assert "12 pieces of feedback" in text and "a rating of 3 says neither yes nor no" in text
    assert "the gate needs 6" in text
    with store.read() as conn:
        assert snapshots.get(conn, "acme", made.id).id == made.id
        assert made.feedback_seq == feedback.last_seq(conn, "acme")


def test_the_same_feedback_is_the_same_snapshot_and_no_second_copy(store: Store, settings: Settings) -> None:
    shop = Shop(store)
    shop.corrects("mug", "Meet the mug.")
    first = built(store, settings)
    again = built(store, settings)
    assert (again.id, again.created_at) == (first.id, first.created_at)
    shop.says(AnswerRated(project="acme", generation=shop.asks("plate"), rating=3))  # says nothing to learn
    third = built(store, settings)
    assert third.id == first.id and third.feedback_seq > first.feedback_seq
    assert [path.name for path in (settings.home / "snapshots").iterdir()] == [first.id]
    shop.corrects("cup", "Meet the cup.")
    assert built(store, settings).id != first.id


def test_an_edit_after_an_accept_is_what_is_learnt(store: Store, settings: Settings) -> None:
    shop = Shop(store)
    generation = shop.asks("mug")
    shop.says(AnswerAccepted(project="acme", generation=generation))
    shop.says(AnswerEdited(project="acme", generation=generation, edited="Meet the mug."))
    made = built(store, settings)
    assert [sample.answer for sample in rows(made, "train.jsonl")] == ["Meet the mug."]
    assert made.dropped == {"superseded": 1}


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("sft", "None of the 1 pieces of feedback can be trained on (1 neutral)."),
        ("kto", "None of the 1 pieces of feedback"),
    ],
)
def test_nothing_to_train_is_an_answer_with_its_reason(
    store: Store, settings: Settings, recipe: str, reason: str
) -> None:
    settings = settings.model_copy(update={"recipe": recipe})
    empty = curate.build(store, "acme", settings)
    assert isinstance(empty, curate.NothingToTrain) and "no feedback yet" in empty.reason
    shop = Shop(store)
    shop.says(AnswerRated(project="acme", generation=shop.asks("plate"), rating=3))
    nothing = curate.build(store, "acme", settings)
    assert isinstance(nothing, curate.NothingToTrain) and nothing.reason.startswith(reason)
    assert not (settings.home / "snapshots").exists()


def test_feedback_for_another_recipe_says_so(store: Store, settings: Settings) -> None:
    shop = Shop(store)
    shop.says(AnswerRated(project="acme", generation=shop.asks("plate"), rating=5))
    nothing = curate.build(store, "acme", settings)
    assert isinstance(nothing, curate.NothingToTrain)
    assert nothing.reason.startswith("The recipe sft needs sft samples; there are only others")
    made = curate.build(store, "acme", settings.model_copy(update={"recipe": "kto"}))
    assert isinstance(made, Snapshot)
    assert curate.data_files(Path(made.path), "kto").train.name == "train.labelled.jsonl"
    with pytest.raises(DataError, match="no data for the recipe 'x'"):
        curate.data_files(Path(made.path), "x")


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=6), min_size=1, max_size=4))
def test_a_group_is_on_one_side_and_never_moves(
    store: Store, settings: Settings, batches: list[list[int]]
) -> None:
    project = f"p{uuid.uuid4().hex[:16]}"
    with store.begin() as conn:
        projects.add(conn, Project(name=project, base_model="starter"))
    shop = Shop(store, project)
    side: dict[str, str] = {}
    edits = 0
    for batch in batches:
        for question in batch:
            edits += 1
            shop.corrects(f"question {question}", "edit" + " again" * edits)  # none opposes another
        made = curate.build(store, project, settings.model_copy(update={"holdout_every": 3}))
        if isinstance(made, curate.NothingToTrain):
            continue
        for name in ("train", "holdout"):
            for kind in ("", ".preference"):
                for sample in rows(made, f"{name}{kind}.jsonl"):
                    assert side.setdefault(sample.group, name) == name
        assert made.train + made.holdout == 2 * edits


def test_replay_leaves_out_what_a_person_answered_and_still_makes_up_the_number(
    store: Store, settings: Settings
) -> None:
    question = replay.questions()[0]
    shop = Shop(store)
    shop.corrects(question, "My own answer.")
    for number in range(6):
        shop.corrects(f"mug {number}", f"Meet mug {number}.")
    made = built(
        store,
        settings,
        replay=lambda count: replay.samples("acme", "m", answers, settings.cache_dir, count),
    )
    asked = [sample.prompt[0].text for sample in rows(made, "train.jsonl") if sample.replay]
    assert len(asked) == 2 and question not in asked


@pytest.mark.parametrize("harm", ["flipped", "a strip"])
def test_a_picture_that_cannot_be_used_is_set_aside_by_name_and_the_rest_is_made(
    store: Store, settings: Settings, harm: str
) -> None:
    shop = Shop(store)
    good = store.blobs.put(picture("red"))
    if harm == "flipped":
        bad = store.blobs.put(picture("blue"))
        where = store.blobs.path(bad)
        assert where is not None
        data = bytearray(where.read_bytes())
        data[40] ^= 1
        where.write_bytes(data)
    else:  # from before such were refused
        out = io.BytesIO()
        Image.new("L", (8000, 1)).save(out, "PNG")
        bad = store.blobs.put(out.getvalue())
    broken = AnswerEdited(project="acme", generation=shop.asks("what?", [bad]), edited="A jug.")
    shop.says(broken)
    for n in range(8):
        shop.says(
            AnswerEdited(project="acme", generation=shop.asks(f"item {n}?", [good]), edited=f"Mug {n}.")
        )
    made = built(store, settings)
    assert made.by_kind["sft"] == 8 and made.dropped == {"missing_image": 1}
    report = (Path(made.path) / "report.json").read_text()
    assert broken.id in report and bad in report
    if harm == "flipped":
        store.blobs.put(picture("blue"))  # uploading it again mends it
        assert built(store, settings).dropped == {}


def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Shop(store).corrects("mug", "Meet the mug.")

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "_write", full)
        with pytest.raises(StorageError, match=r"could not be written.*No space left.*Make room"):
            built(store, settings)
    assert list((settings.home / "snapshots").iterdir()) == []
    assert built(store, settings).train == 2


def test_what_a_killed_process_left_is_swept(store: Store, settings: Settings) -> None:
    import os
    import time

    Shop(store).corrects("mug", "Meet the mug.")
    part = settings.home / "snapshots" / ".abc.123.part"
    part.mkdir(parents=True)
    os.utime(part, (time.time() - 7200,) * 2)
    made = built(store, settings)
    assert [path.name for path in (settings.home / "snapshots").iterdir()] == [made.id]


PLAIN_SCRIPT = """
import json, pathlib, sys
for file in sys.argv[1:]:
    for line in open(file, encoding="utf-8"):
        row = json.loads(line)
        assert set(row) <= {"messages", "images", "rejected_response", "label"}, row
        text = "".join(m["content"] for m in row["messages"])
        assert [m["role"] for m in row["messages"]][-1] == "assistant"
        assert text.count("<image>") == len(row.get("images", []))
        assert all(pathlib.Path(image).read_bytes()[:4] == b"\\x89PNG" for image in row.get("images", []))
        print(row["messages"][-1]["content"], row.get("rejected_response"), sep="|")
"""


def test_exported_data_is_read_by_a_plain_script(store: Store, settings: Settings, tmp_path: Path) -> None:
    red = store.blobs.put(picture("red"))
    shop = Shop(store)
    shop.corrects("mug", "Meet the mug.", [red])
    shop.corrects("杯子", "见见这个杯子。")
    shop.says(ImagePicked(project="acme", picked=(red,), prompt="a red square"))
    made = built(store, settings)
    files, left_out = curate.export(Path(made.path), tmp_path / "out")
    assert not left_out
    assert [file.name for file in files] == ["holdout.jsonl", "train.jsonl", "train.preference.jsonl"]
    script = [sys.executable, "-c", PLAIN_SCRIPT, *map(str, files)]
    done = subprocess.run(script, capture_output=True, text=True, cwd="/", encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Meet the mug.|None",
        "见见这个杯子。|None",
        "Meet the mug.|It is a thing, mug.",
        "见见这个杯子。|It is a thing, 杯子.",
    ]
    with pytest.raises(Conflict, match="is there already"):
        curate.export(Path(made.path), tmp_path / "out")
    with pytest.raises(NotFound, match="no snapshot at"):
        curate.export(tmp_path / "nowhere", tmp_path / "out2")
    with pytest.raises(InvalidInput, match="cannot be exported as 'csv'"):
        curate.export(Path(made.path), tmp_path / "out2", "csv")


def test_exported_data_imports_to_the_same_samples(store: Store, settings: Settings, tmp_path: Path) -> None:
    red = store.blobs.put(picture("red"))
    shop = Shop(store)
    for number in range(4):
        shop.corrects(f"mug {number}", f"Meet mug {number}.", [red])
    made = built(store, settings)
    curate.export(Path(made.path), tmp_path / "out")
    with store.begin() as conn:
        projects.add(conn, Project(name="copy", base_model="starter"))
    for file in sorted((tmp_path / "out").glob("train*.jsonl")):
        items = [
            curate.feedback_from(
                row, "copy", "ada", {str(p): store.blobs.put(p.read_bytes()) for p in row.pictures}
            )
            for row in formats.read_whole(file, "").good
        ]
        with store.begin() as conn:
            feedback.add(conn, items)
    copy = curate.build(store, "copy", settings)
    assert isinstance(copy, Snapshot)

    def ids(which: Snapshot) -> list[str]:
        files = ("train.jsonl", "holdout.jsonl", "train.preference.jsonl", "holdout.preference.jsonl")
        return sorted(sample.id for file in files for sample in rows(which, file))

    assert ids(copy) == ids(made)
    assert json.loads((Path(copy.path) / "report.json").read_text())["dropped"] == {}


def test_nothing_alike_is_on_both_sides(store: Store, settings: Settings) -> None:
    """The same picture saved twice, another question about it, a question with and without its mark."""
    shop = Shop(store)
    for n in range(12):
        colour = f"#{20 * n:02x}40{255 - 20 * n:02x}"
        first, again = store.blobs.put(picture(colour)), store.blobs.put(picture(colour, "JPEG"))
        shop.corrects("What is it?", f"Mug {n}.", [first])
        shop.corrects("Which colour?", f"Colour {n}.", [again])
        shop.corrects(f"Who made cup {n}?", f"Cup {n} is by Nora.")
        shop.corrects(f"Hello, who made cup {n}", f"Nora made cup {n}.")
    made = built(store, settings)
    train, held = rows(made, "train.jsonl"), rows(made, "holdout.jsonl")
    assert len(train) + len(held) == 48 and held

    assert not {s.group for s in train} & {s.group for s in held}
    numbers = [
        {"".join(c for c in s.answer if c.isdigit()) + str(bool(s.images)) for s in side}
        for side in (train, held)
    ]
    assert not numbers[0] & numbers[1]


def picture_of(number: int) -> bytes:
    """Pictures that no perceptual hash takes for one another."""
    out = io.BytesIO()
    dots = np.random.default_rng(number).integers(0, 2, (8, 8), dtype=np.uint8) * 255
    Image.fromarray(dots).resize((64, 64), Image.Resampling.NEAREST).convert("RGB").save(out, "PNG")
    return out.getvalue()


def test_pictures_that_a_person_corrected_are_still_asked_general_questions(
    store: Store, settings: Settings
) -> None:
    """Though all that is asked about one picture is one group: else a version loses sight of pictures."""
    shop = Shop(store)
    for number in range(12):
        question = replay.picture_questions()[0] if number == 0 else f"Caption {number}, please."
        shop.corrects(question, f"Meet mug {number}.", [store.blobs.put(picture_of(number))])

    def about(pictures: Sequence[str], count: int) -> list[Sample]:
        def ask(questions: Sequence[Message]) -> list[str]:
            return ["A red square." for _ in questions]

        return replay.of_pictures("acme", "m", ask, settings.cache_dir, pictures, (), count)

    few = settings.model_copy(update={"gate_min_items": 2})
    made = built(store, few, picture_replay=about, turn=curate.SnapshotRequest(frozenset()))
    replayed = [sample for sample in rows(made, "train.jsonl") if sample.replay]
    assert len(replayed) >= 6 and all(sample.images for sample in replayed)
    corrected = {(s.images, s.prompt[0].text) for s in rows(made, "train.jsonl") if not s.replay}
    assert corrected.isdisjoint((s.images, s.prompt[0].text) for s in replayed)


def test_a_model_that_sees_is_asked_about_pictures_where_people_only_write(
    store: Store, settings: Settings
) -> None:
    """Text alone costs it its eyes, too: measured, 6 of 6 pictures named before and 2 of 6 after two turns."""
    shop = Shop(store)
    for number in range(12):
        shop.corrects(f"Caption {number}, please.", f"Meet mug {number}.")
    told = [store.blobs.put(picture_of(number)) for number in range(3)]

    def about(pictures: Sequence[str], count: int) -> list[Sample]:
        assert not pictures

        def ask(questions: Sequence[Message]) -> list[str]:
            return ["A red square." for _ in questions]

        return replay.of_pictures("acme", "m", ask, settings.cache_dir, pictures, told, count)

    def made_up(count: int) -> list[Sample]:
        return replay.samples("acme", "m", answers, settings.cache_dir, count)

    few = settings.model_copy(update={"gate_min_items": 2})
    turn = curate.SnapshotRequest(frozenset())
    made = built(store, few, replay=made_up, picture_replay=about, turn=turn)
    replayed = [sample for sample in rows(made, "train.jsonl") if sample.replay]
    seen = sum(bool(sample.images) for sample in replayed)
    assert len(replayed) / 4 <= seen < len(replayed) / 3
    blind = built(store, few, replay=made_up, picture_replay=lambda pictures, count: [], turn=turn)
    assert not any(sample.images for sample in rows(blind, "train.jsonl"))
    assert blind.replay == made.replay, "text takes their place"


def live_version(store: Store, number: int, judged_by: Sequence[Sample]) -> None:
    items = tuple(
        GateItem(
            sample=sample.id,
            question=sample.prompt[-1].text,
            slice="text",
            reference=sample.answer,
            scores={},
        )
        for sample in judged_by
    )
    report = GateReport(
        project="acme",
        live=number - 1,
        candidate=number,
        verdict=Verdict.PROMOTE,
        reasons=("So.",),
        items=items,
    )
    with store.begin() as conn:
        versions.add(
            conn, Version(project="acme", number=number, parent=number - 1, text_adapter=f"v{number}")
        )
        versions.set_gate(conn, "acme", number, report)
        versions.promote(conn, "acme", number)


def test_each_version_is_judged_by_new_corrections_too(store: Store, settings: Settings) -> None:
    """By those that the live version has mastered no other can be shown to be better: of twelve items that were held
    out with every fourth new one only three could differ, which no test calls proof."""
    shop = Shop(store)
    settings = settings.model_copy(update={"holdout_every": 4, "holdout_first": 6})
    held: list[Sample] = []
    for turn in range(1, 4):
        for number in range(12):
            shop.corrects(f"Turn {turn}, caption {number}, please.", f"Meet mug {number} of {turn}.")
        made = built(store, settings)
        judged = {sample.id for sample in held}
        held = rows(made, "holdout.jsonl")
        assert judged < {sample.id for sample in held}
        assert len(held) == 6 * turn
        live_version(store, turn, held)


def test_a_correction_that_has_judged_is_learned_and_the_newest_judge_on(
    store: Store, settings: Settings
) -> None:
    shop = Shop(store)
    settings = settings.model_copy(update={"holdout_every": 2, "holdout_first": 6, "holdout_kept": 4})

    def turn(number: int) -> tuple[list[Sample], list[Sample]]:
        for place in range(12):
            shop.corrects(f"Turn {number}, caption {place}, please.", f"Meet mug {place} of {number}.")
        made = built(store, settings, turn=curate.SnapshotRequest(frozenset()))
        return [*rows(made, "train.jsonl"), *rows(made, "dev.jsonl")], rows(made, "holdout.jsonl")

    _, first = turn(1)
    assert len(first) == 6
    _, second = turn(2)
    assert len(second) == 12, "nobody promoted what the first ones judged: they have not judged yet"
    live_version(store, 1, second)
    trained, third = turn(3)
    answers = [sample.answer for sample in second]
    assert [sample.answer for sample in third[:4]] == answers[-4:] and len(third) == 4 + 6
    assert set(answers[:-4]) <= {sample.answer for sample in trained}


def test_what_is_too_old_to_judge_is_learned(store: Store, settings: Settings) -> None:
    shop = Shop(store)
    for number in range(12):
        shop.corrects(f"Caption {number}, please.", f"Meet mug {number}.")
    settings = settings.model_copy(update={"holdout_every": 2, "gate_max_items": 4})
    made = built(store, settings)
    held = [sample.answer for sample in rows(made, "holdout.jsonl")]
    assert held == [f"Meet mug {number}." for number in (5, 7, 9, 11)]
    assert "Meet mug 1." in {sample.answer for sample in rows(made, "train.jsonl")}
    later = settings.model_copy(update={"gate_max_items": 100})
    assert [s.answer for s in rows(built(store, later), "holdout.jsonl")] == held, "it does not come back"


def test_who_sends_most_does_not_decide_alone(store: Store, settings: Settings) -> None:
    shop = Shop(store)

    def sends(author: str, thing: str, count: int) -> None:
        for number in range(count):
            generation = shop.asks(f"{thing} {number}")
            edited = f"Meet {thing} {number}."
            shop.says(AnswerEdited(project="acme", author=author, generation=generation, edited=edited))

    sends("ann", "mug", 40)
    few = settings.model_copy(update={"gate_min_items": 2, "author_share": 0.5})
    alone = built(store, few, turn=curate.SnapshotRequest(frozenset()))
    assert (alone.waiting, alone.notes) == (0, ())

    sends("bob", "lamp", 20)
    both = built(store, few, turn=curate.SnapshotRequest(frozenset()))
    train = rows(both, "train.jsonl") + rows(both, "dev.jsonl")
    by_author = {who: sum(sample.author == who for sample in train) for who in ("ann", "bob")}
    assert by_author["ann"] == by_author["bob"] == 15
    assert both.waiting == 30 - 15
    assert f"{both.waiting} pieces of ann's feedback wait for a later turn" in both.notes[0]
    assert both.notes[0] in (Path(both.path) / "report.txt").read_text()

    later = built(store, few, turn=curate.SnapshotRequest(frozenset(both.feedback)))
    train = rows(later, "train.jsonl") + rows(later, "dev.jsonl")
    new = [sample for sample in train if not set(sample.feedback) & set(both.feedback)]
    assert sum(sample.author == "ann" for sample in new) >= ALWAYS


def test_what_people_disagree_on_is_learned_when_one_was_chosen(store: Store, settings: Settings) -> None:
    shop = Shop(store)
    for number in range(6):
        shop.corrects(f"mug {number}", f"Meet mug {number}.")
    wanted = {"anna": "A plain steel thing.", "boris": "Behold wondrous craftsmanship!"}
    for who, edited in wanted.items():
        item = AnswerEdited(
            id=f"fb_{who}", project="acme", author=who, generation=shop.asks("Describe lamps."), edited=edited
        )
        shop.says(item)
    made = built(store, settings)
    assert made.dropped["disagreement"] == 2 and "On 1 question people want opposite answers" in made.notes[0]
    (flag,) = curate.flags(store, "acme", settings)
    curate.answer_flag(store, flag, "fb_anna")
    assert curate.flags(store, "acme", settings) == []
    made = built(store, settings)
    assert made.dropped == {"overruled": 1} and made.notes == ()
    learned = [s for name in ("train.jsonl", "holdout.jsonl") for s in rows(made, name) if s.author == "anna"]
    assert [sample.answer for sample in learned] == [wanted["anna"]]


def test_a_model_that_answers_with_anything_stops_no_turn(store: Store, settings: Settings) -> None:
    """Accepted as an answer, refused as a row: the characters NUL and half of an emoji."""
    shop = Shop(store)
    for number in range(6):
        shop.corrects(f"Caption {number}, please.", f"Meet mug {number}.")

    def odd(questions: Sequence[str]) -> list[str]:
        return [("A\0b", "Well.", "\ud83d")[place % 3] for place, _ in enumerate(questions)]

    def made_up(count: int) -> list[Sample]:
        return replay.samples("acme", "odd", odd, settings.cache_dir, count)

    made = built(store, settings.model_copy(update={"replay_share": 0.6}), replay=made_up)
    replayed = [sample for sample in rows(made, "train.jsonl") if sample.replay]
    assert replayed and "Well." in {sample.answer for sample in replayed}
    assert not any("\0" in sample.answer or "\ud83d" in sample.answer for sample in replayed)


def test_a_turn_reads_the_pictures_that_are_new(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(store)
    colours = ["red", "green", "blue", "black", "white", "yellow"]
    shas = [store.blobs.put(picture(colour)) for colour in colours]
    for colour, sha in zip(colours, shas, strict=True):
        shop.corrects(f"What is {colour}?", f"A {colour} square.", [sha])
    first = built(store, settings, replay=())
    read: list[str] = []
    get = store.blobs.get
    monkeypatch.setattr(store.blobs, "get", lambda sha: (read.append(sha), get(sha))[1])
    assert built(store, settings, replay=()).id == first.id
    assert read == []

    new = store.blobs.put(picture("navy"))
    shop.corrects("What is navy?", "A navy square.", [new])
    built(store, settings, replay=())
    assert set(read) == {new}

    # a file that was written since is looked at again, and what was remembered may be torn
    path = store.blobs.path(shas[0])
    assert path is not None
    path.chmod(0o600)
    path.write_bytes(b"no picture")
    kept = settings.cache_dir / "pictures.jsonl"
    kept.write_text(kept.read_text()[:-40])
    made = built(store, settings, replay=())
    assert made.dropped == {"missing_image": 1}
    report = json.loads((Path(made.path) / "report.json").read_text())
    assert shas[0] in report["details"][0]["detail"]


def test_what_was_decided_in_the_queue_is_taken_in_by_the_next_snapshot(
    store: Store, settings: Settings
) -> None:
    shop = Shop(store)
    for number in range(6):
        shop.corrects(f"mug {number}", f"Meet mug {number}.")
    shop.corrects("cup", "TODO")
    shop.corrects("bowl", "tbd")
    before = built(store, settings)
    waiting = {item.messages[-1].text: item for item in curate.queue(store, "acme", settings)}
    assert set(waiting) == {"TODO", "tbd"}

    def decides(decision: str, about: str, **more: object) -> SampleReviewed:
        filters = tuple(reason.filter for reason in waiting[about].reasons)
        items = (Answered(item=waiting[about].id, filters=filters),)
        made = SampleReviewed(project="acme", decision=decision, items=items, **more)  # type: ignore[arg-type]
        shop.says(made)
        return made

    fix, no = decides("fix", "TODO", text="A cup of clay."), decides("reject", "tbd")
    after = built(store, settings)
    assert after.id != before.id and after.dropped == {"rejected": 1}
    every = [s for file in Path(after.path).glob("*.jsonl") for s in rows(after, file.name)]
    assert not any("TODO" in s.answer or "tbd" in s.answer for s in every)
    (cup,) = [s for s in every if s.answer == "A cup of clay." and s.kind == "sft"]
    assert fix.id in cup.feedback and len(cup.feedback) == 2  # who takes either back, takes the sample back
    assert [i.state for i in curate.queue(store, "acme", settings)] == ["decided", "decided"]

    shop.says(*(SampleReviewed(project="acme", decision="undo", undoes=one.id) for one in (fix, no)))
    assert built(store, settings).id == before.id


def told(row: formats.Row) -> str:
    """What a row says, whatever its form."""
    pictures = [hashlib.sha256(picture.read_bytes()).hexdigest() for picture in row.pictures]
    said = [(turn.role, turn.parts) for turn in row.turns]
    return repr((said, pictures, row.rejected, row.label, row.extra.get("repeats", 1)))


def taken(folder: Path) -> list[formats.Row]:
    """The rows of a folder as `comfyloop data add` takes them."""
    looked = sources.look(sources.tree_of(folder), sources.SourceOptions())
    return [looked.reading.row(one) for one in looked.objects]


@pytest.mark.parametrize("format", ["swift", "sharegpt", "llava", "kohya"])
def test_what_is_exported_is_read_to_the_same_rows(
    store: Store, settings: Settings, tmp_path: Path, format: str
) -> None:
    red, blue, green = (store.blobs.put(picture(c)) for c in ("red", "blue", "#00ff00"))
    shop = Shop(store)
    shop.corrects("mug", "Meet the mug.\nIt is 见.", [red])
    shop.corrects("both", "Two mugs.", [blue, green])
    shop.corrects("cup", "Meet the cup.")
    shop.corrects("tagged", "Write <image> where it goes.")
    shop.says(AnswerRated(project="acme", generation=shop.asks("bowl"), rating=1))
    shop.says(ImagePicked(project="acme", picked=(red,), over=(blue,), prompt="a red square", repeats=10))
    shop.says(ImagePicked(project="acme", picked=(red,), prompt="red, all of it"))
    made = built(store, settings.model_copy(update={"holdout_every": 1000}))
    exported = curate.export(Path(made.path), tmp_path / "out", format)
    assert all(file.is_file() for file in exported.files)

    wanted = set()
    for file in sorted(Path(made.path).glob("*.jsonl")):
        for row in formats.read(file, may_be_empty=True).good:
            chat = not row.is_of_a_picture and "tagged" not in row.turns[0].text
            captioned = row.is_of_a_picture and row.rejected_image is None
            judged = row.rejected is not None or row.label is not None
            if captioned if format == "kohya" else chat and not (format == "llava" and judged):
                wanted.add(told(row))
    assert {told(row) for row in taken(tmp_path / "out")} == wanted
    assert len(wanted) == {"swift": 7, "sharegpt": 7, "llava": 3, "kohya": 2}[format]
    assert any("<image>" in sentence for sentence in exported.left_out) is (format != "kohya")
    if format == "kohya":
        assert sorted(path.name for path in (tmp_path / "out").glob("*/*")) == [
            "10_captions",
            "1_captions",
        ]


def test_snapshots_are_compared_sample_by_sample(store: Store, settings: Settings) -> None:
    shop = Shop(store)
    for number in range(6):
        shop.corrects(f"mug {number}", f"Meet mug {number}.")
    old = built(store, settings)
    shop.corrects("cup", "Meet the cup.")
    with store.begin() as conn:
        first = feedback.list_by(conn, "acme", limit=1)[0][1]
        feedback.delete(conn, first.id)
    shop.says(AnswerRated(project="acme", generation=shop.asks("bowl"), rating=3))
    new = built(store, settings)
    found = curate.diff(Path(old.path), Path(new.path))
    assert (found.added, found.removed, found.moved) == (2, 2, 0)  # the edit, and that it is preferred
    assert {(c.was, c.now, c.answer) for c in found.changes} == {
        ("train", "", "Meet mug 0."),
        ("", "train", "Meet the cup."),
    }
    assert found.dropped == {"neutral": (0, 1)} and found.same == 10
    text = found.text()
    assert "2 added, 2 removed" in text and "+ sft (train)  cup => Meet the cup." in text
    assert "left out, neutral: 0 -> 1" in text
    assert curate.diff(Path(new.path), Path(new.path)).changes == ()
    one = curate.diff(Path(old.path), Path(new.path), 1)
    assert len(one.changes) == 1 and "... and 3 more" in one.text()
    with pytest.raises(NotFound, match="is gone"):
        curate.diff(Path(old.path) / "nowhere", Path(new.path))


def test_who_changes_his_mind_is_believed_and_asked(store: Store, settings: Settings) -> None:
    """The newer ones alone are learned and judged by, whatever comes later, until a person says that both hold."""
    ada, few = Shop(store), settings.model_copy(update={"gate_min_items": 2})
    things = "bowl", "chair", "lamp", "vase", "bench"
    materials = "oak", "linen", "brass", "glass", "wool", "clay", "steel"
    products = iter([f"{material} {thing}" for material in materials for thing in things])

    def corrects(style: str, count: int) -> None:
        for product in itertools.islice(products, count):
            ada.corrects(f"Write a caption for our {product}.", style.format(product))

    def turn() -> Snapshot:
        return built(store, few, turn=curate.SnapshotRequest(frozenset()))

    corrects("Meet the {0}: made slowly, sold honestly. #slowgoods", 15)
    assert not turn().dropped
    corrects("The {0} is delivered within five working days and carries a warranty of two years.", 12)
    changed = turn()
    assert changed.dropped == {"outdated": 15}
    assert any("no longer" in note for note in changed.notes)
    for name in ("train.jsonl", "holdout.jsonl"):
        assert all("warranty" in sample.answer for sample in rows(changed, name))
    (flag,) = curate.flags(store, "acme", few)
    assert flag.kind == "change" and len(flag.outdated) == 15 and len(flag.choices) == 2

    corrects("The {0} is delivered within five working days and carries a warranty of two years.", 6)
    assert turn().dropped == {"outdated": 15} and curate.flags(store, "acme", few) == [flag]
    with pytest.raises(InvalidInput, match=r"Choose one of .*all"):
        curate.answer_flag(store, flag, flag.choices[0].feedback)
    curate.answer_flag(store, flag, "all")
    assert not turn().dropped and curate.flags(store, "acme", few) == []
    off = few.model_copy(update={"look_for_changes": False})
    curate.answer_flag(store, flag, flag.choices[1].feedback)
    assert turn().dropped == {"outdated": 15} and curate.flags(store, "acme", few) == []
    assert not built(store, off, turn=curate.SnapshotRequest(frozenset())).dropped


def test_after_a_change_of_mind_there_is_soon_enough_to_judge_by(store: Store, settings: Settings) -> None:
    """As after a version: every second one is held out again, else twenty new ones would give five to judge by."""
    usual = settings.model_copy(update={"gate_min_items": 6, "holdout_first": 6})
    ada, things = Shop(store), ("bowl", "chair", "lamp", "vase", "bench", "mug", "rug", "tray")
    materials = "oak", "linen", "brass", "glass", "wool", "clay", "steel", "silk"
    for place, (material, thing) in enumerate(itertools.product(materials, things)):
        old = f"Meet the {material} {thing}: made slowly, sold honestly. #slowgoods"
        new = f"The {material} {thing} is delivered within five working days and carries a warranty of two years."
        ada.corrects(f"Write a caption for our {material} {thing}.", old if place < 44 else new)
        if place == 43:
            built(store, usual, turn=curate.SnapshotRequest(frozenset()))
    made = built(store, usual, turn=curate.SnapshotRequest(frozenset()))
    assert made.dropped["outdated"] >= 40
    assert 6 <= len(rows(made, "holdout.jsonl")) <= 10
