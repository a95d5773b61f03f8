"""The engine as a process: its life, its protocol with the official client, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from comfyloop.serve.embedded.__main__ import main
from comfyloop.serve.engines.kinds.embedded import embedded_command
from comfyloop.serve.engines.process import EngineProcess
from comfyloop.settings import Settings
from tests.unit.serve.embedded.conftest import save_adapter
from tests.unit.serve.embedded.test_embedded_batch import picture


class Process:
    def __init__(self, model: Path | str, folder: Path, *arguments: str) -> None:
        self.port_file = folder / "engine.port"
        self.errors = folder / "engine.err"
        command = [sys.executable, "-m", "comfyloop.serve.embedded", "--model", str(model), "--threads", "1"]
        with self.errors.open("w") as err:
            self.process = subprocess.Popen(
                [*command, "--port-file", str(self.port_file), *arguments], stderr=err
            )

    def wait_ready(self, seconds: float = 60) -> float:
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            assert self.process.poll() is None, self.errors.read_text()
            if self.port_file.exists() and self.get("/health").status_code == 200:
                return time.monotonic() - began
            time.sleep(0.02)
        raise AssertionError("not ready")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port_file.read_text().strip()}"

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=20)

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)

    def chat(self, text: str = "hi", **body: Any) -> httpx.Response:
        body = {"model": "base", "temperature": 0, "max_tokens": 8, **body}
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **body})

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0)

    def settle(self) -> None:
        """Wait until nothing runs or waits."""
        for _ in range(500):
            if self.get("/load").json() == {"running": 0, "waiting": 0}:
                return
            time.sleep(0.01)
        raise AssertionError(self.get("/load").text)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(20)


@pytest.fixture(scope="module")
def engine(tiny_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(tiny_vlm, tmp_path_factory.mktemp("engine"), "--max-batch", "3", "--max-queue", "2")
    process.wait_ready()
    yield process
    process.stop()


def test_it_answers_nobody_but_the_service_that_started_it(tiny_llm: Path, tmp_path: Path) -> None:
    engine = EngineProcess(
        "e", tmp_path, embedded_command(Settings(home=tmp_path, engine_threads=1), tiny_llm)
    )
    engine.start()
    try:
        engine.wait_ready(60)
        asked = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        for headers in ({}, {"Authorization": "Bearer none"}):
            for path in ("/health", "/v1/models", "/metrics"):
                assert httpx.get(engine.url + path, headers=headers).status_code == 401
            assert (
                httpx.post(f"{engine.url}/v1/chat/completions", json=asked, headers=headers).status_code
                == 401
            )
            load = {"lora_name": "x", "lora_path": "/"}
            assert (
                httpx.post(f"{engine.url}/v1/load_lora_adapter", json=load, headers=headers).status_code
                == 401
            )
        assert engine.client.chat(asked)["choices"]
        secret = engine.client.secret
        assert len(secret) > 30 and secret not in Path(f"/proc/{engine.pid}/cmdline").read_text()
    finally:
        engine.stop()


@pytest.fixture(scope="module")
def adapter(tiny_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForImageTextToText

    path = tmp_path_factory.mktemp("adapter")
    targets = r".*language_model.*\.[qkvo]_proj"
    save_adapter(AutoModelForImageTextToText.from_pretrained(tiny_vlm), path, target_modules=targets)
    return path


def test_whole_and_streamed_answers_are_the_same(engine: Process) -> None:
    client = engine.client()
    content = [
        {"type": "image_url", "image_url": {"url": picture("red")}},
        {"type": "text", "text": "what is it?"},
    ]
    ask: dict[str, Any] = {
        "model": "base",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 20,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    told = [t for c in chunks if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert text == whole.choices[0].message.content
    assert [(t.token, t.logprob) for t in told] == [
        (t.token, t.logprob) for t in whole.choices[0].logprobs.content
    ]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert {m.id for m in client.models.list()} >= {"base"}


def test_a_seed_repeats_and_stop_ends(engine: Process) -> None:
    one, same, other = (
        engine.chat(temperature=1.0, seed=seed, max_tokens=30).json()["choices"][0]["message"]["content"]
        for seed in (7, 7, 8)
    )
    assert one == same != other
    full = engine.chat(max_tokens=30).json()["choices"][0]["message"]["content"]
    stop = full[len(full) // 2 :][:2]
    cut = engine.chat(max_tokens=30, stop=[stop]).json()["choices"][0]
    assert cut["message"]["content"] == full[: full.index(stop)]
    assert cut["finish_reason"] == "stop"


def test_an_answer_is_scored_as_the_contract_says(engine: Process) -> None:
    question = [{"role": "user", "content": "what is it?"}]
    begun = engine.post(
        "/v1/chat/completions", {"model": "base", "messages": question, "max_tokens": 1}
    ).json()
    size = begun["usage"]["prompt_tokens"]
    scored = engine.post(
        "/v1/chat/completions",
        {
            "model": "base",
            "messages": [*question, {"role": "assistant", "content": "A brown dog."}],
            "add_generation_prompt": False,
            "prompt_logprobs": 0,
            "max_tokens": 1,
        },
    ).json()["prompt_logprobs"]
    answer = [next(iter(place.values())) for place in scored[size:]]
    assert "".join(t["decoded_token"] for t in answer) == "A brown dog.<|im_end|>\n"
    assert all(t["logprob"] < 0 and t["rank"] >= 1 for t in answer)


def test_versions_come_and_go(engine: Process, adapter: Path) -> None:
    before = engine.chat(logprobs=True, max_tokens=20).json()["choices"]
    loaded = engine.post("/v1/load_lora_adapter", {"lora_name": "acme-v1", "lora_path": str(adapter)})
    assert (loaded.status_code, "r=4, alpha=8, 8 layers" in loaded.text) == (200, True), loaded.text
    assert (
        engine.post("/v1/load_lora_adapter", {"lora_name": "acme-v1", "lora_path": str(adapter)}).status_code
        == 409
    )
    answer = engine.chat(model="acme-v1", max_tokens=20).json()
    assert answer["model"] == "acme-v1"
    assert answer["choices"][0]["message"]["content"] != before[0]["message"]["content"]
    assert engine.post("/v1/unload_lora_adapter", {"lora_name": "acme-v1"}).status_code == 200
    assert engine.chat(model="acme-v1").status_code == 404
    assert engine.post("/v1/unload_lora_adapter", {"lora_name": "acme-v1"}).status_code == 404
    assert engine.chat(logprobs=True, max_tokens=20).json()["choices"] == before


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


MUG = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue", "ultramarine"]},
        "price": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
    },
    "required": ["colour", "price", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_an_answer_follows_its_schema(engine: Process, temperature: float) -> None:
    for seed in range(3):
        body = {"temperature": temperature, "seed": seed, "max_tokens": 120}
        answer = engine.chat(response_format=schema_format(MUG), **body).json()["choices"][0]
        assert answer["finish_reason"] == "stop", answer
        said = json.loads(answer["message"]["content"])
        assert set(said) == {"colour", "price", "tags"} and 0 <= said["price"] <= 99
        assert said["colour"] in ("red", "blue", "ultramarine")
        assert len(said["tags"]) <= 2 and all(len(tag) <= 5 for tag in said["tags"])


@pytest.mark.parametrize(
    "schema",
    [{"type": "integer", "maximum": 10**300}, {"const": 10**400}, {"type": "string", "maxLength": 10**30}],
)
def test_a_number_that_no_schema_can_hold_is_refused(engine: Process, schema: dict[str, Any]) -> None:
    refused = engine.chat(response_format=schema_format(schema))
    assert refused.status_code == 400 and "JSON schema" in refused.text
    assert engine.chat().status_code == 200


def test_several_answers_to_one_request_are_those_of_their_seeds(engine: Process) -> None:
    several = engine.chat(n=2, temperature=1.0, seed=5, max_tokens=12).json()
    alone = [engine.chat(temperature=1.0, seed=5 + i, max_tokens=12).json() for i in range(2)]
    assert [c["index"] for c in several["choices"]] == [0, 1]
    said = [c["message"]["content"] for c in several["choices"]]
    assert said == [one["choices"][0]["message"]["content"] for one in alone]
    assert several["usage"]["completion_tokens"] == sum(o["usage"]["completion_tokens"] for o in alone)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"temperature": 3}, 400, "temperature: it must be at most 2"),
        ({"n": 9}, 400, "n: it must be at most 8"),
        ({"n": 2, "prompt_logprobs": 0}, 400, "prompt_logprobs are told of one answer"),
        ({"response_format": {"type": "xml"}}, 400, "json_schema"),
        ({"response_format": schema_format({"type": "strnig"})}, 400, "cannot be followed: Invalid type"),
        ({"response_format": schema_format({"$ref": "http://example.com/s"})}, 400, "cannot be followed"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"messages": []}, 400, "at least 1 item"),
        ({"messages": [{"role": "owner", "content": "x"}]}, 400, "'system', 'user' or 'assistant'"),
        ({"model": "nobody"}, 404, "not loaded here"),
        ({"max_tokens": 5000}, 400, "together they may be"),
        ({"continue_final_message": True}, 400, "not both"),
        ({"stop": ["x", ""]}, 400, "none of them empty"),
    ],
)
def test_what_is_refused_is_said_in_openai_s_form(
    engine: Process, body: dict[str, Any], status: int, sentence: str
) -> None:
    answer = engine.chat(**body)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]["message"]
    assert set(answer.json()["error"]) == {"message", "type", "code", "param"}


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://127.0.0.1/x.png", "not a data: URL"),
        ("data:image/png;base64,", "0 bytes"),
        ("data:image/png;base64,%%%", "not valid base64"),
        ("data:image/png;base64,PGh0bWw+", "not one of PNG"),
        (picture("red", (600, 400))[:-800], "cannot be decoded"),
    ],
)
def test_bad_images_are_refused(engine: Process, url: str, sentence: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    answer = engine.chat(messages=[{"role": "user", "content": content}])
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]


def test_broken_json_is_said(engine: Process) -> None:
    answer = httpx.post(
        engine.url + "/v1/chat/completions",
        content=b'{"model":',
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    assert "not valid JSON" in answer.json()["error"]["message"]


def test_a_client_that_leaves_frees_its_row(engine: Process) -> None:
    ask = {
        "model": "base",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "max_tokens": 480,
    }
    with httpx.stream("POST", engine.url + "/v1/chat/completions", json=ask) as answer:
        next(answer.iter_lines())
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(engine.url + "/v1/chat/completions", json={**ask, "stream": False}, timeout=0.05)
    engine.settle()
    metrics = engine.get("/metrics").text
    assert 'comfyloop_engine_requests_total{reason="cancelled"}' in metrics
    assert "comfyloop_engine_running_requests 0" in metrics


def test_beyond_the_queue_429(engine: Process) -> None:
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(engine.chat("brown fox " * 40, max_tokens=300)))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = sorted(a.status_code for a in answers)
    assert set(codes) == {200, 429}
    refused = next(a for a in answers if a.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert "wait already" in refused.json()["error"]["message"]
    engine.settle()


def test_it_leaves_when_told_and_ends_what_runs(tiny_llm: Path, tmp_path: Path) -> None:
    process = Process(tiny_llm, tmp_path)
    process.wait_ready()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(process.chat(max_tokens=450)))
    asking.start()
    time.sleep(0.1)
    began = time.monotonic()
    assert process.stop() == 0
    assert time.monotonic() - began < 8
    asking.join()
    assert answers[0].json()["usage"]["completion_tokens"] > 0
    assert not process.port_file.exists()


def test_it_leaves_when_its_parent_dies(tiny_llm: Path, tmp_path: Path) -> None:
    parent = subprocess.Popen(["sleep", "60"])
    process = Process(tiny_llm, tmp_path, "--parent-pid", str(parent.pid))
    process.wait_ready()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert process.process.wait(20) == 0


def _no_tokenizer(model: Path, folder: Path) -> Path:
    bare = folder / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        os.link(model / name, bare / name)
    return bare


def _short_weights(model: Path, folder: Path) -> Path:
    bad = folder / "bad"
    bad.mkdir()
    for file in model.iterdir():
        (bad / file.name).write_bytes(file.read_bytes())
    (bad / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:5000])
    return bad


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda model, folder: folder, "not a model directory"),
        (_no_tokenizer, "has no tokenizer"),
        (_short_weights, "weights"),
        (lambda model, folder: folder / "nothing-here", "cannot be read as a model"),
    ],
)
def test_what_is_not_a_model_is_said(
    tiny_llm: Path, tmp_path: Path, make: Any, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    port_file = tmp_path / "engine.port"
    assert run_here("--model", make(tiny_llm, tmp_path), "--port-file", port_file) == 8
    assert sentence in port_file.with_name("engine.port.error").read_text()
    assert sentence in capfd.readouterr().err.splitlines()[-1]
    assert not port_file.exists()


def run_here(*arguments: object) -> int:
    """The exit code of an engine in this process, for which torch is imported already."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    interval = sys.getswitchinterval()
    try:
        return main([*map(str, arguments), "--threads", "1"])
    finally:
        sys.setswitchinterval(interval)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_port_in_use_is_said(engine: Process, tiny_llm: Path, tmp_path: Path) -> None:
    process = Process(tiny_llm, tmp_path, "--port", engine.url.rsplit(":", 1)[1])
    assert process.process.wait(20) == 13
    assert "cannot be listened on" in process.errors.read_text()
