"""Chat through the gateway: OpenAI's client, recording, errors."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import time

import httpx
import openai
import pytest
from PIL import Image

from comfyloop.records import Generation
from comfyloop.settings import Settings
from comfyloop.store import generations
from tests.unit.serve.gateway import Gateway, instant, running_gateway


@pytest.fixture
def client(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


def png(color: str = "red", side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), color).save(file, "PNG")
    return file.getvalue()


def recorded(gateway: Gateway, id: str) -> Generation:
    with gateway.store.read() as conn:
        return generations.get(conn, id)


def test_an_answer_names_its_version_and_is_recorded(gateway: Gateway, client: openai.OpenAI) -> None:
    gateway.add_version(1)
    gateway.http.post("/v1/versions/1/promote").raise_for_status()
    raw = client.chat.completions.with_raw_response.create(
        model="acme",
        messages=[{"role": "user", "content": "say 3 words"}],
        temperature=0.5,
        stop=["END"],
        seed=7,
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == "acme-v1 acme-v1 acme-v1"
    assert answer.model == answer.system_fingerprint == raw.headers["x-comfyloop-version"] == "acme@1"
    assert answer.id == raw.headers["x-comfyloop-generation"]
    stored = recorded(gateway, answer.id)
    assert (stored.version, stored.model, stored.answer) == (1, "acme", "acme-v1 acme-v1 acme-v1")
    assert (stored.sampling.temperature, stored.sampling.stop, stored.sampling.seed) == (0.5, ("END",), 7)
    assert (stored.prompt_tokens, stored.answer_tokens, stored.finish_reason) == (3, 3, "stop")


def test_a_stream_is_passed_on_and_recorded(gateway: Gateway, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="acme@base",
        messages=[{"role": "user", "content": "say 4 words"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "base base base base"
    assert {chunk.system_fingerprint for chunk in chunks} == {"acme@base"}
    assert len({chunk.id for chunk in chunks}) == 1
    usage = chunks[-1].usage
    assert usage is not None and usage.completion_tokens == 4
    stored = recorded(gateway, chunks[0].id)  # at once: it was recorded before the stream ended
    assert (stored.answer, stored.answer_tokens) == ("base base base base", 4)


@pytest.mark.parametrize("stream", [False, True])
def test_a_limit_that_nobody_asked_for_refuses_no_question(shared_gateway: Gateway, stream: bool) -> None:
    """A prompt that leaves less of the context than our own default has what is left."""
    body = {"model": "acme", "messages": [{"role": "user", "content": "room for 3 words"}], "stream": stream}
    answer = shared_gateway.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200 and "base" in answer.text
    asked = shared_gateway.http.post("/v1/chat/completions", json=body | {"max_tokens": 4})
    assert asked.status_code == 400 and "max_tokens is 4" in asked.text


def test_seeds_are_as_long_as_comfyuis(shared_gateway: Gateway) -> None:
    body = {"model": "acme", "messages": [{"role": "user", "content": "hi"}]}
    for seed, sent in ((2**64 - 1, -1), (1125899906842624, 1125899906842624), (-(2**63), -(2**63))):
        answer = shared_gateway.http.post("/v1/chat/completions", json=body | {"seed": seed})
        assert answer.status_code == 200, answer.text
        assert recorded(shared_gateway, answer.json()["id"]).sampling.seed == seed
        assert answer.json()["seed"] == sent  # what the engine was given: 64 bits with a sign
    assert shared_gateway.http.post("/v1/chat/completions", json=body | {"seed": 2**64}).status_code == 400


def test_usage_is_left_out_of_streams_that_did_not_ask(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="acme", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    assert all(chunk.choices and chunk.usage is None for chunk in stream)


def test_who_leaves_a_stream_early_frees_the_version_and_what_was_said_is_kept(settings: Settings) -> None:
    with running_gateway(settings, instant("--word-seconds", 0.05)) as gateway:
        body = {"model": "acme", "messages": [{"role": "user", "content": "say 400 words"}], "stream": True}
        with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
            for count, _ in enumerate(response.iter_lines()):
                if count == 6:
                    break
            id = response.headers["x-comfyloop-generation"]
        stored = _eventually(lambda: _found(gateway, id))
        assert stored.answer.startswith("base base") and len(stored.answer.split()) < 100
        assert stored.finish_reason == "cancelled"
        _eventually(lambda: all(users == 0 for _, _, users in gateway.services.router.loaded()))


def test_who_leaves_before_a_whole_answer_frees_the_version(settings: Settings) -> None:
    with running_gateway(settings, instant("--word-seconds", 0.5)) as gateway:
        with pytest.raises(httpx.ReadTimeout):
            body = {"model": "acme", "messages": [{"role": "user", "content": "say 60 words"}]}
            httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=0.5)
        _eventually(lambda: all(users == 0 for _, _, users in gateway.services.router.loaded()))


def _found(gateway: Gateway, id: str) -> Generation | None:
    with gateway.store.read() as conn:
        return generations.get_many(conn, [id]).get(id)


def _eventually(what, seconds: float = 5.0):  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def test_errors_are_the_clients_typed_exceptions(gateway: Gateway, client: openai.OpenAI) -> None:
    ask = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.NotFoundError, match=r"no project 'nope'.*acme"):
        client.chat.completions.create(model="nope", messages=ask)
    with pytest.raises(openai.NotFoundError, match="no version 9"):
        client.chat.completions.create(model="acme@9", messages=ask)
    with pytest.raises(openai.NotFoundError, match=r"no candidate.*acme@base"):
        client.chat.completions.create(model="acme@candidate", messages=ask)
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model="acme", messages=ask, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    with pytest.raises(openai.BadRequestError, match="longer than the context"):
        client.chat.completions.create(
            model="acme", messages=[{"role": "user", "content": "too long for me"}]
        )
    with pytest.raises(openai.BadRequestError, match="longer than the context"):
        client.chat.completions.create(
            model="acme", messages=[{"role": "user", "content": "too long for me"}], stream=True
        )


def test_a_full_queue_is_a_429_that_says_when(settings: Settings) -> None:
    with running_gateway(settings, instant("--max-queue", 0)) as gateway:
        response = gateway.ask()
        assert response.status_code == 429
        assert response.headers["retry-after"] == "3"
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.RateLimitError, match="queue is full"):
            client.chat.completions.create(model="acme", messages=[{"role": "user", "content": "hi"}])


def test_models_are_listed(gateway: Gateway, client: openai.OpenAI) -> None:
    gateway.add_version(1)
    names = {model.id for model in client.models.list()}
    assert names == {"acme", "acme@base", "acme@1", "acme@candidate"}
    assert client.models.retrieve("acme@1").id == "acme@1"
    assert gateway.said("acme@candidate", max_tokens=1) == "acme-v1"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("acme@2")


def test_the_projects_system_prompt_goes_first_unless_the_client_sends_one(settings: Settings) -> None:
    with running_gateway(settings, instant(), system_prompt="Be brief.") as gateway:
        stored = recorded(gateway, gateway.ask().json()["id"])
        assert [(m.role, m.text) for m in stored.messages] == [("system", "Be brief."), ("user", "hi")]
        messages = [{"role": "developer", "content": "Be long."}, {"role": "user", "content": "hi"}]
        body = {"model": "acme", "messages": messages}
        stored = recorded(gateway, gateway.http.post("/v1/chat/completions", json=body).json()["id"])
        assert [(m.role, m.text) for m in stored.messages] == [("system", "Be long."), ("user", "hi")]


def test_images_by_data_url_and_by_upload_are_recorded_by_hash(gateway: Gateway) -> None:
    upload = gateway.http.post("/v1/images", content=png("blue")).json()
    form = gateway.http.post("/v1/images", files={"file": ("blue.png", png("blue"), "image/png")})
    assert form.json() == upload
    data = f"data:image/png;base64,{base64.b64encode(png('red')).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": data}},
        {"type": "image_url", "image_url": {"url": upload["url"]}},
        {"type": "text", "text": "Which is warmer?"},
    ]
    body = {"model": "acme", "messages": [{"role": "user", "content": content}]}
    answer = gateway.http.post("/v1/chat/completions", json=body)
    stored = recorded(gateway, answer.json()["id"])
    assert len(stored.messages[0].images) == 2 and stored.messages[0].images[1] == upload["sha256"]
    for sha256, expected in zip(stored.messages[0].images, (png("red"), png("blue")), strict=True):
        got = gateway.http.get(f"/v1/images/{sha256}")
        assert got.content == expected and got.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("data:image/png;base64,", 400),  # 0 bytes
        ("data:image/png;base64,!!!", 400),
        ("data:image/png", 400),
        ("data:image/png;base64," + base64.b64encode(b"<html>").decode(), 400),
        ("data:image/png;base64," + base64.b64encode(png()[:40]).decode(), 400),  # cut off
        ("comfyloop://" + "0" * 64, 404),
        ("comfyloop://../../etc/passwd", 400),
        ("file:///etc/passwd", 400),
        ("http://127.0.0.1/cat.png", 400),
        ("http://169.254.169.254/latest/meta-data", 400),
        ("https://example.com/cat.png", 400),
        ("", 400),
    ],
)
def test_images_that_cannot_be_used_are_refused_in_words(
    shared_gateway: Gateway, url: str, status: int
) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    body = {"model": "acme", "messages": [{"role": "user", "content": content}]}
    response = shared_gateway.http.post("/v1/chat/completions", json=body)
    assert response.status_code == status, response.text
    assert len(response.json()["error"]["message"]) > 20


def test_a_stream_that_breaks_off_says_so_in_the_stream(settings: Settings) -> None:
    with running_gateway(settings, instant("--word-seconds", 0.05)) as gateway:
        body = {"model": "acme", "messages": [{"role": "user", "content": "say 300 words"}], "stream": True}
        lines = []
        with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                lines.append(line)
                if len(lines) == 6:
                    assert gateway.engine.pid is not None
                    os.kill(gateway.engine.pid, 9)
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        assert events[-1]["error"]["code"] == "engine_unavailable"
        stored = recorded(gateway, response.headers["x-comfyloop-generation"])
        assert stored.finish_reason == "error" and stored.answer.startswith("base")


def test_a_connection_that_the_engine_has_closed_is_not_an_error(settings: Settings) -> None:
    """The engine comes back on the same port; the gateway's kept connection leads nowhere."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with running_gateway(settings, instant("--port", port)) as gateway:
        assert gateway.said(max_tokens=1) == "base"
        assert gateway.engine.pid is not None
        os.kill(gateway.engine.pid, 9)
        _eventually(lambda: gateway.engine.starts == 2, 10)
        gateway.engine.wait_ready(20)
        assert gateway.said(max_tokens=1) == "base"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_left_before_the_first_word_is_not_waited_for(gateway: Gateway, stream: bool) -> None:
    """Training holds while somebody waits for an answer, so an engine that never begins one must not keep them."""
    with pytest.raises(httpx.ReadTimeout):
        body = {
            "model": "acme",
            "messages": [{"role": "user", "content": "think for ever"}],
            "stream": stream,
        }
        httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=0.5)
    traffic = gateway.services.router.traffic
    deadline = time.monotonic() + 10
    while traffic.quiet_seconds() == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert traffic.quiet_seconds() > 0


