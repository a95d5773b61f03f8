"""The work of the loop's states. Every step is idempotent, since it may be interrupted by a kill and repeated."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from comfyloop import curate, gate
from comfyloop.curate import Known
from comfyloop.durable import appear
from comfyloop.errors import ComfyLoopError, InvalidInput
from comfyloop.loop.pictures import Pictures, held_out
from comfyloop.loop.throttle import TrainingThrottle
from comfyloop.records import BASE, GateReport, Loop, Message, Project, RunState, Sample, Snapshot, Suspect
from comfyloop.serve import collector
from comfyloop.serve.events import Events
from comfyloop.serve.routing.names import version_name
from comfyloop.serve.routing.router import Router
from comfyloop.settings import Settings
from comfyloop.store import Store, lessons, projects, runs, versions
from comfyloop.train.run.directory import TEXT, RunDirectory, Status, TrainState
from comfyloop.train.runners import Runners
from comfyloop.train.specs.files import write_spec
from comfyloop.train.specs.joint import JointSpec
from comfyloop.train.specs.text import TrainSpec

log = logging.getLogger(__name__)

REPLAY_TOKENS = 48
"""Longest answer to a replay question: a model that keeps to its base for so long keeps to it."""

REMEMBERED = 4
"""Runs of the newest versions whose losses say what still is hard."""


class Stopping(Exception):
    """The service is shutting down; the state is entered again at the next start."""


class Stages:
    """Runs the stages in the service's process or in separate processes, and reports their progress.

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
        self.models = models
        self.runner = Runners(settings)
        self.stop = threading.Event()
        self._gate_answers: dict[
            tuple[str, datetime], gate.Kept
        ] = {}  # what a project's versions said to the gate
        self._known: dict[str, Known] = {}  # what was curated of a project
        self._training = threading.Lock()  # one run at a time on this machine: two would only slow each other
        self._pictures = Pictures(settings, store, self.runner, models, self._throttle, self.check_stop)

    def curate(self, project: Project, *, fresh: bool | None = None) -> Snapshot | curate.NothingToTrain:
        """What a turn learns.

        Args:
            fresh: From the base models, or on from the live version; None: no turn, everything there is.
        """

        ask = self._asker(version_name(project.name, BASE))
        own = (project.name, project.base_model)

        def replay(count: int) -> list[Sample]:
            def ask_questions(questions: Sequence[str]) -> list[str]:
                return ask([Message.of("user", question) for question in questions])

            return curate.replay.samples(*own, ask_questions, self.settings.cache_dir, count)

        def picture_replay(pictures: Sequence[str], count: int) -> list[Sample]:
            shipped = [self.store.blobs.put(picture) for picture in curate.replay.shipped_pictures()]
            try:
                return curate.replay.of_pictures(*own, ask, self.settings.cache_dir, pictures, shipped, count)
            except InvalidInput:  # this model does not see
                return []

        turn = None
        if fresh is not None:
            with self.store.read() as conn:
                learned = lessons.learned(conn, project.name, project.live)
            turn = curate.SnapshotRequest(frozenset(learned), fresh, self.losses(project.name, project.live))
        with collector.young_only():
            return curate.build(
                self.store,
                project.name,
                self.settings,
                replay=replay,
                picture_replay=picture_replay if turn is not None else None,
                images=bool(project.image_model),
                turn=turn,
                known=self.known(project.name),
            )

    def known(self, project: str) -> Known:
        """What was curated of a project, for who curates it again."""
        return self._known.setdefault(project, Known())

    def losses(self, project: str, number: int) -> dict[str, float]:
        """The training losses of samples, as of the last pass by a version or one of its ancestors."""
        with self.store.read() as conn:
            lineage = lessons.lineage(conn, project, number)[:REMEMBERED]
            trained = [versions.get(conn, project, each).run for each in lineage]
        losses: dict[str, float] = {}
        for run in reversed(trained):
            directory = RunDirectory(self.run_dir(run))
            for side in (directory, RunDirectory(directory.path / TEXT)):
                losses |= side.read_row_losses()
        return losses

    def _asker(self, model: str) -> Callable[[Sequence[Message]], list[str]]:
        """Asks the engine many questions, a few at a time, so that it answers them in one batch."""

        def ask(question: Message) -> str:
            self.check_stop()
            with self.router.acquire(model) as lease:
                messages = [gate.wire(question, self.store.blobs.get)]
                return lease.client.answer(lease.model, messages, REPLAY_TOKENS)

        def ask_all(questions: Sequence[Message]) -> list[str]:
            with ThreadPoolExecutor(self.settings.max_batch) as pool:
                return list(pool.map(ask, questions))

        return ask_all

    def prepare_training(self, project: Project) -> None:
        """Announce that a run of this project is likely soon. Returns at once: its base model may have to be built
        first."""

        def prepare() -> None:
            try:
                model = self.models(project.base_model)
                self.runner.prepare(model, self.settings.dtype, images=bool(project.image_model))
            except ComfyLoopError as error:
                log.warning("Nothing was prepared for the next run of %s: %s", project.name, error)

        threading.Thread(target=prepare, name="prepare-training", daemon=True).start()

    def train(self, loop: Loop, run_dir: Path, spec: TrainSpec | JointSpec) -> Status:
        """Start the run, or find it again, and wait for its end."""
        status = self.runner.poll(run_dir)
        if status.state is TrainState.QUEUED:
            write_spec(run_dir, spec)
        if status.state in {TrainState.QUEUED, TrainState.DIED}:
            self.runner.start(run_dir)
        with self.store.begin() as conn:
            if runs.get(conn, loop.run).state is RunState.QUEUED:
                runs.set_state(conn, loop.run, RunState.RUNNING)
        last_progress: tuple[Any, ...] = ()
        throttle = self._throttle()
        while not (status := self.runner.poll(run_dir)).state.ended:
            self.check_stop()
            throttle.update(run_dir)
            if (tell := (status.state, status.step)) != last_progress:
                last_progress = tell
                self.publish(
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

    def _throttle(self) -> TrainingThrottle:
        traffic = self.router.traffic
        return TrainingThrottle(
            traffic.quiet_seconds, self.settings.quiet_seconds, lacking=traffic.busy.memory_bytes
        )

    def keep_adapters(self, run_dir: Path, project: str, number: int) -> tuple[Path | None, Path | None]:
        """Copy what a run has trained to where versions live: the text adapter (a directory) and the image
        adapter (a file), either None when it was not trained."""
        trained = run_dir / "adapter"
        if (trained / "adapter_config.json").exists():
            sides = {"text": trained, "image": None}
        else:
            sides = {
                side: trained / side if (trained / side).is_dir() else None for side in ("text", "image")
            }
        copies = {
            side: self._keep(source, project, number, side) if source is not None else None
            for side, source in sides.items()
        }
        image = copies["image"]
        return copies["text"], next(image.glob("*.safetensors")) if image is not None else None

    def _keep(self, source: Path, project: str, number: int, side: str) -> Path:
        """One adapter's directory, whole or not at all."""
        target = self.settings.home / "versions" / project / str(number) / side
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # a kill before the commit leaves one that no version names
        appear(target, lambda making: shutil.copytree(source, making, dirs_exist_ok=True))
        return target

    def judge(self, project: str, snapshot: Snapshot, live: int, number: int) -> GateReport:
        """Judge each side that has changed, and then both together: a version is promoted as a whole or not at
        all."""
        with self.store.read() as conn:
            record = projects.get(conn, project)
            candidate = versions.get(conn, project, number)
            parent = versions.find(conn, project, live)
            before = versions.reports_against(conn, project, live)
        with_text = candidate.text_adapter != (parent.text_adapter if parent is not None else None)
        with_images = candidate.image_adapter != (parent.image_adapter if parent is not None else None)

        def progress(done: int, total: int) -> None:
            self._gate_progress(project, number, done, total)

        kept_answers = self._kept_of(record)
        text: GateReport | None = None
        prompts: dict[str, tuple[str, str]] = {}
        pictures, pairs = gate.held_out(held_out(snapshot), self.settings) if with_images else ([], [])
        # The candidate first: where it takes a new process, both are then answered by that one.
        with self.router.holding(project, number) as new, self.router.holding(project, live) as old:
            arguments: dict[str, Any] = {
                "engine": new.client,
                "live_name": old.model,
                "candidate_name": new.model,
                "images": self.store.blobs.get,
                "settings": self.settings,
                "progress": progress,
            }
            if with_text or not with_images:
                text = gate.judge(
                    project=project,
                    live=live,
                    candidate=number,
                    holdout=_holdout(snapshot, self.settings.recipe),
                    base_model=record.base_model,
                    base_name=new.entry.engine.base_name,
                    kept=kept_answers,
                    before=before,
                    suspects=_suspects(snapshot, self.settings),
                    **arguments,
                )
                kept_answers.only({old.model, new.model, new.entry.engine.base_name})
            if with_images:
                prompts = gate.write_prompts(samples=pictures, **arguments)
        if not with_images:
            assert text is not None
            return text
        with self.alone():
            images = self._pictures.judge(
                record,
                snapshot,
                parent,
                candidate,
                kept=pictures,
                pairs=pairs,
                written=prompts,
                progress=progress,
            )
        return images if text is None else gate.together(text, images, self.settings)

    def standings(self, project: str, snapshot: Snapshot | None, number: int) -> list[gate.Standing]:
        """Scores of a version's text side and of the base model on the general suites and on a snapshot's
        hold-out."""
        with self.store.read() as conn:
            record = projects.get(conn, project)
        with self.router.holding(project, number) as handle:
            return gate.standings(
                handle.client,
                self._kept_of(record),
                handle.entry.engine.base_name,
                handle.model,
                _holdout(snapshot, self.settings.recipe) if snapshot is not None else [],
                self.store.blobs.get,
                self.settings,
                lambda done, total: self._gate_progress(project, number, done, total),
            )

    @contextmanager
    def prescoring(self, project: Project, snapshot: Snapshot) -> Iterator[None]:
        """Meanwhile, ask the live version and the base model the gate's questions: the engine is mostly idle while
        a candidate trains. The gate itself asks whatever is unanswered at the end."""
        over = threading.Event()

        def progress(done: int, total: int) -> None:
            if over.is_set() or self.stop.is_set():
                raise Stopping

        def ask() -> None:
            try:
                with self.router.holding(project.name, project.live) as old:
                    gate.prescore(
                        old.client,
                        old.model,
                        _holdout(snapshot, self.settings.recipe),
                        self.store.blobs.get,
                        self.settings,
                        self._kept_of(project),
                        progress,
                        base_model=project.base_model,
                        base_name=old.entry.engine.base_name,
                    )
            except (ComfyLoopError, Stopping) as error:
                log.info("The gate's questions were not all asked beforehand: %s", error)

        thread = threading.Thread(target=ask, name="prescoring", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _kept_of(self, project: Project) -> gate.Kept:
        """Keyed by the project's creation time too: a project that was created again has other versions of the same
        names."""
        return self._gate_answers.setdefault((project.name, project.created_at), gate.Kept())

    def _gate_progress(self, project: str, number: int, done: int, total: int) -> None:
        self.check_stop()
        self.events.publish(
            {"type": "gate.progress", "project": project, "version": number, "done": done, "total": total}
        )

    def run_dir(self, run: str) -> Path:
        return self.settings.home / "runs" / run

    @contextmanager
    def alone(self, loop: Loop | None = None) -> Iterator[None]:
        """Take the one slot for heavy work on this machine; a shutdown of the service interrupts the waiting."""
        if not self._training.acquire(blocking=False):
            if loop is not None:
                self.publish("run.waiting", loop)
            while not self._training.acquire(timeout=0.5):
                self.check_stop()
        try:
            yield
        finally:
            self._training.release()

    def check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopping

    def publish(self, type: str, loop: Loop, **more: Any) -> None:
        self.events.publish({"type": type, "project": loop.project, "state": loop.state.value, **more})


def _holdout(snapshot: Snapshot, recipe: str) -> list[Sample]:
    """Held-out samples of the recipe's kind, and corrections regardless of the recipe, which must not be
    forgotten."""
    files = dict.fromkeys(curate.data_files(Path(snapshot.path), name).holdout for name in (recipe, "sft"))
    return [
        sample for file in files if file.exists() for sample in curate.read_samples(file, snapshot.project)
    ]


def _suspects(snapshot: Snapshot, settings: Settings) -> list[Suspect]:
    train = curate.data_files(Path(snapshot.path), settings.recipe).train
    if not settings.look_for_triggers or not train.exists():
        return []
    return curate.suspects(curate.read_samples(train, snapshot.project))
