"""Past edits in the prompt, through the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from typer.testing import CliRunner
from websockets.sync.client import connect

from comfyloop.cli import app
from comfyloop.client.client import Client
from comfyloop.errors import InvalidInput
from comfyloop.settings import Settings
from comfyloop.store import feedback, generations
from tests.unit.serve.gateway import Gateway, instant, running_gateway

ASK = "Write a caption for a cup: repeat what you read"


_numbers = count()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("examples")
    with running_gateway(Settings(home=home, project="acme", port=0, examples="on"), instant()) as running:
        yield running


@pytest.fixture
def project(gateway: Gateway) -> str:
    """A project of this test's own."""
    name = f"own{next(_numbers)}"
    assert gateway.http.post("/v1/projects", json={"name": name}).status_code == 201
    return name


def edited(gateway: Gateway, question: str, answer: str, author: str = "local", project: str = "acme") -> str:
    generation = gateway.ask(project, text=question).json()["id"]
    body = {
        "kind": "answer_edited",
        "project": project,
        "generation": generation,
        "edited": answer,
        "author": author,
    }
    response = gateway.http.post("/v1/feedback", json=body)
    assert response.status_code == 201, response.text
    return str(response.json()["stored"][0])


def read(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages that the engine was given."""
    return json.loads(answer["choices"][0]["message"]["content"])  # type: ignore[no-any-return]


def test_the_next_answer_is_given_with_the_last_edit(gateway: Gateway, project: str) -> None:
    plain = [{"role": "user", "content": ASK}]
    assert read(gateway.ask(project, text=ASK).json()) == plain
    id = edited(gateway, "Write a caption for a mug", "Meet the mug.", project=project)
    response = gateway.ask(project, text=ASK)
    answer = response.json()
    assert read(answer) == [
        {"role": "user", "content": "Write a caption for a mug"},
        {"role": "assistant", "content": "Meet the mug."},
        *plain,
    ]
    assert answer["examples"] == [id] and response.headers["x-comfyloop-examples"] == id
    with gateway.store.read() as conn:
        kept = generations.get(conn, answer["id"])
    assert [message.text for message in kept.messages] == [ASK]  # what is trained on is what was asked
    assert kept.examples == (id,)


def test_only_the_live_version_by_its_name_is_given_examples(gateway: Gateway, project: str) -> None:
    gateway.add_version(1, project=project)
    edited(gateway, "Write a caption for a mug", "Meet the mug.", project=project)
    assert len(read(gateway.ask(project, text=ASK).json())) == 3
    for model in (f"{project}@base", f"{project}@1", f"{project}@candidate"):
        answer = gateway.ask(model, text=ASK).json()
        assert len(read(answer)) == 1 and "examples" not in answer
    assert len(read(gateway.ask(project, text=ASK, examples=False).json())) == 1
    assert (
        "x-comfyloop-examples"
        not in gateway.ask(project, text="Tell me a joke, repeat what you read").headers
    )


def test_they_come_after_the_system_prompt_and_stream_like_others(settings: Settings) -> None:
    with running_gateway(
        settings.model_copy(update={"examples": "on"}), instant(), system_prompt="Be brief."
    ) as gateway:
        id = edited(gateway, "Write a caption for a mug", "Meet the mug.")
        roles = [message["role"] for message in read(gateway.ask(text=ASK).json())]
        assert roles == ["system", "user", "assistant", "user"]
        body = {"model": "acme", "messages": [{"role": "user", "content": ASK}], "stream": True}
        with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.headers["x-comfyloop-examples"] == id
            response.read()
        with connect(gateway.url.replace("http", "ws") + "/v1/chat/completions") as socket:
            socket.send(json.dumps({"request_id": "a", **body}))
            assert json.loads(socket.recv())["examples"] == [id]


def test_deleting_feedback_takes_its_example_away(gateway: Gateway, project: str) -> None:
    edited(gateway, "Write a caption for a mug", "Meet the mug.", author="eve", project=project)
    assert len(read(gateway.ask(project, text=ASK).json())) == 3
    gateway.http.delete("/v1/feedback", params={"author": "eve", "project": project})
    assert len(read(gateway.ask(project, text=ASK).json())) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_the_engine_refuses_with_examples_is_asked_without(
    gateway: Gateway, project: str, stream: bool
) -> None:
    edited(gateway, "Write a caption for a mug", "This is too long for me.", project=project)
    response = gateway.ask(project, text="Write a caption for a cup", stream=stream)
    assert response.status_code == 200 and "x-comfyloop-examples" not in response.headers


def test_auto_wants_two_examples_where_the_question_is_another(settings: Settings) -> None:
    with running_gateway(settings, instant()) as gateway:
        edited(gateway, "Write a caption for a mug", "Meet the mug.")
        assert "examples" not in gateway.ask(text=ASK).json()
        assert len(gateway.ask(text="write a caption for a MUG").json()["examples"]) == 1
        edited(gateway, "Write a caption for a lamp", "Meet the lamp.")
        assert len(gateway.ask(text=ASK).json()["examples"]) == 2


def test_the_setting_switches_examples_off(settings: Settings) -> None:
    with running_gateway(settings.model_copy(update={"examples": "off"}), instant()) as gateway:
        edited(gateway, "Write a caption for a mug", "Meet the mug.")
        assert len(read(gateway.ask(text=ASK).json())) == 1


def test_preferences_are_listed_changed_and_taken_away(gateway: Gateway, project: str) -> None:
    path = f"/v1/projects/{project}/preferences"
    assert gateway.http.get(path).json() == {"items": []}
    for thing in ("mug", "shirt", "lamp", "chair", "hat"):
        edited(gateway, f"Write a caption for a {thing}", f"Meet the {thing}. #slow", project=project)
    listed = {each["id"]: each for each in gateway.http.get(path).json()["items"]}
    assert listed["begins"]["text"] == 'Begins with "Meet the".' and len(listed["begins"]["feedback"]) == 5
    assert (
        gateway.http.put(f"{path}/begins", json={"text": "Greet the thing."}).json()["text"]
        == "Greet the thing."
    )
    assert gateway.http.put(f"{path}/mine", json={"text": "Be kind."}).json()["written"] == ""
    left = gateway.http.delete(f"{path}/ends").json()["items"]
    assert "ends" not in {each["id"] for each in left}
    assert {"begins", "mine"} <= {each["id"] for each in left}
    assert "mine" not in {each["id"] for each in gateway.http.delete(f"{path}/mine").json()["items"]}
    refused = gateway.http.delete(f"{path}/mine")
    assert refused.status_code == 404 and "begins" in refused.json()["error"]["message"]
    assert gateway.http.put(f"{path}/mine", json={"text": " "}).status_code == 400
    assert gateway.http.get("/v1/projects/nope/preferences").status_code == 404


def test_preferences_stand_in_the_system_prompt_when_that_is_set(settings: Settings) -> None:
    changed = settings.model_copy(update={"examples": "off", "preferences_in_prompt": True})
    with running_gateway(changed, instant()) as gateway:
        assert len(read(gateway.ask(text=ASK).json())) == 1
        gateway.http.put("/v1/projects/acme/preferences/mine", json={"text": "Be kind."})
        told = read(gateway.ask(text=ASK).json())[0]
        assert told == {"role": "system", "content": "How the answers should be: Be kind."}
        own = [{"role": "system", "content": "You are Bo."}, {"role": "user", "content": ASK}]
        body = {"model": "acme", "messages": own}
        told = read(gateway.http.post("/v1/chat/completions", json=body).json())[0]
        assert told["content"] == "You are Bo.\nHow the answers should be: Be kind."
        assert len(read(gateway.ask(text=ASK, examples=False).json())) == 1


def test_edits_that_cannot_be_read_refuse_no_question(
    gateway: Gateway, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfyloop.errors import StorageError

    edited(gateway, "Write a caption for a mug", "Meet the mug.", project=project)

    def broken(*args: object) -> int:
        raise StorageError("The database is away.")

    monkeypatch.setattr(feedback, "last_seq", broken)
    assert gateway.ask(project, text="Write a caption for a cup").status_code == 200


def test_the_command_line_lists_writes_and_removes_preferences(gateway: Gateway, project: str) -> None:
    def run(*arguments: str) -> tuple[int, Any]:
        given = ["preferences", *arguments, "--url", gateway.url, "--project", project, "--json"]
        done = CliRunner().invoke(app, given)
        return done.exit_code, json.loads(done.stdout) if done.exit_code == 0 else done.exception

    assert run() == (0, [])
    assert [each["text"] for each in run("length", "At most ten words.")[1]] == ["At most ten words."]
    assert run("length", "--remove") == (0, [])
    assert isinstance(run("length", "Ten words.", "--remove")[1], InvalidInput)
    assert isinstance(run("length")[1], InvalidInput) and isinstance(run("--remove")[1], InvalidInput)


def test_the_client_says_which_feedback_helped(gateway: Gateway, project: str) -> None:
    id = edited(gateway, "Write a caption for a mug", "Meet the mug.", project=project)
    with Client(gateway.url, project=project) as client:
        assert client.ask("Write a caption for a cup").examples == (id,)
        assert client.ask("Write a caption for a cup", examples=False).examples == ()