# --- what clients write out by habit


NOTHING = {
    **{name: None for name in ("audio", "logit_bias", "moderation", "prediction", "tools", "web_search_options")},
    **{name: None for name in ("response_format", "stream_options", "seed", "stop", "n", "of_a_later_version")},
}  # fmt: skip
CHANGES_NOTHING: list[dict[str, object]] = [
    {
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "functions": [],
        "function_call": "none",
    },
    {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
    {"tool_choice": "auto", "parallel_tool_calls": False},
    {"logit_bias": {}, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "n": 1},
    {"logit_bias": {"50256": 0}, "repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0, "length_penalty": 1.0},
    {"user": "ada", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "x"},
    {
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "prediction": {"type": "content", "content": "x"},
    },
    {
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "verbosity": "medium",
        "reasoning_effort": "none",
    },
    {
        "stream_options": {"include_usage": None, "include_obfuscation": False},
        "logprobs": False,
        "top_logprobs": 0,
    },
    {"best_of": 1, "use_beam_search": False, "ignore_eos": False, "skip_special_tokens": True, "stop": []},
    {"add_generation_prompt": True, "continue_final_message": False, "min_tokens": 0, "stop_token_ids": []},
    NOTHING,
]
CHANGES_THE_ANSWER: list[dict[str, object]] = [
    {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"},
    {"tool_choice": "required"},
    {"logit_bias": {"50256": -100, "1": 0}},
    {"repetition_penalty": 1.1},
    {"presence_penalty": 0.5},
    {"modalities": ["text", "audio"]},
    {"web_search_options": {}},
    {"top_k": 5},
    {"of_a_later_version": 1},
    {"verbosity": "low"},
    {"chat_template_kwargs": {"enable_thinking": False}},
]


@pytest.mark.parametrize("fields", CHANGES_NOTHING)
def test_values_that_change_nothing_are_taken(shared_gateway: Gateway, fields: dict[str, object]) -> None:
    answer = shared_gateway.ask(text="say 2 words", **fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "base base"


@pytest.mark.parametrize("fields", CHANGES_THE_ANSWER)
def test_values_that_would_change_the_answer_are_refused_by_name(
    shared_gateway: Gateway, fields: dict[str, object]
) -> None:
    refused = shared_gateway.ask(**fields)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == next(iter(fields)) and error["param"] in error["message"]


def test_every_parameter_of_openais_client_is_known(shared_gateway: Gateway) -> None:
    """Its own neutral value is sent for each; a new one fails here until somebody has looked at it."""
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase

    from comfyloop.serve import neutral
    from comfyloop.serve.api.chat_request import ChatRequest

    names = set(CompletionCreateParamsBase.__annotations__)
    assert names <= set(neutral.REQUEST) | set(ChatRequest.model_fields)
    for name, values in neutral.REQUEST.items():
        for value in values or (None,):
            assert shared_gateway.ask(max_tokens=1, **{name: value}).status_code == 200, name


def test_a_conversation_is_sent_back_as_the_client_dumps_it(gateway: Gateway) -> None:
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    first = client.chat.completions.create(
        model="acme", messages=[{"role": "user", "content": "say 2 words"}]
    )
    told = first.choices[0].message
    histories: list[object] = [
        told.model_dump(),
        told,
        told.model_dump(exclude_none=True),
        {**told.model_dump(), "tool_calls": [], "annotations": [], "reasoning_content": None, "refusal": ""},
        {**told.model_dump(), "content": [{"type": "text", "text": "base base", "image_url": None}]},
    ]
    for said in histories:
        messages: list[object] = [
            {"role": "user", "content": "say 2 words"},
            said,
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}, "annotations": []}
                ],
            },
        ]
        answer = client.chat.completions.create(model="acme", messages=messages)  # type: ignore[arg-type]
        assert [m.text for m in recorded(gateway, answer.id).messages] == ["say 2 words", "base base", "hi"]
    for wrong in ({"tool_calls": [{"id": "a"}]}, {"refusal": "No."}, {"reasoning_content": "Hm."}):
        with pytest.raises(openai.BadRequestError, match=rf"messages\.0\.{next(iter(wrong))}"):
            client.chat.completions.create(
                model="acme",
                messages=[{**told.model_dump(), **wrong}, {"role": "user", "content": "hi"}],  # type: ignore[list-item]
            )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (5, "messages.0.content: it must be text or a list."),
        ([{"type": "text"}], "messages.0.content.0.text: this field is missing."),
        ([{"type": "image_url", "image_url": "http://x"}], "messages.0.content.0.image_url: it must be a JSON object."),
        ([{"type": "input_audio"}], "messages.0.content.0: its type 'input_audio' is none of 'text', 'image_url'."),
        ([{"type": "text", "text": "a"}, "b"], "messages.0.content.1: it must be a JSON object."),
    ],
)  # fmt: skip
def test_errors_of_parts_speak_of_what_was_sent(
    shared_gateway: Gateway, content: object, sentence: str
) -> None:
    body = {"model": "acme", "messages": [{"role": "user", "content": content}]}
    error = shared_gateway.http.post("/v1/chat/completions", json=body).json()["error"]
    assert error["message"] == sentence and error["param"] == sentence.partition(":")[0]
    from websockets.sync.client import connect

    with connect(shared_gateway.url.replace("http", "ws") + "/v1/chat/completions") as socket:
        socket.send(json.dumps({"request_id": "a", **body}))
        assert json.loads(socket.recv(timeout=20))["error"]["message"] == sentence
