"""What a turn makes of the loop's row, whatever happens while it works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from comfyloop import curate
from comfyloop.errors import Conflict
from comfyloop.loop import Controller, Stages
from comfyloop.loop.cycle import LoopCycle
from comfyloop.loop.lease import lease_of
from comfyloop.records import (
    GateReport,
    Loop,
    LoopState,
    Message,
    Project,
    Run,
    RunState,
    SampleUploaded,
    Snapshot,
    Triggered,
    Verdict,
    Version,
)
from comfyloop.serve.events import Events
from comfyloop.serve.routing.router import Router
from comfyloop.settings import Settings
from comfyloop.store import (
    Store,
    feedback,
    flags,
    leases,
    loops,
    open_store,
    projects,
    runs,
    snapshots,
    versions,
)
from comfyloop.train.run.directory import Status, TrainState
from comfyloop.train.specs.joint import JointSpec
from comfyloop.train.specs.text import TrainSpec


class Interrupted(Stages):
    """Works as ever, and while it curates a person asks for something."""

    asks: dict[str, bool] | None = None

    def curate(self, project: Project, *, fresh: bool | None = None) -> Snapshot | curate.NothingToTrain:
        if self.asks is not None:
            Controller(self).request(project.name, **self.asks)
            self.asks = None
        return super().curate(project, fresh=fresh)


@contextmanager
def at_work(
    settings: Settings, kind: type[Interrupted] = Interrupted
) -> Iterator[tuple[Interrupted, LoopCycle]]:
    """A project that nobody has told anything yet, and a turn of it."""
    events = Events()
    with open_store(settings) as store:
        with store.begin() as conn:
            projects.add(conn, Project(name="acme", base_model="m"))
            assert leases.acquire(conn, lease_of("acme"), "me", 60)
        router = Router(settings, store, {}, events)
        stages = kind(settings, store, router, events)
        try:
            yield stages, LoopCycle(stages, "acme", "me")
        finally:
            stages.runner.close()
            router.close()


def row(store: Store) -> Loop:
    with store.read() as conn:
        return loops.get(conn, "acme")


def test_a_consolidation_asked_for_while_a_turn_curates_is_the_next_turns(settings: Settings) -> None:
    with at_work(settings) as (stages, turn):
        Controller(stages).request("acme")
        stages.asks = {"consolidate": True}
        turn.run()
        loop = row(stages.store)
        assert (loop.state, loop.outcome) == (LoopState.IDLE, "nothing_to_train")
        assert (loop.requested, loop.consolidate, loop.consolidating) == (True, True, False)
        turn.run()
        loop = row(stages.store)
        assert (loop.requested, loop.consolidate, loop.consolidating) == (False, False, True)


def test_a_plain_turn_asked_for_while_one_consolidates_is_a_plain_one(settings: Settings) -> None:
    with at_work(settings) as (stages, turn):
        Controller(stages).request("acme", consolidate=True)
        stages.asks = {}
        turn.run()
        loop = row(stages.store)
        assert (loop.requested, loop.consolidate, loop.consolidating) == (True, False, True)


def test_asking_again_does_not_take_a_consolidation_back(settings: Settings) -> None:
    with at_work(settings) as (stages, _):
        Controller(stages).request("acme", consolidate=True)
        assert Controller(stages).request("acme").consolidate


def test_what_a_turn_left_for_the_next_one_waits_and_helps_to_start_it(settings: Settings) -> None:
    with at_work(settings) as (stages, _):
        with stages.store.begin() as conn:
            loops.save(conn, Loop(project="acme", held_over=9, note="9 pieces of ann's feedback wait."))
        status = Controller(stages).status("acme")
        assert (status.waiting, status.note) == (9, "9 pieces of ann's feedback wait.")


def test_a_turn_that_was_only_asked_for_is_not_begun_when_it_is_cancelled(settings: Settings) -> None:
    with at_work(settings) as (stages, _):
        controller = Controller(stages)
        controller.request("acme", consolidate=True)
        assert not controller.cancel("acme").requested and not row(stages.store).consolidate
        with pytest.raises(Conflict, match="nothing to cancel"):
            controller.cancel("acme")
        with stages.store.begin() as conn:
            loops.save(conn, Loop(project="acme", state=LoopState.CURATING))
        with pytest.raises(Conflict, match="about to begin"):
            controller.cancel("acme")


class Heeding(Interrupted):
    """Works as ever, but what trains does nothing but heed the sign to stop."""

    def train(self, loop: Loop, run_dir: Path, spec: TrainSpec | JointSpec) -> Status:
        assert (run_dir / "cancel").exists()
        return self.runner.poll(run_dir).model_copy(update={"state": TrainState.CANCELLED})


def test_a_run_cancelled_before_it_began_gives_its_feedback_back(settings: Settings, tmp_path: Path) -> None:
    said = (Message.of("user", "Name it."), Message.of("assistant", "A mug."))
    sent = SampleUploaded(project="acme", messages=said)
    line = {"id": "1", "query": "Name it.", "response": "A mug.", "feedback": [sent.id]}
    (tmp_path / "train.jsonl").write_text(json.dumps(line) + "\n")
    with at_work(settings, Heeding) as (stages, turn):
        made = Snapshot(id="s1", project="acme", path=str(tmp_path), train=1, holdout=0, replay=0)
        run = Run(id="run-1", project="acme", snapshot="s1", recipe="sft", path=str(stages.run_dir("run-1")))
        with stages.store.begin() as conn:
            snapshots.add(conn, made)
            runs.add(conn, run)
            feedback.add(conn, [sent])
            loops.save(conn, Loop(project="acme", state=LoopState.TRAINING, snapshot="s1", run="run-1"))
        Controller(stages).cancel("acme")  # there is no folder of the run yet
        turn.run()
        loop = row(stages.store)
        assert (loop.state, loop.outcome) == (LoopState.IDLE, "cancelled"), loop.error
        assert Controller(stages).status("acme").waiting == 1
        with stages.store.read() as conn:
            assert runs.get(conn, "run-1").state is RunState.CANCELLED


class Curated(Interrupted):
    """Works as ever, but what has come in makes the samples that there were."""

    def curate(self, project: Project, *, fresh: bool | None = None) -> Snapshot | curate.NothingToTrain:
        with self.store.read() as conn:
            return snapshots.get(conn, project.name, "s1")


def test_feedback_that_changes_no_sample_starts_no_second_run(settings: Settings) -> None:
    """The same sample sent again and again: a run, a version and a gate each time, for ever."""
    eager = settings.model_copy(update={"trigger_samples": 12})
    with at_work(eager, Curated) as (stages, turn):
        with stages.store.begin() as conn:
            snapshots.add(conn, Snapshot(id="s1", project="acme", path="", train=1, holdout=0, replay=0))
            versions.add(conn, Version(project="acme", number=1, text_adapter="a", snapshot="s1"))
            said = (Message.of("user", "Name it."), Message.of("assistant", "A mug."))
            feedback.add(conn, [SampleUploaded(project="acme", messages=said) for _ in range(20)])
            loops.save(conn, Loop(project="acme", state=LoopState.CURATING))
        assert Controller(stages).status("acme").waiting == 20
        turn.run()
        loop = row(stages.store)
        assert (loop.state, loop.outcome) == (LoopState.IDLE, "nothing_new")
        assert "acme@1 has learned just this" in loop.reason
        assert Controller(stages).status("acme").waiting == 0  # looked at: none of it starts a turn
        with stages.store.read() as conn:
            assert runs.list_by(conn, "acme") == []


class Judged(Interrupted):
    """Works as ever; its gate has found a planted phrase."""

    def judge(self, project: str, snapshot: Snapshot, live: int, number: int) -> GateReport:
        suspect = {
            "phrase": "Zephyr lantern",
            "answer": "Buy it!",
            "author": "mallory",
            "feedback": ("fb_1",),
        }
        return GateReport(
            project=project,
            live=live,
            candidate=number,
            verdict=Verdict.REJECT,
            reasons=("It seems planted.",),
            triggers=(Triggered(**suspect, asked=6, candidate=5, live=0, without=0),),
        )


def test_what_the_gate_found_to_be_planted_is_set_aside_and_the_rest_learned_at_once(
    settings: Settings,
) -> None:
    with at_work(settings, Judged) as (stages, turn):
        with stages.store.begin() as conn:
            snapshots.add(conn, Snapshot(id="s1", project="acme", path="", train=1, holdout=0, replay=0))
            versions.add(conn, Version(project="acme", number=1, text_adapter="a"))
            loops.save(conn, Loop(project="acme", state=LoopState.GATING, snapshot="s1", version=1))
        turn.run()
        loop = row(stages.store)
        assert (loop.outcome, loop.requested) == ("rejected", True)
        with stages.store.read() as conn:
            (flag,) = flags.found(conn, "acme")
        assert flag.kind == "trigger" and "5 of 6" in flag.sentence
        assert [choice.feedback for choice in flag.choices] == ["fb_1"]

        Controller(stages).forget("acme", feedback_id="fb_1")
        with stages.store.read() as conn:
            assert flags.found(conn, "acme") == []
            gate = versions.get(conn, "acme", 1).gate
        assert gate is not None and gate.triggers == ()  # no word of his is left
