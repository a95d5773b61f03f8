"""The controller: feedback -> snapshot -> run -> gate -> promotion, turn after turn, for each project.

This is the only place that knows the order of the stages. Where a turn stands is one row in the database, and
each transition is one transaction, made while holding the project's lease::

    idle -> curating -> training -> gating -> promoting -> idle

The work of a state may be done twice and gives the same: after a kill at any moment the next controller
enters the state again. A trainer outlives its controller and is found again through its run directory.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Connection

from comfyloop import curate, gate
from comfyloop.errors import (
    Busy,
    ComfyLoopError,
    Conflict,
    DataError,
    EngineUnavailable,
    InvalidInput,
    RunFailed,
)
from comfyloop.records import (
    BASE,
    GateReport,
    Loop,
    LoopState,
    Project,
    Run,
    RunState,
    Sample,
    Snapshot,
    Verdict,
    Version,
    VersionState,
    new_id,
    now,
)
from comfyloop.serve.events import Events
from comfyloop.serve.names import version_name
from comfyloop.serve.router import Router
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback, leases, loops, projects, runs, snapshots, versions
from comfyloop.train import runner
from comfyloop.train.spec import TrainSpec, write_spec
from comfyloop.train.status import Status, TrainState, fsync_directory

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
RETRY_SECONDS = 2.0
"""Pause before a state that failed is tried again."""
REPLAY_TOKENS = 96
"""Longest answer to a replay question."""


class LostTurn(Exception):
    """Another controller holds the project's lease now; whatever this one had under way is void."""


