"""Monitors canaries: evaluates how people treat their answers whenever feedback arrives, and acts on the result."""

from __future__ import annotations

from sqlalchemy import Connection

from comfyloop import gate
from comfyloop.loop.stages import Stages
from comfyloop.records import (
    AnswerAccepted,
    AnswerEdited,
    AnswerRated,
    CanaryReport,
    CanaryVerdict,
    Feedback,
    Generation,
    Project,
    PromptEdited,
    VersionState,
    now,
)
from comfyloop.serve.routing.names import ModelName, version_name
from comfyloop.store import Store, feedback, generations, versions

KINDS = ("answer_edited", "answer_accepted", "answer_rated", "prompt_edited")
_PAGE = 1000


class Canaries:
    """The canaries of all projects of one service. Called from one thread."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._looked: dict[str, int] = {}  # project -> the newest feedback that was looked at

    def look(self, project: Project) -> None:
        """Compare again if feedback has arrived; end a canary that is proven worse, and promote one that is proven
        not worse.

        Raises:
            ComfyLoopError: The store, or the engine, refuses; nothing has changed.
        """
        if not project.canary_share:
            self._looked.pop(project.name, None)
            return
        with self._stages.store.read() as conn:
            last = feedback.last_seq(conn, project.name)
            report = versions.get(conn, project.name, project.canary).canary
        if (
            report is None
            or report.verdict is not CanaryVerdict.RUNNING
            or self._looked.get(project.name) == last
        ):
            return
        report = seen(self._stages.store, project, report, self._stages.settings.canary_level)
        self._act(report)
        self._looked[project.name] = last

    def _act(self, report: CanaryReport) -> None:
        router, name, number = self._stages.router, report.project, report.version

        def keep(conn: Connection) -> None:
            versions.set_canary_report(conn, report)

        def keep_and_reject(conn: Connection) -> None:
            keep(conn)
            if versions.get(conn, name, number).state is VersionState.CANDIDATE:
                versions.set_state(conn, name, number, VersionState.REJECTED)

        if report.verdict is CanaryVerdict.WORSE:
            router.canary(name, number, 0.0, also=keep_and_reject)
        elif report.verdict is CanaryVerdict.NO_WORSE and self._stages.settings.auto_promote:
            router.promote(name, number, also=keep)
        else:
            with self._stages.store.begin() as conn:
                keep(conn)
        if report.verdict is not CanaryVerdict.RUNNING:
            self._stages.events.publish(
                {
                    "type": "canary.verdict",
                    "project": name,
                    "version": number,
                    "verdict": report.verdict.value,
                    "reason": report.reason,
                }
            )


def seen(store: Store, project: Project, report: CanaryReport, level: float) -> CanaryReport:
    """The report, updated with all feedback since the canary began."""
    comparison = gate.compared(_outcomes(store, project, report), level)
    updated = report.model_copy(
        update={
            "verdict": comparison.verdict,
            "canary_outcomes": comparison.canary,
            "live_outcomes": comparison.live,
            "canary_loss": round(comparison.canary_loss, 4),
            "live_loss": round(comparison.live_loss, 4),
            "low": round(comparison.low, 2),
            "high": round(comparison.high, 2),
            "level": level,
            "updated_at": now(),
        }
    )
    return updated.model_copy(update={"reason": _reason(updated)})


def _reason(report: CanaryReport) -> str:
    canary, live = (version_name(report.project, number) for number in (report.version, report.live))
    counts = (
        f"{report.canary_outcomes} of its answers lost {report.canary_loss:.0%} to edits and ratings, "
        f"{report.live_outcomes} of {live} {report.live_loss:.0%}"
    )
    if report.verdict is CanaryVerdict.WORSE:
        return f"{canary} is treated worse than {live}: {counts}. It answers no more."
    if report.verdict is CanaryVerdict.NO_WORSE:
        return f"{canary} is treated no worse than {live}: {counts}."
    return f"{canary} is compared with {live}: {counts}. Nothing is proven yet."


def _outcomes(store: Store, project: Project, report: CanaryReport) -> list[gate.Outcome]:
    """How answers of both versions were treated, ordered by the first feedback on each answer; of each answer the
    latest feedback counts. Requests that named a version by its number were not assigned at random and do not
    count."""
    last: dict[str, Feedback] = {}
    seq = report.after_seq
    with store.read() as conn:
        while page := feedback.list_by(conn, project.name, after_seq=seq, limit=_PAGE):
            for _, item in page:
                about = getattr(item, "generation", None)
                if item.kind in KINDS and about is not None:
                    earlier = last.get(about)
                    if earlier is None or earlier.created_at <= item.created_at:
                        last[about] = item
            seq = page[-1][0]
        generation_of = generations.get_many(conn, list(last))
    sides = {report.version: True, report.live: False}
    outcomes = []
    for id, item in last.items():
        generation = generation_of.get(id)
        if generation is None or generation.version not in sides or generation.created_at < report.started_at:
            continue
        if ModelName.parse(generation.model).which == "live":
            outcomes.append(gate.Outcome(sides[generation.version], _loss(item, generation)))
    return outcomes


def _loss(item: Feedback, generation: Generation) -> float:
    match item:
        case AnswerEdited():
            return gate.edit_distance(generation.answer.strip(), item.edited.strip())
        case PromptEdited():
            return gate.edit_distance(generation.answer.strip(), item.after.strip())
        case AnswerRated():
            return (5 - item.rating) / 4
        case AnswerAccepted():
            return 0.0
    raise TypeError(f"{item.kind} says nothing about an answer")
