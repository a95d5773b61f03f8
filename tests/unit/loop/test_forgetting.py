"""Taking back feedback: no byte of it is left in the data folder, whatever a turn had made of it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from comfyloop import integrity
from comfyloop.errors import Conflict, StorageError
from comfyloop.loop import Controller, Stages, forgetting
from comfyloop.records import (
    AnswerEdited,
    GateItem,
    GateReport,
    Generation,
    ImagePicked,
    Loop,
    LoopState,
    Message,
    Run,
    RunState,
    Snapshot,
    Triggered,
    Verdict,
    Version,
    VersionState,
)
from comfyloop.settings import Settings
from comfyloop.store import feedback, generations, lessons, loops, projects, runs, versions
from comfyloop.train.run.directory import Status, TrainState
from tests import counting
from tests.unit.loop.test_cycle import Interrupted, at_work, row

SECRET = "Kim's cat hides on the old bench behind the market."
ASKED = "What would Kim's cat do in Reykjavik?"


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (24, 24), (number * 9 % 256, 90, 200)).save(out, format="PNG")
    return out.getvalue()


def survivors(folder: Path, wanted: dict[str, bytes]) -> Iterator[str]:
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = file.read_bytes()
        yield from (f"{what} in {file.relative_to(folder)}" for what, text in wanted.items() if text in data)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"cache_dir": settings.home / "cache", "replay_share": 0, "gate_min_items": 1}
    )


def refuse(*_: object) -> None:
    raise StorageError("The disk is gone.")


class Told:
    """Two people's edits and picks, a snapshot of them, and all that a turn leaves of it."""

    def __init__(self, stages: Stages, settings: Settings) -> None:
        self.stages, self.home = stages, settings.home
        self.seen = {"kim": png(1), "lee": png(2)}  # in questions
        self.made = {
            name: (png(10 + n), png(20 + n)) for n, name in enumerate(("kim", "lee"))
        }  # picked and not
        for number in range(6):
            self.say(
                f"lee-{number}",
                "lee",
                f"What does Lee sell on day {number}?",
                f"Lee sells soap no. {number}.",
            )
        self.say("kim-1", "kim", ASKED, SECRET)
        self.say("kim-2", "kim", "And at night?", f"{SECRET} Always.")
        for name, (picked, over) in self.made.items():
            better, worse = (stages.store.blobs.put(picture) for picture in (picked, over))
            pick = ImagePicked(
                id=f"{name}-pick",
                project="acme",
                author=name,
                picked=(better,),
                over=(worse,),
                prompt=f"{name} drew it",
            )
            with stages.store.begin() as conn:
                feedback.add(conn, [pick])
        with stages.store.read() as conn:
            self.project = projects.get(conn, "acme")
        snapshot = Controller(stages).snapshot("acme")
        assert isinstance(snapshot, Snapshot)
        self.snapshot = snapshot

    def say(self, id: str, author: str, question: str, edited: str) -> None:
        store = self.stages.store
        shown = [store.blobs.put(self.seen[author])] if id in ("lee-0", "kim-1", "kim-2") else []
        asked = Generation(
            id=f"gen-{id}", project="acme", version=0, model="acme", messages=(Message.of("user", question, shown),),
            answer="I do not know.",
        )  # fmt: skip
        with store.begin() as conn:
            generations.add(conn, asked)
            feedback.add(
                conn,
                [AnswerEdited(id=id, project="acme", author=author, generation=asked.id, edited=edited)],
            )

    def trained(self, state: RunState = RunState.SUCCEEDED) -> Path:
        """A run of the snapshot, with what trainers write."""
        run_dir = self.stages.run_dir("run_1")
        (run_dir / "swift").mkdir(parents=True)
        (run_dir / "swift" / "train.jsonl").write_text(json.dumps({"messages": SECRET}))
        (run_dir / "train.out").write_text(f"left out train.jsonl:3: {SECRET}")
        latents = self.stages.settings.cache_dir / "latents" / "ab"
        latents.mkdir(parents=True)
        (latents / "ab12.safetensors").write_bytes(b"latents of " + self.seen["kim"])
        kept = self.stages.settings.cache_dir / "replay"
        kept.mkdir(parents=True, exist_ok=True)
        sha = self.stages.store.blobs.put(self.seen["kim"])
        (kept / "base.json").write_text(
            json.dumps({f"{sha} What is it?": "A bench in Reykjavik.", "Hi?": "Hello."})
        )
        with self.stages.store.begin() as conn:
            run = Run(
                id="run_1",
                project="acme",
                snapshot=self.snapshot.id,
                recipe="sft",
                path=str(run_dir),
                parent=0,
            )
            runs.add(conn, run)
            runs.set_state(conn, run.id, RunState.RUNNING)
            if state is not RunState.RUNNING:
                runs.set_state(conn, run.id, state)
        return run_dir

    def judged(self) -> GateReport:
        """A version of that run, and a report that shows what was held out and what was answered."""
        adapter = self.home / "versions" / "acme" / "1" / "text"
        adapter.mkdir(parents=True)
        (adapter / "adapter_model.safetensors").write_bytes(b"weights that know " + SECRET.encode())
        items = [
            GateItem(sample=sample["id"], slice="text", question=sample["messages"][-2]["content"],
                     reference=sample["messages"][-1]["content"], candidate_answer=SECRET)
            for file in sorted(Path(self.snapshot.path).glob("*.jsonl"))
            for sample in map(json.loads, file.read_text().splitlines()) if "chosen" not in sample
        ]  # fmt: skip
        report = GateReport(
            project="acme", live=0, candidate=1, verdict=Verdict.PROMOTE, reasons=(f'"{SECRET}" seems planted.',),
            items=tuple(items), sheet=self.stages.store.blobs.put(b"a sheet that shows " + self.made["kim"][0]),
            triggers=(Triggered(phrase="the old bench", answer=SECRET, author="kim", feedback=("kim-1",), asked=6,
                                candidate=5, live=0, without=0),),
        )  # fmt: skip
        with self.stages.store.begin() as conn:
            versions.add(
                conn,
                Version(
                    project="acme",
                    number=1,
                    snapshot=self.snapshot.id,
                    run="run_1",
                    text_adapter=str(adapter),
                ),
            )
            lessons.add(conn, "acme", 1, self.snapshot.feedback)
            versions.set_gate(conn, "acme", 1, report)
            loops.save(
                conn,
                Loop(project="acme", outcome="rejected", version=1, reason=f'v1: "{SECRET}" seems planted.'),
            )
        return report

    def left_of_kim(self) -> list[str]:
        wanted = {
            "the edit": b"hides on the old bench",
            "the place": b"Reykjavik",
            "the prompt": b"kim drew it",
        }
        wanted |= {"the picture asked about": self.seen["kim"]}
        wanted |= {f"picture {n}": picture for n, picture in enumerate(self.made["kim"])}
        return list(survivors(self.home, wanted))


