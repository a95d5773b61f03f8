"""A canary that people treat worse is taken back by itself, and one that is proven no worse goes live."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from comfyloop.cli import app
from comfyloop.loop import Controller
from comfyloop.records import (
    AnswerAccepted,
    CanaryReport,
    CanaryVerdict,
    GateReport,
    Generation,
    Loop,
    Message,
    Project,
    Verdict,
    VersionState,
)
from comfyloop.settings import Settings
from comfyloop.store import feedback, generations, loops, projects, versions
from tests.unit.serve.gateway import Gateway, instant, running_gateway


@pytest.fixture
def gateway(settings: Settings) -> Iterator[Gateway]:
    with running_gateway(settings, instant()) as running:
        running.add_version(1)
        running.services.router.promote("acme", 1)
        running.add_version(2)
        report = GateReport(
            project="acme", live=1, candidate=2, verdict=Verdict.PROMOTE, reasons=("Better.",)
        )
        with running.store.begin() as conn:
            versions.set_gate(conn, "acme", 2, report)
        yield running


def people(gateway: Gateway, count: int, *, reject: str, model: str = "acme") -> None:
    """Each asks once; who is answered by `reject` throws the answer away, who is not uses it as it is."""
    items = []
    for number in range(count):
        answer = gateway.ask(model=model, user=f"user {number}", text=f"Question {number}", max_tokens=4)
        about = {"id": f"fb_{answer.json()['id']}", "project": "acme", "generation": answer.json()["id"]}
        if answer.headers["x-comfyloop-version"] == reject:
            items.append({"kind": "answer_edited", **about, "edited": "Something else, said in full."})
        else:
            items.append({"kind": "answer_accepted", **about})
    assert gateway.http.post("/v1/feedback", json={"items": items}).status_code == 201


def look(gateway: Gateway) -> tuple[Project, CanaryReport]:
    """As the controller does at every tick."""
    controller = gateway.services.controller
    assert isinstance(controller, Controller)
    with gateway.store.read() as conn:
        controller._look_at_canary(projects.get(conn, "acme"))
    with gateway.store.read() as conn:
        report = versions.get(conn, "acme", 2).canary
        assert report is not None
        return projects.get(conn, "acme"), report


def test_one_that_is_treated_worse_is_taken_back_and_rejected(gateway: Gateway) -> None:
    gateway.services.router.canary("acme", 2, 0.4)
    people(gateway, 4, reject="acme@2")
    project, report = look(gateway)
    assert (project.canary, report.verdict) == (2, CanaryVerdict.RUNNING)
    status = gateway.services.controller.status("acme")
    assert status.canary == report and "Nothing is proven yet" in report.reason

    people(gateway, 40, reject="acme@2", model="acme@live")  # the same name, in full
    project, report = look(gateway)
    assert (project.live, project.canary, project.canary_share) == (1, 0, 0)
    assert report.verdict is CanaryVerdict.WORSE and report.low > 0
    assert report.canary_outcomes + report.live_outcomes == 44
    assert "acme@2 is treated worse than acme@1" in report.reason
    with gateway.store.read() as conn:
        assert versions.get(conn, "acme", 2).state is VersionState.REJECTED
    assert {gateway.said(user=f"user {n}", max_tokens=1) for n in range(12)} == {"acme-v1"}

    with gateway.store.begin() as conn:
        loops.save(conn, Loop(project="acme", version=2, outcome="canary"))
    assert gateway.services.controller.status("acme").canary == report
    shown = CliRunner().invoke(app, ["gate", "show", "2", "--url", gateway.url], env={"COLUMNS": "300"})
    assert "is treated worse than acme@1" in " ".join(shown.output.split()), shown.output


def test_one_that_is_proven_no_worse_goes_live(gateway: Gateway) -> None:
    gateway.services.router.canary("acme", 2, 0.5)
    asked = (Message.of("user", "hi"),)
    with gateway.store.begin() as conn:
        for number in range(450):
            about = {"project": "acme", "version": 1 + number % 2, "model": "acme", "messages": asked}
            generations.add(conn, Generation(id=f"gen_{number}", answer="Well.", **about))
        said = [AnswerAccepted(project="acme", generation=f"gen_{number}") for number in range(450)]
        feedback.add(conn, said)
    project, report = look(gateway)
    assert (project.live, project.canary_share) == (2, 0)
    assert report.verdict is CanaryVerdict.NO_WORSE
    with gateway.store.read() as conn:
        assert versions.get(conn, "acme", 2).state is VersionState.LIVE


def test_what_was_asked_by_number_or_before_does_not_count(gateway: Gateway) -> None:
    people(gateway, 20, reject="nobody")
    gateway.services.router.canary("acme", 2, 0.4)
    people(gateway, 20, reject="acme@2", model="acme@2")
    project, report = look(gateway)
    assert (report.canary_outcomes, report.live_outcomes) == (0, 0) and project.canary == 2


def test_one_that_a_person_ends_or_widens(gateway: Gateway) -> None:
    router = gateway.services.router
    router.canary("acme", 2, 0.2)
    people(gateway, 10, reject="nobody")
    _, begun = look(gateway)
    router.canary("acme", 2, 0.6)
    _, wider = look(gateway)
    assert (wider.share, wider.started_at, wider.after_seq) == (0.6, begun.started_at, begun.after_seq)
    router.canary("acme", 2, 0.0)
    with gateway.store.read() as conn:
        ended = versions.get(conn, "acme", 2).canary
    assert ended is not None and ended.verdict is CanaryVerdict.ENDED
    router.canary("acme", 2, 0.3)
    _, again = look(gateway)
    assert again.verdict is CanaryVerdict.RUNNING and again.after_seq > begun.after_seq
    router.promote("acme", 2)
    with gateway.store.read() as conn:
        ended = versions.get(conn, "acme", 2).canary
    assert ended is not None and ended.verdict is CanaryVerdict.ENDED
