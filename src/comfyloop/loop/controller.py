"""The controller: watches all projects and begins a turn of a project's loop when one is due."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from comfyloop import __version__, curate
from comfyloop.errors import ComfyLoopError, Conflict, DataError, InvalidInput, NotFound
from comfyloop.loop import forgetting, retention, sharing
from comfyloop.loop.canary import Canaries
from comfyloop.loop.cycle import LoopCycle
from comfyloop.loop.lease import LeaseKeeper, is_dead, lease_of, this_process
from comfyloop.loop.queues import Queues
from comfyloop.loop.stages import Stages
from comfyloop.records import (
    Flag,
    Forgotten,
    GateReport,
    Loop,
    LoopState,
    LoopStatus,
    Project,
    Pruned,
    QueueItem,
    Snapshot,
    Verdict,
    Version,
    VersionState,
    now,
)
from comfyloop.registry.archive import ArchivePiece
from comfyloop.registry.bundle import Imported
from comfyloop.registry.contents import BundleOptions
from comfyloop.registry.manifest import Manifest, SuiteScores
from comfyloop.serve.routing.names import version_name
from comfyloop.store import feedback, leases, loops, projects, snapshots, versions
from comfyloop.train import runners

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
_TOO_LITTLE = {"not_enough_feedback", "nothing_to_train"}
"""Ends of a turn after which a little more may be enough."""


class Controller:
    """Runs the loops of all projects of one service, in its own threads.

    Args:
        work: How the stages are called; its settings, store and events are this one's too.
    """

    def __init__(self, stages: Stages) -> None:
        self.settings = stages.settings
        self.store = stages.store
        self.events = stages.events
        self._stages = stages
        self._owner = this_process()
        self._wake = threading.Event()
        self._turns: dict[str, threading.Thread] = {}
        self._canaries = Canaries(stages)
        self._queues = Queues(stages)
        self._prepared: dict[str, int] = {}  # project -> the feedback seen when its next run was prepared
        self._thread = threading.Thread(target=self._watch, name="loop", daemon=True)

    # --- what the API and the CLI call; all return at once, but for `gate` and `snapshot`

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = 10.0) -> None:
        """Stop all threads. A run in progress continues by itself and is found again at the next start."""
        self._stages.stop.set()
        self._wake.set()
        deadline = time.monotonic() + seconds
        for thread in [self._thread, *self._turns.values()]:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._stages.runner.close()

    def status(self, project: str) -> LoopStatus:
        with self.store.read() as conn:
            loop = loops.get(conn, project)
            waiting = loop.held_over + feedback.count_after(conn, project, loop.seen_seq)
            record = projects.get(conn, project)
            # the one that is tried now, or what came of the last turn's
            number = record.canary if record.canary_share else loop.version if loop.outcome == "canary" else 0
            canary = versions.get(conn, project, number).canary if number else None
        trigger = self.settings.trigger_samples
        return LoopStatus(**loop.model_dump(), waiting=waiting, trigger=trigger, canary=canary)

    def request(self, project: str, *, consolidate: bool = False) -> Loop:
        """Request a turn by hand. A turn in progress is not disturbed; another one follows it.

        Args:
            consolidate: It starts from the base models and learns everything.
        """
        with self.store.begin() as conn:
            loop = loops.get(conn, project)
            # Asked for twice, once as a consolidation: that is what is done.
            wanted = {"requested": True, "consolidate": consolidate or loop.consolidate, "updated_at": now()}
            loop = loop.model_copy(update=wanted)
            loops.save(conn, loop)
        self._wake.set()
        return loop

    def forget(
        self,
        project: str,
        *,
        author: str | None = None,
        feedback_id: str | None = None,
        sample: str | None = None,
    ) -> Forgotten:
        """Take back what an author sent, one piece of feedback, or what one sample was made of; see `forgetting`.

        Raises:
            NotFound: There is no such project or sample.
        """
        with self.store.read() as conn:
            projects.get(conn, project)
            ids = feedback.ids_of_author(conn, project, author) if author is not None else []
        ids += [feedback_id] if feedback_id is not None else []
        ids += forgetting.of_sample(self.store, project, sample) if sample is not None else []
        outcome = forgetting.forget(self._stages, project, ids, questions=author is not None)
        if outcome.retrains:
            self.request(project)
        return outcome

    def forget_rows(self, project: str, ids: Sequence[str]) -> Forgotten:
        """Take back the rows of a data set, which can be added again afterwards."""
        outcome = forgetting.forget(self._stages, project, ids, remember=False)
        if outcome.retrains:
            self.request(project)
        return outcome

    def prune(self, *, dry_run: bool = False) -> Pruned:
        """Remove what is beyond the settings `keep_versions` and `keep_runs`; see `retention`."""
        return retention.prune(self.store, self.settings, dry_run=dry_run)

    def cancel(self, project: str) -> Loop:
        """Stop the current run within one step; its last checkpoint stays. A turn that was only requested is not
        started.

        Raises:
            Conflict: No run is under way.
        """
        with self.store.begin() as conn:
            loop = loops.get(conn, project)
            was_requested = loop.state is LoopState.IDLE and loop.requested
            if was_requested:
                back = {"requested": False, "consolidate": False, "updated_at": now()}
                loops.save(conn, loop.model_copy(update=back))
        if not was_requested:
            if loop.state is not LoopState.TRAINING:
                soon = loop.state is LoopState.CURATING
                raise Conflict(
                    f"No run of {project!r} is under way: its loop is {loop.state}.",
                    "Its run is about to begin: cancel it then." if soon else "There is nothing to cancel.",
                )
            runners.cancel(self._stages.run_dir(loop.run))
        return self.status(project)

    def snapshot(self, project: str) -> Snapshot:
        """Curate now, without a run. Raises DataError when there is nothing to train on."""
        with self.store.read() as conn:
            record = projects.get(conn, project)
        snapshot = self._stages.curate(record)
        if isinstance(snapshot, curate.NothingToTrain):
            raise DataError(snapshot.reason, "Correct or accept some answers first.")
        return snapshot

    def queue(self, project: str) -> Sequence[QueueItem]:
        """The review queue, most doubtful items first. Blocks while it is computed."""
        return self._queues.of(project)

    def flags(self, project: str) -> list[Flag]:
        """The open questions about a project's feedback. Blocks while they are computed."""
        return curate.flags(self.store, project, self.settings, self._stages.known(project))

    def gate(self, project: str, number: int) -> GateReport:
        """Judge a version against the live one again, and store the report with it."""
        with self.store.read() as conn:
            version = versions.get(conn, project, number)
            live = projects.get(conn, project).live
        if live == number:
            raise InvalidInput(f"{version_name(project, number)} is live: it would be compared with itself.")
        snapshot = self._to_judge_by(version)
        report = self._stages.judge(project, snapshot, live, number)
        with self.store.begin() as conn:
            versions.set_gate(conn, project, number, report)
            if version.origin is not None and version.promoted_at is None:  # no turn of ours does this for it
                rejected = report.verdict is Verdict.REJECT
                state = VersionState.REJECTED if rejected else VersionState.CANDIDATE
                versions.set_state(conn, project, number, state)
        return report

    def _to_judge_by(self, version: Version) -> Snapshot:
        """The snapshot that a version was trained from; for an imported version, this project's newest snapshot."""
        with self.store.read() as conn:
            if version.origin is None:
                return snapshots.get(conn, version.project, version.snapshot)
            newest = snapshots.list_by(conn, version.project, limit=1)
        return newest[0] if newest else self.snapshot(version.project)

    # --- sharing

    def gather(self, project: str, number: int, wanted: BundleOptions) -> tuple[Manifest, list[ArchivePiece]]:
        """What a bundle of a version would hold; see `sharing`."""
        return sharing.gather(self._stages, project, number, wanted)

    def export(self, project: str, number: int, wanted: BundleOptions) -> Path:
        """A bundle of a version, in a file that the caller removes."""
        return sharing.export(self._stages, project, number, wanted)

    def evaluate(self, project: str, number: int) -> list[SuiteScores]:
        """How a version stands beside its base model, for its card.

        Raises:
            InvalidInput: It has no text side.
        """
        with self.store.read() as conn:
            version = versions.get(conn, project, number)
        if not version.text_adapter:
            raise InvalidInput(
                f"{version_name(project, number)} has no text side, and the suites are questions.",
                "Evaluate a version with one.",
            )
        snapshot = None
        with suppress(NotFound, DataError):  # nothing is held out for it: the general suites are left
            snapshot = self._to_judge_by(version)
        return [
            SuiteScores(
                suite=one.suite,
                version=f"ComfyLoop {__version__}",
                items=one.items,
                base=one.base,
                this=one.this,
            )
            for one in self._stages.standings(project, snapshot, number)
        ]

    def adopt(self, project: str, file: Path, *, trust_new_key: bool = False) -> Imported:
        """Take a bundle in as a new candidate."""
        return sharing.adopt(self._stages, project, file, trust_new_key=trust_new_key)

    # --- when a turn begins

    def _watch(self) -> None:
        while not self._stages.stop.is_set():
            try:
                with self.store.read() as conn:
                    project_loops = [(p, loops.get(conn, p.name)) for p in projects.list_all(conn)]
                for project, loop in project_loops:
                    self._look_at_canary(project)
                    turn = self._turns.get(project.name)
                    if turn is not None and turn.is_alive():
                        continue
                    if self._is_due(project, loop):
                        self._begin(project.name)
                    elif self._prepared.get(project.name) != loop.seen_seq and self._is_near(project, loop):
                        self._prepared[project.name] = loop.seen_seq
                        self._stages.prepare_training(project)
            except ComfyLoopError as error:
                log.error("The loop cannot read its state: %s", error)
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()

    def _look_at_canary(self, project: Project) -> None:
        """Errors are logged and retried at the next check: they must not prevent turns from starting."""
        try:
            self._canaries.look(project)
        except ComfyLoopError as error:
            log.warning("The canary of %s was not looked at: %s", project.name, error)

    def _is_due(self, project: Project, loop: Loop) -> bool:
        if loop.state is not LoopState.IDLE or loop.requested:
            return True
        if not project.auto:
            return False
        trigger = self.settings.trigger_samples
        with self.store.read() as conn:
            waiting = loop.held_over + feedback.count_after(conn, project.name, loop.seen_seq)
            # What was looked at in vain is looked at again only when more has come.
            unseen = feedback.count_after(conn, project.name, max(loop.seen_seq, loop.looked_seq))
            oldest = feedback.oldest_after(conn, project.name, max(loop.seen_seq, loop.looked_seq))
        more = math.ceil(trigger / 4) if loop.outcome in _TOO_LITTLE else trigger
        if waiting >= trigger and unseen >= (more if loop.looked_seq > loop.seen_seq else 1):
            return True
        minutes = self.settings.trigger_minutes
        return bool(minutes) and oldest is not None and now() - oldest >= timedelta(minutes=minutes)

    def _is_near(self, project: Project, loop: Loop) -> bool:
        """Whether half of the feedback that triggers a run has arrived, so that the trainer can warm up."""
        with self.store.read() as conn:
            fresh = loop.held_over + feedback.count_after(conn, project.name, loop.seen_seq)
        return project.auto and 2 * fresh >= self.settings.trigger_samples

    def _begin(self, project: str) -> None:
        name = lease_of(project)
        with self.store.begin() as conn:
            before = leases.run_out(conn, name)
            lost = before is not None and not is_dead(before)  # its holder lives, and was silent for too long
            holder = leases.holder(conn, name)
            if holder is not None and is_dead(holder[0]):
                leases.release(conn, name, holder[0])  # killed on this machine: no need to wait for its time
            if not leases.acquire(conn, name, self._owner, self.settings.lease_seconds):
                return
        thread = threading.Thread(
            target=self._take_turn, args=(project, lost), name=f"loop-{project}", daemon=True
        )
        self._turns[project] = thread
        thread.start()

    def _take_turn(self, project: str, lost: bool) -> None:
        keeper = LeaseKeeper(self.store, lease_of(project), self._owner, self.settings.lease_seconds)
        keeper.start()
        try:
            LoopCycle(self._stages, project, self._owner).run(lost=lost)
        except ComfyLoopError as error:  # the store itself: the watcher begins again when it can be read
            log.error("The loop of %s stopped: %s", project, error)
        finally:
            keeper.stop()
