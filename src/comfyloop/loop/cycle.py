"""One turn of a project's loop. This is the only place that knows the order of the stages.

The state of a turn is one row in the database, and each transition is one transaction, made while holding the
project's lease::

    idle -> curating -> training -> gating -> promoting -> idle

The work of each state is idempotent: after a kill at any moment the next controller enters the state again. A
trainer outlives its controller and is found again through its run directory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from comfyloop import curate, gate
from comfyloop.errors import ComfyLoopError, EngineUnavailable, QueueFull, RunFailed
from comfyloop.integrity import hash_of
from comfyloop.loop import erasing
from comfyloop.loop.lease import lease_of
from comfyloop.loop.plan import spec_of
from comfyloop.loop.stages import Stages, Stopping
from comfyloop.records import (
    BASE,
    GateReport,
    Loop,
    LoopState,
    Project,
    Run,
    RunState,
    Snapshot,
    Verdict,
    Version,
    VersionState,
    new_id,
    now,
)
from comfyloop.serve.routing.names import version_name
from comfyloop.store import feedback, flags, leases, lessons, loops, projects, runs, snapshots, versions
from comfyloop.train.run.directory import TrainState

log = logging.getLogger(__name__)

_TRIED = 50  # newest versions among which one may have been trained on the same

RETRY_SECONDS = 2.0
"""Pause before a state that failed is tried again."""


class LeaseLost(Exception):
    """Another controller holds the project's lease now; uncommitted work of this one is void."""


