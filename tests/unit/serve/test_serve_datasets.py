"""Data sets over the wire and by the command line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from comfyloop.cli import app
from comfyloop.client import datasets
from comfyloop.client.client import Client
from comfyloop.sources import SourceOptions
from tests.unit.datasets.conftest import picture
from tests.unit.serve.gateway import Gateway


def rows(folder: Path, *more: dict[str, Any]) -> Path:
    """One row, about a picture that lies beside the folder."""
    (folder / "data").mkdir()
    (folder / "mug.png").write_bytes(picture())
    row = {"Frage": "What?", "answer": "A mug.", "photo": "../mug.png"}
    lines = [json.dumps(line) + "\n" for line in (row, *more)]
    (folder / "data" / "d.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "data"


def cli(gateway: Gateway, *words: str) -> tuple[int, str]:
    found = CliRunner().invoke(
        app, [*words, "--url", gateway.url, "--project", "acme"], env={"COLUMNS": "250"}
    )
    return found.exit_code, found.output + (str(found.exception) if found.exception else "")


def samples(gateway: Gateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.http.get("/v1/feedback?project=acme&limit=1000").json()["items"]
    return found


@pytest.mark.parametrize("as_file", [False, True])
def test_a_folder_is_looked_at_and_added(gateway: Gateway, tmp_path: Path, as_file: bool) -> None:
    path = rows(tmp_path)
    what = str(path / "d.jsonl" if as_file else path)
    said = ("--map", "query=Frage", "--map", "response=answer", "--map", "images=photo")
    code, shown = cli(gateway, "data", "add", what, "--dry-run", *said)
    assert code == 0 and "query=Frage" in shown and "A mug." in shown and "mug" in shown
    assert samples(gateway) == [] and gateway.http.get("/v1/datasets?project=acme").json()["items"] == []
    code, shown = cli(gateway, "data", "add", what, *said)
    assert code == 0 and "1 samples stored, 0 were there already." in shown, shown
    (item,) = samples(gateway)
    assert item["messages"][0]["content"][0]["sha256"] == hashlib.sha256(picture()).hexdigest()
    code, shown = cli(gateway, "data", "list")
    assert code == 0 and "emoji" in shown and "done" in shown and "MIT" in shown
    (listed,) = gateway.http.get("/v1/datasets?project=acme").json()["items"]
    assert (listed["state"], listed["stored"], listed["pictures"]) == ("done", 1, 1)


def test_a_guess_is_shown(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("Question,Answer,split\nWhat?,A mug.,train\n")
    code, shown = cli(gateway, "data", "add", str(tmp_path / "d.csv"))
    assert code == 0
    assert "guessed by their names: query=Question, response=Answer" in shown
    assert "Columns that are left out: split" in shown


def test_what_is_refused_leaves_nothing(gateway: Gateway, tmp_path: Path) -> None:
    path = rows(tmp_path, {"Frage": "And?", "answer": ""})
    code, shown = cli(gateway, "data", "add", str(path), "-m", "query=Frage", "-m", "response=answer")
    assert code != 0 and "d.jsonl:2" in shown
    assert samples(gateway) == [] and gateway.http.get("/v1/datasets?project=acme").json()["items"] == []


def test_an_upload_that_was_broken_off_goes_on(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "PIECE", 10)
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"query": "What?", "response": "A mug."}))
    with Client(gateway.url, project="acme") as client:
        started = datasets.begin(client, "d", "upload", author="ada", licence="", key="k")
        data, sha = path.read_bytes(), hashlib.sha256(path.read_bytes()).hexdigest()
        client.put_bytes(
            f"/v1/datasets/{started['id']}/files/d.jsonl", data[:10], offset=0, size=len(data), sha256=sha
        )
        again = datasets.begin(client, "d", "upload", author="ada", licence="", key="k")
        assert again["id"] == started["id"]
        sent: list[int] = []
        real = client.put_bytes
        monkeypatch.setattr(
            client, "put_bytes", lambda url, piece, **q: (sent.append(q["offset"]), real(url, piece, **q))
        )
        datasets.send(client, again["id"], path, SourceOptions(), "", lambda *told: None)
        assert sent[0] == 10
        done = datasets.take(client, again["id"], {}, lambda *told: None, pause=0.01)
        assert (done["state"], done["stored"], done["author"]) == ("done", 1, "ada")
        assert datasets.begin(client, "d", "upload", author="ada", licence="", key="k")["id"] != started["id"]


def test_wrong_calls_are_answered_with_sentences(gateway: Gateway) -> None:
    http = gateway.http
    id = http.post("/v1/datasets", json={"project": "acme", "name": "x"}).json()["id"]
    sha = "0" * 64
    for method, path, body, status in (
        ("GET", "/v1/datasets/ds_none?project=acme", None, 404),
        ("GET", "/v1/datasets/..%2f..?project=acme", None, 404),
        ("POST", "/v1/datasets", {"name": "x", "source": "hf:../../x"}, 400),
        ("POST", "/v1/datasets", {"name": "x", "source": "builtin:none"}, 400),
        ("PUT", f"/v1/datasets/{id}/files/..%2fx?project=acme&size=0&sha256={sha}", None, 400),
        ("POST", f"/v1/datasets/{id}/import?project=acme", {"map": {"nothing": "x"}}, 400),
        ("POST", f"/v1/datasets/{id}/preview?project=acme", {}, 400),
    ):
        answer = http.request(method, path, json=body)
        assert answer.status_code == status, (path, answer.text)
        assert answer.json()["error"]["message"].endswith(".")
    assert http.delete(f"/v1/datasets/{id}?project=acme").json() == {
        "removed": id,
        "deleted": 0,
        "versions": [],
    }


def test_a_built_in_set_is_added_by_its_name(gateway: Gateway) -> None:
    code, shown = cli(gateway, "data", "add", "questions-zh", "--yes")
    assert code == 0 and "30 samples stored" in shown, shown
    code, shown = cli(gateway, "data", "add", "nothing-of-that-name")
    assert code != 0 and "There is no file or folder nothing-of-that-name" in shown


def test_a_stored_set_is_taken_back_and_may_be_added_anew(gateway: Gateway) -> None:
    def add(name: str) -> str:
        code, shown = cli(gateway, "data", "add", name, "--yes", "--json")
        assert code == 0, shown
        return str(json.loads(shown)["id"])

    def there() -> int:
        return len(samples(gateway))

    english, first = add("questions-en"), add("questions-zh")
    second = add("questions-zh")  # all of it was there
    assert there() == 60
    code, shown = cli(gateway, "data", "remove", first, "--samples")
    assert code == 0 and "0 samples are deleted" in shown and there() == 60  # the other one has them, too
    code, shown = cli(gateway, "data", "remove", second, "--forget")
    assert code == 0 and "30 samples are deleted" in shown and there() == 30
    code, shown = cli(gateway, "data", "remove", english)
    assert code == 0 and "What is feedback stays" in shown and there() == 30
    add("questions-zh")
    assert there() == 60