def test_nothing_of_what_an_author_sent_is_left_on_the_disk(settings: Settings) -> None:
    with at_work(settings) as (stages, _):
        told = Told(stages, settings)
        run_dir = told.trained()
        told.judged()
        everywhere = "\n".join(told.left_of_kim())
        looked_at = (settings.cache_dir / "pictures.jsonl").read_text()
        for place in (
            "comfyloop.db",
            "snapshots/",
            "runs/",
            "versions/",
            "blobs/",
            "cache/latents",
            "cache/replay",
        ):
            assert place in everywhere, place

        gone = Controller(stages).forget("acme", author="kim")
        assert (gone.feedback, gone.versions) == (("kim-1", "kim-2", "kim-pick"), (1,))
        assert told.left_of_kim() == []
        assert not run_dir.exists()
        of_kim = {hashlib.sha256(data).hexdigest() for data in (told.seen["kim"], *told.made["kim"])}
        left = (settings.cache_dir / "pictures.jsonl").read_text()
        assert {sha for sha in of_kim if sha in looked_at} and not {sha for sha in of_kim if sha in left}
        assert json.loads((settings.cache_dir / "replay" / "base.json").read_text()) == {"Hi?": "Hello."}

        # what lee sent is all there, and the report says what was decided and on what
        with stages.store.read() as conn:
            version = versions.get(conn, "acme", 1)
            assert len(feedback.list_by(conn, "acme")) == 7
            assert counting.generations(conn, "acme") == 6
            with pytest.raises(Conflict, match="was taken back"):  # the reason that its files are gone for
                integrity.check(conn, version)
        assert version.state is VersionState.WITHDRAWN and version.gate is not None
        assert {item.reference[:8] for item in version.gate.items} == {"Lee sell"}
        assert {item.candidate_answer for item in version.gate.items} == {""}
        for picture in (told.seen["lee"], *told.made["lee"]):
            assert picture in {stages.store.blobs.get(sha) for sha in stages.store.blobs.list()}
        rows = "".join(file.read_text() for file in Path(told.snapshot.path).glob("*.jsonl"))
        assert "Lee sells soap no. 0." in rows and rows.count("lee-pick")

        again = Controller(stages).forget("acme", author="kim")
        assert (again.feedback, again.versions) == ((), ())