class Controller:
    """Runs the loops of all projects of one service, in threads of its own.

    Args:
        router: The way to the serving engine: the gate and the replay questions go through it.
        models: From a project's base model as it is set ("starter", a hub id) to what the trainer loads.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        router: Router,
        events: Events,
        models: Callable[[str], str] = str,
    ) -> None:
        self.settings = settings
        self.store = store
        self.router = router
        self.events = events
        self._models = models
        self._owner = _owner()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._turns: dict[str, threading.Thread] = {}
        self._training = threading.Lock()  # one run at a time on this machine: two would only slow each other
        self._thread = threading.Thread(target=self._watch, name="loop", daemon=True)

    # --- what the API and the CLI call; all return at once, but for `gate` and `snapshot`

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = 10.0) -> None:
        """Let go of everything. A run under way goes on by itself and is found again at the next start."""
        self._stop.set()
        self._wake.set()
        deadline = time.monotonic() + seconds
        for thread in [self._thread, *self._turns.values()]:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def status(self, project: str) -> Loop:
        with self.store.read() as conn:
            return loops.get(conn, project)

    def request(self, project: str) -> Loop:
        """Ask for a turn by hand; one that is under way is left alone and another follows it."""
        with self.store.begin() as conn:
            loop = loops.get(conn, project).model_copy(update={"requested": True, "updated_at": now()})
            loops.save(conn, loop)
        self._wake.set()
        return loop

    def cancel(self, project: str) -> Loop:
        """Stop the present run within a step; its last checkpoint stays.

        Raises:
            Conflict: No run is under way.
        """
        loop = self.status(project)
        if loop.state is not LoopState.TRAINING:
            raise Conflict(
                f"No run of {project!r} is under way: its loop is {loop.state}.",
                "There is nothing to cancel.",
            )
        runner.cancel(self._run_dir(loop.run))
        return loop

    def snapshot(self, project: str) -> Snapshot:
        """Curate now, without a run. Raises DataError when there is nothing to train on."""
        with self.store.read() as conn:
            found = projects.get(conn, project)
        snapshot = self._curate(found)
        if isinstance(snapshot, curate.NothingToTrain):
            raise DataError(snapshot.reason, "Correct or accept some answers first.")
        return snapshot

    def gate(self, project: str, number: int) -> GateReport:
        """Judge a version against the live one again, and keep the report with it."""
        with self.store.read() as conn:
            version = versions.get(conn, project, number)
            snapshot = snapshots.get(conn, project, version.snapshot)
            live = projects.get(conn, project).live
        if live == number:
            raise InvalidInput(f"{version_name(project, number)} is live: it would be compared with itself.")
        report = self._judge(project, snapshot, live, number)
        with self.store.begin() as conn:
            versions.set_gate(conn, project, number, report)
        return report

    # --- when a turn begins

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                with self.store.read() as conn:
                    found = [(p, loops.get(conn, p.name)) for p in projects.list_all(conn)]
                for project, loop in found:
                    turn = self._turns.get(project.name)
                    if (turn is None or not turn.is_alive()) and self._is_due(project, loop):
                        self._begin(project.name)
            except ComfyLoopError as error:
                log.error("The loop cannot read its state: %s", error)
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()

    def _is_due(self, project: Project, loop: Loop) -> bool:
        if loop.state is not LoopState.IDLE or loop.requested:
            return True
        if not project.auto:
            return False
        with self.store.read() as conn:
            if feedback.count_after(conn, project.name, loop.seen_seq) >= self.settings.trigger_samples:
                return True
            oldest = feedback.oldest_after(conn, project.name, loop.seen_seq)
        minutes = self.settings.trigger_minutes
        return bool(minutes) and oldest is not None and now() - oldest >= timedelta(minutes=minutes)

    def _begin(self, project: str) -> None:
        name = _lease(project)
        with self.store.begin() as conn:
            holder = leases.holder(conn, name)
            if holder is not None and _is_dead(holder[0]):
                leases.release(conn, name, holder[0])  # killed on this machine: no need to wait for its time
            if not leases.acquire(conn, name, self._owner, self.settings.lease_seconds):
                return
        thread = threading.Thread(target=self._turn, args=(project,), name=f"loop-{project}", daemon=True)
        self._turns[project] = thread
        thread.start()

    # --- one turn

    def _turn(self, project: str) -> None:
        keeper = _LeaseKeeper(self.store, _lease(project), self._owner, self.settings.lease_seconds)
        keeper.start()
        states = {
            LoopState.IDLE: self._from_idle,
            LoopState.CURATING: self._from_curating,
            LoopState.TRAINING: self._from_training,
            LoopState.GATING: self._from_gating,
            LoopState.PROMOTING: self._from_promoting,
        }
        try:
            while not self._stop.is_set():
                loop = self.status(project)
                try:
                    states[loop.state](loop)
                except (LostTurn, _Stopping):
                    return
                except (EngineUnavailable, Busy) as error:
                    # Not the state's fault, and no try of it: the engine comes back, or a person mends it.
                    self._waiting(loop, error)
                except Exception as error:
                    if not isinstance(error, ComfyLoopError):
                        log.exception("The loop of %s broke while %s", project, loop.state)
                    self._failed(loop, str(error) or type(error).__name__)
                    self._stop.wait(RETRY_SECONDS)
                if self.status(project).state is LoopState.IDLE:
                    return
        except LostTurn:
            return
        except ComfyLoopError as error:  # the store itself: the watcher begins again when it can be read
            log.error("The loop of %s stopped: %s", project, error)
        finally:
            keeper.stop()

    def _from_idle(self, loop: Loop) -> None:
        with self._transition(loop) as move:
            move(
                state=LoopState.CURATING,
                requested=False,
                outcome="",
                error="",
                snapshot="",
                run="",
                version=0,
            )

    def _from_curating(self, loop: Loop) -> None:
        with self.store.read() as conn:
            project = projects.get(conn, loop.project)
            seq = feedback.last_seq(conn, loop.project)
        snapshot = self._curate(project)
        if isinstance(snapshot, curate.NothingToTrain):
            with self._transition(loop) as move:
                move(outcome="nothing_to_train", error=snapshot.reason, seen_seq=seq)
            return
        run_id = new_id("run")
        run = Run(
            id=run_id,
            project=loop.project,
            snapshot=snapshot.id,
            recipe=self.settings.recipe,
            path=str(self._run_dir(run_id)),
            parent=project.live,
        )
        with self._transition(loop) as move:
            runs.add(move.conn, run)
            move(state=LoopState.TRAINING, snapshot=snapshot.id, run=run.id)

    def _from_training(self, loop: Loop) -> None:
        with self.store.read() as conn:
            run = runs.get(conn, loop.run)
            snapshot = snapshots.get(conn, loop.project, loop.snapshot)
            project = projects.get(conn, loop.project)
            parent = None if run.parent == BASE else versions.get(conn, loop.project, run.parent)
        run_dir = Path(run.path)
        data = curate.data_files(Path(snapshot.path), run.recipe)
        spec = TrainSpec.from_settings(
            self.settings,
            model=self._models(project.base_model),
            train=str(data.train),
            holdout=str(data.holdout) if data.holdout.exists() and data.holdout.stat().st_size else None,
            init_from=parent.text_adapter if parent is not None else None,
        )
        with self._alone(loop):
            status = self._train(loop, run_dir, spec)
        if status.state is TrainState.CANCELLED:
            with self._transition(loop) as move:
                runs.set_state(move.conn, run.id, RunState.CANCELLED)
                move(outcome="cancelled", seen_seq=snapshot.feedback_seq)
            return
        if status.state is not TrainState.SUCCEEDED:
            raise RunFailed(status.error or f"The run {run.id} ended as {status.state}.")
        with self._transition(loop) as move:
            number = versions.next_number(move.conn, loop.project)
            adapter = self._keep_adapter(run_dir, loop.project, number)
            runs.set_state(move.conn, run.id, RunState.SUCCEEDED)
            versions.add(
                move.conn,
                Version(
                    project=loop.project,
                    number=number,
                    parent=run.parent,
                    snapshot=snapshot.id,
                    run=run.id,
                    text_adapter=str(adapter),
                    image_adapter=parent.image_adapter if parent is not None else None,
                    sha256=_hash_of(adapter),
                ),
            )
            move(state=LoopState.GATING, version=number)

    def _from_gating(self, loop: Loop) -> None:
        with self.store.read() as conn:
            snapshot = snapshots.get(conn, loop.project, loop.snapshot)
            live = projects.get(conn, loop.project).live
        if live == loop.version:  # a person promoted it meanwhile
            with self._transition(loop) as move:
                move(outcome="promoted", seen_seq=snapshot.feedback_seq)
            return
        report = self._judge(loop.project, snapshot, live, loop.version)
        with self._transition(loop) as move:
            versions.set_gate(move.conn, loop.project, loop.version, report)
            if report.verdict is Verdict.PROMOTE and self.settings.auto_promote:
                move(state=LoopState.PROMOTING)
            elif report.verdict is Verdict.REJECT:
                versions.set_state(move.conn, loop.project, loop.version, VersionState.REJECTED)
                move(outcome="rejected", seen_seq=snapshot.feedback_seq)
            elif report.verdict is Verdict.PROMOTE:
                move(outcome="waiting", seen_seq=snapshot.feedback_seq)
            else:
                move(outcome="not_enough_evidence", seen_seq=snapshot.feedback_seq)
        self._publish(
            "gate.verdict",
            loop,
            version=loop.version,
            verdict=report.verdict.value,
            reasons=list(report.reasons),
        )

    def _from_promoting(self, loop: Loop) -> None:
        with self.store.read() as conn:
            snapshot = snapshots.get(conn, loop.project, loop.snapshot)

        def also(conn: Connection) -> None:
            self._hold(conn, loop.project)
            move = _Move(conn, loops.get(conn, loop.project))
            move(outcome="promoted", seen_seq=snapshot.feedback_seq)
            loops.save(conn, move.loop)

        promotion = self.router.promote(loop.project, loop.version, also=also)
        self._publish("loop.state", self.status(loop.project), seconds=dict(promotion.seconds))

    def _waiting(self, loop: Loop, error: ComfyLoopError) -> None:
        if loop.error != str(error):
            with self._transition(loop) as move:
                move(state=loop.state, attempts=loop.attempts, error=str(error))
        self._stop.wait(min(error.retry_after or RETRY_SECONDS, RETRY_SECONDS))

    def _failed(self, loop: Loop, error: str) -> None:
        """Try the state again a few times; then give the turn up, saying why."""
        attempts = loop.attempts + 1
        with self._transition(loop) as move:
            if attempts < self.settings.max_attempts and not self._is_final(loop):
                move(state=loop.state, attempts=attempts, error=error)
                return
            if loop.run and runs.get(move.conn, loop.run).state in {RunState.QUEUED, RunState.RUNNING}:
                runs.set_state(move.conn, loop.run, RunState.FAILED, error)
            # What led to this stays in the store and is learnt with the next turn; waiting for news keeps a
            # broken set-up from training in circles.
            move(outcome="failed", error=error, seen_seq=feedback.last_seq(move.conn, loop.project))

    def _is_final(self, loop: Loop) -> bool:
        """A trainer that said why it failed fails again; one that was killed goes on from its checkpoint."""
        return (
            loop.state is LoopState.TRAINING
            and runner.poll(self._run_dir(loop.run)).state is TrainState.FAILED
        )

    # --- the work of the states

    def _curate(self, project: Project) -> Snapshot | curate.NothingToTrain:
        def replay(count: int) -> list[Sample]:
            ask = self._asker(version_name(project.name, BASE))
            return curate.replay.samples(
                project.name, project.base_model, ask, self.settings.cache_dir, count
            )

        return curate.build(self.store, project.name, self.settings, replay=replay)

    def _asker(self, model: str) -> Callable[[Sequence[str]], list[str]]:
        """Asks the engine many questions, a few at a time, so that it answers them in one batch."""

        def ask(question: str) -> str:
            self._check_stop()
            with self.router.acquire(model) as lease:
                messages = [{"role": "user", "content": question}]
                return lease.place.engine.client.answer(lease.model, messages, REPLAY_TOKENS)

        def ask_all(questions: Sequence[str]) -> list[str]:
            with ThreadPoolExecutor(self.settings.max_batch) as pool:
                return list(pool.map(ask, questions))

        return ask_all

    def _train(self, loop: Loop, run_dir: Path, spec: TrainSpec) -> Status:
        """Start the run, or find it again, and wait for its end."""
        status = runner.poll(run_dir)
        if status.state is TrainState.QUEUED:
            write_spec(run_dir, spec)
        if status.state in {TrainState.QUEUED, TrainState.DIED}:
            runner.start(run_dir)
        with self.store.begin() as conn:
            if runs.get(conn, loop.run).state is RunState.QUEUED:
                runs.set_state(conn, loop.run, RunState.RUNNING)
        told: tuple[Any, ...] = ()
        while not (status := runner.poll(run_dir)).state.ended:
            self._check_stop()
            if (tell := (status.state, status.step)) != told:
                told = tell
                self._publish(
                    "run.progress",
                    loop,
                    run=loop.run,
                    run_state=status.state.value,
                    step=status.step,
                    total_steps=status.total_steps,
                    loss=status.loss,
                    eta_seconds=status.eta_seconds,
                )
            time.sleep(0.2)
        return status

    def _keep_adapter(self, run_dir: Path, project: str, number: int) -> Path:
        """Copy the run's adapter to where versions live, whole or not at all."""
        target = self.settings.home / "versions" / project / str(number) / "text"
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".text.{os.getpid()}")
        for left_over in (partial, target):  # a kill between copy and commit leaves one that no version names
            shutil.rmtree(left_over, ignore_errors=True)
        shutil.copytree(run_dir / "adapter", partial)
        for file in partial.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        partial.rename(target)
        fsync_directory(target.parent)
        return target

    def _judge(self, project: str, snapshot: Snapshot, live: int, number: int) -> GateReport:
        with self.store.read() as conn:
            base_model = projects.get(conn, project).base_model
        with self.router.holding(project, live) as old, self.router.holding(project, number) as new:
            return gate.judge(
                new.place.engine.client,
                project,
                live,
                number,
                live_name=old.model,
                candidate_name=new.model,
                holdout=_holdout(snapshot, self.settings.recipe),
                images=self.store.blobs.get,
                settings=self.settings,
                base_model=base_model,
                progress=lambda done, total: self._gate_progress(project, number, done, total),
            )

    def _gate_progress(self, project: str, number: int, done: int, total: int) -> None:
        self._check_stop()
        self.events.publish(
            {"type": "gate.progress", "project": project, "version": number, "done": done, "total": total}
        )

    def _run_dir(self, run: str) -> Path:
        return self.settings.home / "runs" / run

    # --- transitions

    @contextmanager
    def _transition(self, loop: Loop) -> Iterator[_Move]:
        """One transaction that moves the loop's row, open only to whoever holds the lease."""
        with self.store.begin() as conn:
            self._hold(conn, loop.project)
            # The row is read again: a person may have asked for another turn meanwhile.
            move = _Move(conn, loops.get(conn, loop.project))
            yield move
            loops.save(conn, move.loop)
        self._publish("loop.state", move.loop, outcome=move.loop.outcome, error=move.loop.error)

    def _hold(self, conn: Connection, project: str) -> None:
        """Raises LostTurn, which undoes the transaction, unless this controller still holds the lease."""
        if not leases.renew(conn, _lease(project), self._owner, self.settings.lease_seconds):
            raise LostTurn(project)

    @contextmanager
    def _alone(self, loop: Loop) -> Iterator[None]:
        """This machine's one place for a training run; the service's end interrupts the waiting."""
        if not self._training.acquire(blocking=False):
            self._publish("run.waiting", loop)
            while not self._training.acquire(timeout=0.5):
                self._check_stop()
        try:
            yield
        finally:
            self._training.release()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _Stopping

    def _publish(self, type: str, loop: Loop, **more: Any) -> None:
        self.events.publish({"type": type, "project": loop.project, "state": loop.state.value, **more})


