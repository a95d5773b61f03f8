"""Judges the image side of a version in a separate process, which a restarted controller finds again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from comfyloop import curate, gate
from comfyloop.comfyui.drawing import ComfyUI
from comfyloop.durable import appear
from comfyloop.errors import EngineUnavailable, RunFailed
from comfyloop.gate import Progress
from comfyloop.loop.plan import image_spec
from comfyloop.loop.throttle import TrainingThrottle
from comfyloop.records import BASE, GateReport, ImagePicked, Project, Sample, Snapshot, Version
from comfyloop.serve.routing.names import version_name
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback
from comfyloop.train.run.directory import TrainState
from comfyloop.train.runners import Runners
from comfyloop.train.specs.files import SPEC_FILE, write_spec
from comfyloop.train.specs.judge import (
    SEEN_FILE,
    SHEET_FILE,
    JudgeFindings,
    JudgeSpec,
    picture_file,
    seed_of,
)

COMFYUI = "What was drawn is by your ComfyUI, with the workflow of your last picks."
DIFFUSERS = "What was drawn is by diffusers."


def held_out(snapshot: Snapshot) -> list[Sample]:
    """Kept pictures and pairs that no version was trained on, oldest first."""
    files = [curate.data_files(Path(snapshot.path), recipe).holdout for recipe in ("image_sft", "image_dpo")]
    return [
        sample for file in files if file.exists() for sample in curate.read_samples(file, snapshot.project)
    ]


class _Compared(NamedTuple):
    findings: JudgeFindings
    sheet: str | None = None  # a blob
    sentences: tuple[str, ...] = ()  # sentences on who drew and who looked


class Pictures:
    """Compares the image sides of two versions on held-out pictures and pairs.

    Args:
        runner: Starts the process that does it and looks after it; one at a time on a machine.
        courtesy: Makes it wait while a person waits for this machine.
        check_stop: Raises when the service goes down; the comparison goes on by itself.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        runner: Runners,
        models: Callable[[str], str],
        throttle: Callable[[], TrainingThrottle],
        check_stop: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._runner = runner
        self._models = models
        self._throttle = throttle
        self._check_stop = check_stop

    def judge(
        self,
        project: Project,
        snapshot: Snapshot,
        live: Version | None,
        candidate: Version,
        *,
        kept: Sequence[Sample],
        pairs: Sequence[Sample],
        written: Mapping[str, tuple[str, str]],
        progress: Progress,
    ) -> GateReport:
        """The report on the image side.

        Args:
            live: None is the base model.
            kept, pairs: What is held out, as `gate.held_out` chose it.
            written: What both versions' text sides wrote for the briefs of held-out pictures, by a sample's id.

        Raises:
            RunFailed: The pictures could not be compared; says why.
        """
        started = time.monotonic()
        samples = [*kept, *pairs]
        comparison = _Compared(JudgeFindings(scores={}))
        place = self._place(project, live, candidate)
        if samples and project.image_model:
            if self._runner.poll(place).state is TrainState.QUEUED:
                spec = self._spec(project, snapshot, live, candidate, written, kept, pairs)
                changes = {"pictures": None, "drawn_by": DIFFUSERS}
                if self._settings.comfyui_url and spec.drawn:
                    changes = self._draw_in_comfyui(place / "comfyui", project, live, candidate, spec, kept)
                write_spec(place, spec.model_copy(update=changes))
            self._wait_for(place, progress)
            comparison = self._comparison(place)
        findings = comparison.findings
        decision = gate.decide_images(gate.evidence(samples, findings.scores), self._settings)
        report = GateReport(
            project=project.name,
            live=live.number if live is not None else BASE,
            candidate=candidate.number,
            verdict=decision.verdict,
            reasons=(*decision.reasons, *comparison.sentences),
            next_step=decision.next_step.replace("promote N", f"promote {candidate.number}"),
            measures=decision.measures,
            items=tuple(gate.gate_items(samples, findings.scores, written)),
            sheet=comparison.sheet,
            seconds=round(time.monotonic() - started, 3),
        )
        shutil.rmtree(place, ignore_errors=True)
        return report

    def _comparison(self, place: Path) -> _Compared:
        """The result of a comparison; its contact sheet is stored permanently."""
        findings = JudgeFindings.model_validate_json((place / SEEN_FILE).read_bytes())
        if not (place / SHEET_FILE).exists():
            return _Compared(findings)
        spec = JudgeSpec.model_validate_json((place / SPEC_FILE).read_bytes())
        sheet = self._store.blobs.put((place / SHEET_FILE).read_bytes(), "image/png")
        sentence = f"How near drawings come is said by {findings.by}." if findings.by else ""
        return _Compared(findings, sheet, tuple(filter(None, (spec.drawn_by, sentence, findings.taste))))

    def _place(self, project: Project, live: Version | None, candidate: Version) -> Path:
        against = str(live.number if live is not None else BASE)
        # the hash tells versions of a project that was made anew apart
        name = "-".join(filter(None, [candidate.adapter_name, against, candidate.sha256[:8]]))
        return self._settings.home / "gates" / name

    def _spec(
        self,
        project: Project,
        snapshot: Snapshot,
        live: Version | None,
        candidate: Version,
        written: Mapping[str, tuple[str, str]],
        kept: Sequence[Sample],
        pairs: Sequence[Sample],
    ) -> JudgeSpec:
        settings, folder = self._settings, Path(snapshot.path)
        of_kept, of_pairs = (curate.data_files(folder, name) for name in ("image_sft", "image_dpo"))
        return JudgeSpec(
            image=image_spec(settings, project, of_kept.train, self._models),
            live=live.image_adapter if live is not None else None,
            candidate=candidate.image_adapter,
            kept=str(of_kept.holdout) if kept else None,
            pairs=str(of_pairs.holdout) if pairs else None,
            taste=str(of_pairs.train) if of_pairs.train.exists() else None,
            chosen=tuple(sample.id for sample in (*kept, *pairs)),
            written={sample.id: written[sample.id] for sample in kept if sample.id in written},
            drawn=tuple(sample.id for sample in gate.to_draw(kept, settings)),
            steps=settings.gate_draw_steps,
            clip=settings.gate_clip or None,
            viewer=None if settings.gate_clip else self._models(project.base_model),
        )

    def _draw_in_comfyui(
        self,
        folder: Path,
        project: Project,
        live: Version | None,
        candidate: Version,
        spec: JudgeSpec,
        pictures: Sequence[Sample],
    ) -> dict[str, str | None]:
        """Have both versions' prompts drawn with the person's own workflow; returns the spec's fields about it.

        If any drawing fails, none is used: drawings made in two different ways must not be compared.
        """
        workflow = self._workflow(project.name)
        if not workflow:
            why = f"{DIFFUSERS[:-1]}: no pick came with its workflow. Turn on Capture edits in ComfyUI's sidebar."
            return {"drawn_by": why}
        own = {sample.id: sample.answer for sample in pictures}
        names = (version_name(project.name, v.number if v is not None else BASE) for v in (live, candidate))

        def draw(making: Path) -> None:
            with ComfyUI(
                self._settings.comfyui_url, self._settings.comfyui_seconds, self._check_stop
            ) as comfyui:
                for side, name in enumerate(names):
                    for id in spec.drawn:
                        words = (spec.image.about.trigger_words, spec.prompts(id, own[id])[side])
                        prompt = ", ".join(filter(None, words))
                        place = picture_file(making, side, id)
                        place.parent.mkdir(exist_ok=True)
                        place.write_bytes(comfyui.draw(workflow, prompt, seed_of(id), name))

        try:
            if not folder.exists():
                appear(folder, draw)
        except (EngineUnavailable, RunFailed) as error:
            return {"drawn_by": f"{DIFFUSERS[:-1]}, since ComfyUI could not: {error}"}
        return {"pictures": folder.name, "drawn_by": COMFYUI}

    def _workflow(self, project: str) -> dict[str, Any]:
        """The workflow of the newest pick that has one."""
        with self._store.read() as conn:
            picks = feedback.newest(conn, project, kind="image_picked")
        workflows = (item.workflow for _, item in picks if isinstance(item, ImagePicked) and item.workflow)
        return next(workflows, {})

    def _wait_for(self, place: Path, progress: Progress) -> None:
        """Start the comparison, or find it again, and wait for its end."""
        if self._runner.poll(place).state in {TrainState.QUEUED, TrainState.DIED}:
            self._runner.start(place)
        last_progress, throttle = (0, 0), self._throttle()
        while not (status := self._runner.poll(place)).state.ended:
            self._check_stop()
            throttle.update(place)
            if (tell := (status.step, status.total_steps)) != last_progress:
                last_progress = tell
                progress(*tell)
            time.sleep(0.2)
        if status.state is not TrainState.SUCCEEDED:
            if status.state is not TrainState.DIED:  # that one goes on where it was
                shutil.rmtree(place, ignore_errors=True)
            raise RunFailed(f"The pictures of the two versions could not be compared. {status.error}")