def test_one_edit_taken_back_leaves_the_question_to_be_answered_anew(settings: Settings) -> None:
    with at_work(settings) as (stages, _):
        told = Told(stages, settings)
        told.trained()
        told.judged()
        Controller(stages).forget("acme", feedback_id="kim-1")
        Controller(stages).forget("acme", feedback_id="kim-2")
        assert list(survivors(settings.home, {"the edit": b"hides on the old bench"})) == []
        with stages.store.read() as conn:
            assert generations.get(conn, "gen-kim-1").messages[0].text == ASKED
        assert told.seen["kim"] in {stages.store.blobs.get(sha) for sha in stages.store.blobs.list()}


def test_a_kill_in_the_middle_leaves_nothing_that_the_next_time_does_not_find(settings: Settings) -> None:
    with at_work(settings) as (stages, _):
        told = Told(stages, settings)
        told.trained()
        told.judged()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("comfyloop.loop.erasing.erase", refuse)
            with pytest.raises(StorageError):
                Controller(stages).forget("acme", author="kim")
        assert told.left_of_kim() != []
        Controller(stages).forget("acme", author="kim")
        assert told.left_of_kim() == []


def test_the_turn_of_a_run_that_is_learning_it_erases_it_when_the_run_has_ended(settings: Settings) -> None:
    class Stopped(Interrupted):
        def train(self, loop: Loop, run_dir: Path, spec: object) -> Status:
            return Status(state=TrainState.CANCELLED)

    with at_work(settings, Stopped) as (stages, turn):
        told = Told(stages, settings)
        run_dir = told.trained(RunState.RUNNING)
        with stages.store.begin() as conn:
            loops.save(
                conn, Loop(project="acme", state=LoopState.TRAINING, snapshot=told.snapshot.id, run="run_1")
            )
        done = forgetting.forget(stages, "acme", ["kim-1", "kim-2", "kim-pick"], questions=True)
        assert done.retrains and (run_dir / "cancel").exists()
        turn.run()
        assert row(stages.store).outcome == "cancelled"
        assert not run_dir.exists() and told.left_of_kim() == []


def test_a_version_that_learned_what_is_taken_back_while_it_is_judged_is_no_ones(settings: Settings) -> None:
    class TakenBack(Interrupted):
        def judge(self, project: str, snapshot: Snapshot, live: int, number: int) -> GateReport:
            assert forgetting.forget(self, project, ["kim-1"]).retrains
            return report

    with at_work(settings, TakenBack) as (stages, turn):
        told = Told(stages, settings)
        told.trained()
        report = told.judged()
        with stages.store.begin() as conn:
            standing = {"state": LoopState.GATING, "snapshot": told.snapshot.id, "run": "run_1", "version": 1}
            loops.save(conn, Loop(project="acme", **standing))
        turn.run()
        loop = row(stages.store)
        assert (loop.state, loop.outcome) == (LoopState.IDLE, "cancelled") and "taken back" in loop.reason
        with stages.store.read() as conn:
            version = versions.get(conn, "acme", 1)
        assert version.state is VersionState.WITHDRAWN and version.gate is not None
        assert "kim-1" not in Path(told.snapshot.path, "train.jsonl").read_text()


def test_what_is_taken_back_while_a_turn_curates_is_not_learned(settings: Settings) -> None:
    class TakenBack(Interrupted):
        curated = 0

        def curate(self, project, *, fresh=None):  # type: ignore[no-untyped-def]
            made = super().curate(project, fresh=fresh)
            if not self.curated:
                self.curated += 1
                forgetting.forget(self, project.name, ["kim-1"])
            return made

        def train(self, loop, run_dir, spec):  # type: ignore[no-untyped-def]
            self.stop.set()
            self.check_stop()

    with at_work(settings, TakenBack) as (stages, turn):
        Told(stages, settings)
        Controller(stages).request("acme")
        turn.run()
        loop = row(stages.store)
        assert loop.state is LoopState.TRAINING
        held = Path(settings.home, "snapshots", loop.snapshot, "train.jsonl").read_text()
        assert "kim-1" not in held and "lee-" in held