class _Stopping(Exception):
    """The service is going down; the state is entered again at the next start."""


@dataclass
class _Move:
    """The loop's row inside a transition. Called without a state, it ends the turn."""

    conn: Connection
    loop: Loop

    def __call__(self, **changes: Any) -> None:
        fresh = {"state": LoopState.IDLE, "attempts": 0, "error": "", "updated_at": now()}
        self.loop = self.loop.model_copy(update={**fresh, **changes})


class _LeaseKeeper:
    """Renews a lease while its holder is busy, so that only a dead controller loses its turn."""

    def __init__(self, store: Store, name: str, owner: str, seconds: float) -> None:
        self._store, self._name, self._owner, self._seconds = store, name, owner, seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        try:
            with self._store.begin() as conn:
                leases.release(conn, self._name, self._owner)
        except ComfyLoopError as error:
            log.warning("The lease %s could not be given back and runs out by itself: %s", self._name, error)

    def _keep(self) -> None:
        while not self._done.wait(self._seconds / 3):
            try:
                with self._store.begin() as conn:
                    if not leases.renew(conn, self._name, self._owner, self._seconds):
                        return
            except ComfyLoopError as error:
                log.warning("The lease %s was not renewed: %s", self._name, error)


def _holdout(snapshot: Snapshot, recipe: str) -> list[Sample]:
    file = curate.data_files(Path(snapshot.path), recipe).holdout
    return curate.read_samples(file, snapshot.project) if file.exists() else []


def _hash_of(adapter: Path) -> str:
    """SHA-256 over the names and contents of an adapter's files."""
    digest = hashlib.sha256()
    for file in sorted(path for path in adapter.rglob("*") if path.is_file()):
        digest.update(file.relative_to(adapter).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _lease(project: str) -> str:
    return f"loop:{project}"


def _owner() -> str:
    """Names this process so that a later one on the same machine can tell whether it is still alive."""
    return f"{socket.gethostname()}/{os.getpid()}/{psutil.Process().create_time():.2f}/{new_id('c')[-8:]}"


def _is_dead(owner: str) -> bool:
    """Whether a lease's owner was a process of this machine that is gone. Of others nothing can be said."""
    host, pid, started, _ = owner.rsplit("/", 3)
    if host != socket.gethostname():
        return False
    try:
        return bool(abs(psutil.Process(int(pid)).create_time() - float(started)) > 1.0)
    except psutil.NoSuchProcess:
        return True
