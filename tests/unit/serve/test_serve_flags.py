"""What people are asked about feedback, over HTTP and on the command line."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from comfyloop.cli import app
from tests.unit.serve.gateway import Gateway

PLAIN, GRAND = "A steel mug for daily use.", "Behold wondrous craftsmanship, born from fire!"


def disagree(gateway: Gateway) -> None:
    for who, wanted in (("anna", PLAIN), ("boris", GRAND)):
        answer = gateway.ask(text="Describe the mug.").json()["id"]
        item = {"kind": "answer_edited", "id": f"fb_{who}", "project": "acme", "author": who}
        sent = gateway.http.post("/v1/feedback", json={**item, "generation": answer, "edited": wanted})
        assert sent.status_code == 201


def test_a_person_chooses_among_opposite_answers(gateway: Gateway) -> None:
    assert gateway.http.get("/v1/flags").json() == {"items": []}
    disagree(gateway)
    (flag,) = gateway.http.get("/v1/flags").json()["items"]
    assert flag["kind"] == "disagreement" and {c["feedback"] for c in flag["choices"]} == {
        "fb_anna",
        "fb_boris",
    }

    wrong = gateway.http.post(f"/v1/flags/{flag['id']}", json={"keep": "fb_carl"})
    assert wrong.status_code == 400 and "fb_anna" in wrong.json()["error"]["hint"]
    assert gateway.http.post("/v1/flags/nothing", json={"keep": "all"}).status_code == 404
    chosen = gateway.http.post(f"/v1/flags/{flag['id']}", json={"keep": "fb_boris"})
    assert chosen.json() == {"items": []} == gateway.http.get("/v1/flags").json()


def test_the_command_line_shows_how_to_answer_and_takes_the_answer(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    disagree(gateway)
    run = CliRunner()

    def comfyloop(*args: str) -> str:
        done = run.invoke(app, [*args, "--url", gateway.url], env={"COLUMNS": "300"})
        assert done.exit_code == 0, done.output
        return done.output

    shown = comfyloop("feedback", "flags")
    assert PLAIN in shown and GRAND in shown and "anna" in shown
    (answer,) = [line.split() for line in shown.splitlines() if "feedback answer" in line]
    assert "Nothing is asked." in comfyloop("feedback", "answer", answer[3], "all")
    assert "Nothing is asked." in comfyloop("feedback", "flags")
