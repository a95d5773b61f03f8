"""The review queue over HTTP, by the clients and on the command line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from comfyloop.cli import app
from comfyloop.client.client import Client
from comfyloop.records import Message, SampleReviewed, SampleUploaded
from tests.unit.datasets.conftest import picture
from tests.unit.serve.gateway import Gateway


def upload(client: Client, **answers: str) -> None:
    client.send_feedback(
        [
            SampleUploaded(
                id=id,
                project="acme",
                author="ada",
                messages=(Message.of("user", f"What is {id}?"), Message.of("assistant", answer)),
            )
            for id, answer in answers.items()
        ]
    )


def edit(gateway: Gateway, id: str, wanted: str) -> None:
    answer = gateway.ask(text=f"What is {id}?").json()["id"]
    item = {"kind": "answer_edited", "id": id, "project": "acme", "generation": answer, "edited": wanted}
    assert gateway.http.post("/v1/feedback", json=item).status_code == 201


def test_a_person_decides_what_filters_are_unsure_of(gateway: Gateway) -> None:
    http = gateway.http
    with Client(gateway.url, project="acme") as client:
        assert client.queue() == []
        upload(client, fb_good="A red mug of clay.", fb_todo="TODO")
        edit(gateway, "fb_edit", "tbd")
        edit(gateway, "fb_more", "n/a")

        listed = http.get("/v1/queue", params={"limit": 1}).json()
        assert listed["total"] == 2 and listed["states"] == {"waiting": 2, "left_out": 1, "decided": 0}
        assert listed["filters"] == {"placeholder": 2}
        first = listed["items"][0]
        assert first["learned"] and first["reasons"][0]["filter"] == "placeholder"
        more = http.get("/v1/queue", params={"limit": 1, "after": listed["next_after"]}).json()
        assert more["next_after"] is None and more["items"][0]["id"] != first["id"]
        assert http.get(f"/v1/queue/{first['id']}").json() == first
        assert http.get("/v1/queue/item_no").status_code == 404
        (todo,) = client.queue(state="left_out")
        assert (todo.messages[-1].text, todo.learned) == ("TODO", False)
        assert client.queue(filter="refusal") == []

        both = [item.id for item in client.queue()]
        bulk = client.decide("reject", both, author="eve")
        assert client.queue() == []
        assert {item.decided.id for item in client.queue(state="decided") if item.decided} == {bulk}
        # the same again decides nothing twice, though nothing waits any longer
        assert client.decide("reject", both, author="eve", id=bulk) == bulk
        changed: dict[str, Any] = {"id": bulk, "project": "acme", "decision": "accept", "items": both}
        assert http.post("/v1/queue/decisions", json=changed).status_code == 409

        client.decide("undo", undoes=bulk)
        assert {item.id for item in client.queue()} == set(both)
        fixed = client.decide("fix", [both[0]], text="A cup.")
        client.decide("accept", [both[1]])
        client.decide("accept", [todo.id])
        assert client.queue() == client.queue(state="left_out") == []
        made = http.get("/v1/queue/decisions").json()["items"]
        assert [(m["decision"]["decision"], m["stands"]) for m in made] == [
            ("accept", True),
            ("accept", True),
            ("fix", True),
            ("undo", True),
            ("reject", False),
        ]
        page = http.get("/v1/queue/decisions", params={"limit": 2}).json()
        rest = http.get("/v1/queue/decisions", params={"before": page["next_before"]}).json()
        assert [*page["items"], *rest["items"]] == made

        # they are feedback like any: listed, and deleted by its id, which takes them back for good
        (kept,) = [
            item for item in client.pages("/v1/feedback", kind="sample_reviewed") if item["id"] == fixed
        ]
        assert SampleReviewed.model_validate(kept).items[0].filters == ("placeholder",)
        assert http.delete(f"/v1/feedback/{fixed}").status_code == 200
        assert [item.id for item in client.queue()] == [both[0]]

        bad = {"decision": "fix", "items": [both[0]]}
        assert "text" in http.post("/v1/queue/decisions", json=bad).json()["error"]["message"]
        unknown = {"decision": "undo", "undoes": "fb_good"}
        assert http.post("/v1/queue/decisions", json=unknown).status_code == 404
        unknown = {"decision": "accept", "items": ["item_no"]}
        assert http.post("/v1/queue/decisions", json=unknown).status_code == 404

        # on the command line
        run = CliRunner()

        def comfyloop(*args: str) -> str:
            done = run.invoke(app, ["queue", *args, "--url", gateway.url], env={"COLUMNS": "300"})
            assert done.exit_code == 0, done.output
            return done.output

        assert both[0] in comfyloop("list") and "still to be written" in comfyloop("list")
        told = json.loads(comfyloop("reject", "--filter", "placeholder", "--json"))
        assert told["items"] == [both[0]]
        assert "Nothing is asked." in comfyloop("list") and "reject" in comfyloop("list", "--decided")
        assert told["decisions"][0] in comfyloop("undo")
        assert "fixed" in comfyloop("fix", both[0], "A bowl.", "--author", "eve")
        assert "fix by eve" in comfyloop("list", "--decided")
        assert run.invoke(app, ["queue", "accept", "--url", gateway.url]).exit_code != 0


def test_captions_that_a_model_wrote_wait_for_a_person(gateway: Gateway, tmp_path: Path) -> None:
    run = CliRunner()

    def comfyloop(*args: str) -> Any:
        done = run.invoke(app, [*args, "--url", gateway.url, "--json"], env={"COLUMNS": "300"})
        assert done.exit_code == 0, done.output
        return json.loads(done.output)

    for colour in ("red", "blue", "green"):
        (tmp_path / f"{colour} mug.png").write_bytes(picture(colour, (64, 64)))
    (tmp_path / "green mug.txt").write_text("a green mug", "utf-8")
    written = comfyloop("data", "caption", str(tmp_path), "--template", "What is {name}?")
    assert [Path(one["picture"]).stem for one in written] == ["blue mug", "red mug"]
    assert all(one["caption"] for one in written)
    again = comfyloop("data", "caption", str(tmp_path), "--template", "What is {name}?")
    assert [one["caption"] for one in again] == ["", ""]  # they are there
    assert [one["feedback"] for one in again] == [one["feedback"] for one in written]
    with Client(gateway.url, project="acme") as client:
        waiting = client.queue(filter="unreviewed")
        assert len(waiting) == 2 and not any(item.learned for item in waiting)
        assert {item.picked for item in waiting} == {
            hashlib.sha256((tmp_path / f"{colour} mug.png").read_bytes()).hexdigest()
            for colour in ("red", "blue")
        }
        client.decide("accept", [waiting[0].id])
        client.decide("fix", [waiting[1].id], text="a mug on white")
        assert client.queue() == []
        assert [item.learned for item in client.queue(state="decided") if item.decided] == [False, True]
        by_engine = ["--engine", gateway.url + "/v1", "--model", "acme@base", "--question", "What is it?"]
        (one, _) = comfyloop("data", "caption", str(tmp_path), *by_engine, "--no-review")
        assert client.call("GET", f"/v1/feedback/{one['feedback']}")["comment"] == "written by acme@base"
        assert client.queue(filter="unreviewed") == []