class LoopCycle:
    """Takes a project's loop from its current state to idle.

    Args:
        owner: Who holds the project's lease: without it no transition is made.
    """

    def __init__(self, stages: Stages, project: str, owner: str) -> None:
        self.stages = stages
        self.settings = stages.settings
        self.store = stages.store
        self.project = project
        self.owner = owner

    def run(self, *, lost: bool = False) -> None:
        """Returns when the turn has ended, was lost to another controller, or the service shuts down.

        Args:
            lost: The controller before this one let its lease run out.

        Raises:
            ComfyLoopError: the store itself cannot be used.
        """
        if lost and self._now().state is not LoopState.IDLE:
            self._was_lost()
            if self._now().state is LoopState.IDLE:
                return
        while not self.stages.stop.is_set():
            try:
                self._enter(self._now())
            except Stopping:
                return
            except LeaseLost:
                if self._is_free():  # else whoever holds it now counts the try
                    self._was_lost()
                return
            if self._now().state is LoopState.IDLE:
                return

    def _is_free(self) -> bool:
        """Re-acquire an expired lease; whether nobody else has taken it."""
        with self.store.begin() as conn:
            return leases.acquire(conn, lease_of(self.project), self.owner, self.settings.lease_seconds)

    def _was_lost(self) -> None:
        """Count the loss of the lease as an attempt of the state: whatever blocked this process will do so
        again."""
        loop = self._now()
        self._failed(
            loop,
            f"The service gave no sign for {self.settings.lease_seconds:g} seconds while {loop.state}, so its turn "
            "was lost; something in what is waiting, or on this machine, holds it up.",
        )

    def _enter(self, loop: Loop) -> None:
        """Do the work of the turn's current state, and move to the next one."""
        states = {
            LoopState.IDLE: self._from_idle,
            LoopState.CURATING: self._from_curating,
            LoopState.TRAINING: self._from_training,
            LoopState.GATING: self._from_gating,
            LoopState.PROMOTING: self._from_promoting,
        }
        try:
            if not self._was_taken_back(loop):
                states[loop.state](loop)
        except (LeaseLost, Stopping):
            raise
        except (EngineUnavailable, QueueFull) as error:
            # Not the state's fault, and no try of it: the engine comes back, or a person mends it.
            self._waiting(loop, error)
        except Exception as error:
            if not isinstance(error, ComfyLoopError):
                log.exception("The loop of %s broke while %s", self.project, loop.state)
            self._failed(loop, str(error) or type(error).__name__)
            self.stages.stop.wait(RETRY_SECONDS)

    def _was_taken_back(self, loop: Loop) -> bool:
        """Whether the turn's version has learned from feedback that was taken back meanwhile, which ends the
        turn."""
        if loop.state not in (LoopState.GATING, LoopState.PROMOTING):
            return False
        with self.store.read() as conn:
            version = versions.get(conn, loop.project, loop.version)
        if version.state is not VersionState.WITHDRAWN:
            return False
        reason = f"{version_name(loop.project, loop.version)} learned from feedback that was taken back."
        with self._transition(loop) as move:
            move(outcome="cancelled", reason=reason)
        erasing.erase(self.stages, loop.project)
        return True

    def _now(self) -> Loop:
        with self.store.read() as conn:
            return loops.get(conn, self.project)

    # --- the states

    def _from_idle(self, loop: Loop) -> None:
        with self._transition(loop) as move:
            move(
                state=LoopState.CURATING,
                requested=False,
                by_hand=move.loop.requested,
                consolidate=False,  # from here on it is asked of the turn after this one
                consolidating=move.loop.consolidate,
                outcome="",
                reason="",
                note="",
                error="",
                snapshot="",
                run="",
                version=0,
            )

    def _from_curating(self, loop: Loop) -> None:
        with self.store.read() as conn:
            project = projects.get(conn, loop.project)
            seq = feedback.last_seq(conn, loop.project)
            fresh = self._starts_afresh(conn, loop, project)
            recent_versions = versions.list_by(conn, loop.project, limit=_TRIED)
        self.stages.prepare_training(project)
        snapshot = self.stages.curate(project, fresh=fresh)
        if isinstance(snapshot, curate.NothingToTrain):
            changes = {"seen_seq": seq, "held_over": 0} if snapshot.outcome == "nothing_new" else {}
            note = " ".join(snapshot.report.notes)
            self._rest(loop, snapshot.outcome, snapshot.reason, looked_seq=seq, note=note, **changes)
            return
        same = [
            v
            for v in recent_versions
            if v.snapshot == snapshot.id and v.parent == project.live and v.fresh == fresh
        ]
        if same and not loop.by_hand:
            reason = f"{version_name(loop.project, same[0].number)} has learned just this already."
            note, changes = " ".join(snapshot.notes), {"seen_seq": seq, "held_over": snapshot.waiting}
            self._rest(loop, "nothing_new", reason, looked_seq=seq, note=note, **changes)
            return
        if erasing.taken_back(self.stages, snapshot):  # while it was made: it is made again
            erasing.of_snapshot(self.stages, snapshot)
            return
        run_id = new_id("run")
        run = Run(
            id=run_id,
            project=loop.project,
            snapshot=snapshot.id,
            recipe=self.settings.recipe,
            path=str(self.stages.run_dir(run_id)),
            parent=project.live,
            fresh=fresh,
        )
        with self._transition(loop) as move:
            runs.add(move.conn, run)
            note = " ".join(snapshot.notes)
            move(state=LoopState.TRAINING, snapshot=snapshot.id, run=run.id, note=note)

    def _starts_afresh(self, conn: Connection, loop: Loop, project: Project) -> bool:
        """Whether the turn starts from the base models and learns everything: because it was requested, is due
        after that many promotions, or because continuing from the live version has just failed."""
        if project.live == BASE:
            return False  # there is nothing to go on from: all is new
        if loop.consolidating or not self.settings.warm_start:
            return True
        newest = versions.list_by(conn, loop.project, limit=1)[0]
        if newest.state is VersionState.REJECTED and newest.parent == project.live and not newest.fresh:
            return True
        every = self.settings.consolidate_every
        return bool(every) and len(lessons.lineage(conn, loop.project, project.live)) >= every

    def _rest(self, loop: Loop, outcome: str, reason: str, **more: Any) -> None:
        """End a turn that trained nothing; its feedback is considered again when more arrives."""
        with self._transition(loop) as move:
            move(outcome=outcome, reason=reason, **more)

    def _from_training(self, loop: Loop) -> None:
        with self.store.read() as conn:
            run = runs.get(conn, loop.run)
            snapshot = snapshots.get(conn, loop.project, loop.snapshot)
            project = projects.get(conn, loop.project)
            parent = None if run.parent == BASE else versions.get(conn, loop.project, run.parent)
        run_dir = Path(run.path)
        spec = spec_of(self.settings, project, snapshot, run, parent, self.stages.models)
        with self.stages.alone(loop), self.stages.prescoring(project, snapshot):
            status = self.stages.train(loop, run_dir, spec)
        taken_back = erasing.taken_back(self.stages, snapshot)
        if status.state is TrainState.CANCELLED or taken_back.intersection(snapshot.feedback):
            with self._transition(loop) as move:
                runs.set_state(move.conn, run.id, RunState.CANCELLED)
                # its feedback is given back: it waits, with what comes, for the next turn
                again = move.loop.requested or status.state is not TrainState.CANCELLED
                last = feedback.last_seq(move.conn, loop.project)
                move(outcome="cancelled", looked_seq=last, requested=again)
            erasing.of_snapshot(self.stages, snapshot)
            return
        if status.state is not TrainState.SUCCEEDED:
            raise RunFailed(status.error or f"The run {run.id} ended as {status.state}.")
        with self._transition(loop) as move:
            number = versions.next_number(move.conn, loop.project)
            text, image = self.stages.keep_adapters(run_dir, loop.project, number)
            new = [path for path in (text, image) if path is not None]
            previous = parent or Version(project=loop.project, number=number)
            runs.set_state(move.conn, run.id, RunState.SUCCEEDED)
            versions.add(
                move.conn,
                Version(
                    project=loop.project,
                    number=number,
                    parent=run.parent,
                    snapshot=snapshot.id,
                    run=run.id,
                    # what was not trained is the parent's
                    text_adapter=str(text) if text else previous.text_adapter,
                    image_adapter=str(image) if image else previous.image_adapter,
                    sha256=hash_of(*new),
                    fresh=run.fresh,
                ),
            )
            lessons.add(move.conn, loop.project, number, snapshot.feedback)
            move(state=LoopState.GATING, version=number)

    def _from_gating(self, loop: Loop) -> None:
        with self.store.read() as conn:
            snapshot = snapshots.get(conn, loop.project, loop.snapshot)
            live = projects.get(conn, loop.project).live
        if live == loop.version:  # a person promoted it meanwhile
            with self._transition(loop) as move:
                move(outcome="promoted", **_seen(snapshot))
            return
        report = self.stages.judge(loop.project, snapshot, live, loop.version)
        with self._transition(loop) as move:
            if versions.get(move.conn, loop.project, loop.version).state is VersionState.WITHDRAWN:
                move(state=LoopState.GATING)  # which ends the turn
                return
            versions.set_gate(move.conn, loop.project, loop.version, report)
            self._set_aside(move, report)
            changes = {**_seen(snapshot), "reason": gate.summary(report)}
            if report.verdict is Verdict.PROMOTE and self.settings.auto_promote:
                move(state=LoopState.PROMOTING)
            elif report.verdict is Verdict.REJECT:
                versions.set_state(move.conn, loop.project, loop.version, VersionState.REJECTED)
                move(outcome="rejected", **changes)
            elif report.verdict is Verdict.PROMOTE:
                move(outcome="waiting", **changes)
            else:
                move(outcome=report.verdict.value, **changes)
        erasing.of_snapshot(self.stages, snapshot)  # what was taken back while it was judged
        self.stages.publish(
            "gate.verdict",
            loop,
            version=loop.version,
            verdict=report.verdict.value,
            reasons=list(report.reasons),
            next_step=report.next_step,
        )

    def _set_aside(self, move: _Move, report: GateReport) -> None:
        """Exclude what the gate found to be planted, and request a turn that learns the rest."""
        if not report.triggers:
            return
        new_flags = [
            curate.flag_of(
                report.project,
                trigger.phrase,
                trigger.author,
                trigger.answer,
                trigger.feedback,
                seen=f"v{report.candidate} gave it to {trigger.candidate} of {trigger.asked} other questions with that "
                f"phrase behind them, the live version to {trigger.live}",
            )
            for trigger in report.triggers
        ]
        flags.add(move.conn, report.project, new_flags)
        move.loop = move.loop.model_copy(update={"requested": True})

    def _from_promoting(self, loop: Loop) -> None:
        with self.store.read() as conn:
            snapshot = snapshots.get(conn, loop.project, loop.snapshot)

        def also(conn: Connection) -> None:
            self._hold(conn)
            move = _Move(conn, loops.get(conn, loop.project))
            move(outcome="canary" if share else "promoted", **_seen(snapshot))
            loops.save(conn, move.loop)

        router, share = self.stages.router, self.settings.canary_share
        promotion = (
            router.canary(loop.project, loop.version, share, also=also)
            if share
            else router.promote(loop.project, loop.version, also=also)
        )
        self.stages.publish("loop.state", self._now(), seconds=dict(promotion.seconds))

    def _waiting(self, loop: Loop, error: ComfyLoopError) -> None:
        if loop.error != str(error):
            with self._transition(loop) as move:
                move(state=loop.state, attempts=loop.attempts, error=str(error))
        self.stages.stop.wait(min(error.retry_after or RETRY_SECONDS, RETRY_SECONDS))

    def _failed(self, loop: Loop, error: str) -> None:
        """Retry the state a few times; then give up the turn, recording the reason."""
        attempts = loop.attempts + 1
        with self._transition(loop) as move:
            if attempts < self.settings.max_attempts and not self._is_final(loop):
                move(state=loop.state, attempts=attempts, error=error)
                return
            if loop.run and runs.get(move.conn, loop.run).state.is_open:
                runs.set_state(move.conn, loop.run, RunState.FAILED, error)
            # What led to this waits for the next turn; that one waits for news, which keeps a broken set-up from
            # training in circles.
            last = feedback.last_seq(move.conn, loop.project)
            move(outcome="failed", error=error, looked_seq=last)

    def _is_final(self, loop: Loop) -> bool:
        """Whether retrying is pointless: a trainer that reported an error would fail again, one that was killed
        resumes from its checkpoint."""
        return (
            loop.state is LoopState.TRAINING
            and self.stages.runner.poll(self.stages.run_dir(loop.run)).state is TrainState.FAILED
        )

    # --- transitions

    @contextmanager
    def _transition(self, loop: Loop) -> Iterator[_Move]:
        """One transaction that changes the loop's row; only the holder of the lease can open it."""
        with self.store.begin() as conn:
            self._hold(conn)
            # The row is read again: a person may have asked for another turn meanwhile.
            move = _Move(conn, loops.get(conn, loop.project))
            yield move
            loops.save(conn, move.loop)
        self.stages.publish("loop.state", move.loop, outcome=move.loop.outcome, error=move.loop.error)

    def _hold(self, conn: Connection) -> None:
        """Raises LeaseLost, which undoes the transaction, unless this controller still holds the lease."""
        if not leases.renew(conn, lease_of(self.project), self.owner, self.settings.lease_seconds):
            raise LeaseLost(self.project)


def _seen(snapshot: Snapshot) -> dict[str, Any]:
    """The feedback that the turn has consumed, and how much of it is left for the next one."""
    return {"seen_seq": snapshot.feedback_seq, "held_over": snapshot.waiting}


@dataclass
class _Move:
    """The loop's row inside a transition. Called without a state, it ends the turn."""

    conn: Connection
    loop: Loop

    def __call__(self, **changes: Any) -> None:
        fresh = {"state": LoopState.IDLE, "attempts": 0, "error": "", "updated_at": now()}
        self.loop = self.loop.model_copy(update={**fresh, **changes})
