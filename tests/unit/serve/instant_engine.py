"""An engine that answers at once: the engine protocol over HTTP, without a model behind it.

It is a real server in a process of its own, so that what is tested or measured against it is all but the
model. An answer says which adapter gave it, word by word: "acme-v3 acme-v3 acme-v3", as many words as
max_tokens allows (8 at most, or the number in "say N words"); what asks for more than there is "room for N words" is
refused. Told to "repeat what you read", it answers with all messages as JSON.

    python tests/unit/serve/instant_engine.py --port 0 --port-file F
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn

Send = Any
Receive = Any


class InstantEngine:
    def __init__(self, base: str, word_seconds: float, load_seconds: float, max_queue: int) -> None:
        self.base = base
        self.word_seconds = word_seconds
        self.load_seconds = load_seconds
        self.max_queue = max_queue
        self.users: dict[str, int] = {base: 0}
        self.fixed = False  # adapters are given at the start: there are no routes for them
        self.sleeps = False  # it has vLLM's routes for sleep, and vLLM's silence while it does
        self.asleep = False
        self.wake_seconds = 0.0

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                kind = message["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        body = b""
        more = scope["method"] == "POST"
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        sent = json.loads(body) if body else {}
        match scope["path"]:
            case "/health":
                await reply(send, 200, {})
            case "/v1/models":
                await reply(send, 200, {"data": [{"id": name} for name in self.users]})
            case "/v1/load_lora_adapter" | "/v1/unload_lora_adapter" if self.fixed:
                await fail(send, 404, "Not Found")
            case "/is_sleeping" if self.sleeps:
                await reply(send, 200, {"is_sleeping": self.asleep})
            case "/sleep" if self.sleeps and scope["method"] == "POST":
                if sum(self.users.values()):
                    await fail(send, 500, "the engine died: its memory was taken under running requests")
                    os._exit(1)
                self.asleep = True
                await reply(send, 200, {"level": scope["query_string"].decode()})
            case "/wake_up" if self.sleeps and scope["method"] == "POST":
                await asyncio.sleep(self.wake_seconds)
                self.asleep = False
                await reply(send, 200, {})
            case path if self.asleep and path.startswith("/v1/"):
                await asyncio.sleep(600)  # vLLM takes the request and never answers it
            case "/v1/load_lora_adapter":
                await self.load(send, sent)
            case "/v1/unload_lora_adapter":
                await self.unload(send, sent)
            case "/v1/chat/completions":
                await self.chat(send, receive, sent)
            case path:
                await fail(send, 404, f"nothing at {path}")

    async def load(self, send: Send, sent: dict[str, Any]) -> None:
        name, path = sent["lora_name"], Path(sent["lora_path"])
        if name in self.users:
            await fail(send, 409, f"{name} is loaded already")
        elif not (path / "adapter_config.json").exists():
            await fail(send, 400, f"{path} is not a PEFT directory")
        else:
            await asyncio.sleep(self.load_seconds)
            self.users[name] = 0
            await reply(send, 200, {"status": "loaded"})

    async def unload(self, send: Send, sent: dict[str, Any]) -> None:
        name = sent["lora_name"]
        if name not in self.users:
            await fail(send, 404, f"{name} is not loaded")
        elif self.users[name]:
            await fail(send, 409, f"{name} has {self.users[name]} requests running")
        else:
            del self.users[name]
            await reply(send, 200, {"status": "unloaded"})

    async def chat(self, send: Send, receive: Receive, sent: dict[str, Any]) -> None:
        model = sent["model"]
        if model not in self.users:
            await fail(send, 404, f"no model {model!r}")
            return
        if sum(self.users.values()) >= self.max_queue:
            await fail(send, 429, "the queue is full", {"retry-after": "3"})
            return
        if self.fixed:  # it stands for LMDeploy, which passes over what it does not know
            sent.pop("prompt_logprobs", None)
        said = " ".join(_text(message) for message in sent["messages"])
        if "too long for me" in said:
            await fail(send, 400, "the prompt is longer than the context")
            return
        room = re.search(r"room for (\d+) words", said)
        if room and sent.get("max_tokens", 0) > int(room[1]):
            await fail(send, 400, f"max_tokens is {sent['max_tokens']} and there is room for {room[1]}")
            return
        if "think for ever" in said:  # nothing is answered, not even a status
            await asyncio.sleep(600)
        asked = re.search(r"say (\d+) words", said)
        count = min(sent.get("max_tokens", 256), int(asked[1]) if asked else 8)
        self.users[model] += 1
        try:
            if sent.get("stream"):
                await self.stream(send, receive, sent, model, count, len(said.split()))
            else:
                await asyncio.sleep(self.word_seconds * count)
                await reply(send, 200, _completion(sent, model, count, len(said.split())))
        finally:
            self.users[model] -= 1

    async def stream(
        self, send: Send, receive: Receive, sent: dict[str, Any], model: str, count: int, prompt: int
    ) -> None:
        leaving = asyncio.ensure_future(receive())
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/event-stream")],
        }
        await send(start)
        for index in range(count):
            if self.word_seconds:
                await asyncio.sleep(self.word_seconds)
            if leaving.done():
                return
            word = model if index == 0 else f" {model}"
            delta = {"role": "assistant", "content": word} if index == 0 else {"content": word}
            finish = None if index + 1 < count else "stop"
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            await event(
                send, {"id": "x", "object": "chat.completion.chunk", "model": model, "choices": [choice]}
            )
        if (sent.get("stream_options") or {}).get("include_usage"):
            await event(
                send,
                {
                    "id": "x",
                    "object": "chat.completion.chunk",
                    "model": model,
                    "choices": [],
                    "usage": _usage(prompt, count),
                },
            )
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        leaving.cancel()


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "<image>") for part in content)


def _usage(prompt: int, answer: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _completion(sent: dict[str, Any], model: str, count: int, prompt: int) -> dict[str, Any]:
    content = " ".join([model] * count)
    if "repeat what you read" in _text(sent["messages"][-1]):
        content = json.dumps(sent["messages"])
    if told := re.search(r"say word for word <<(.*?)>>", _text(sent["messages"][-1]), re.DOTALL):
        content = told[1].replace("\\n", "\n")  # fields of a page have one line
    message = {"role": "assistant", "content": content}
    body: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": _usage(prompt, count),
    }
    if "seed" in sent:
        body["seed"] = sent["seed"]
    if sent.get("prompt_logprobs") is not None:
        entries = [{"7": {"logprob": -0.5, "rank": 1, "decoded_token": "x"}} for _ in range(prompt - 1)]
        body["prompt_logprobs"] = [None, *entries]
    return body


async def reply(send: Send, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
    data = json.dumps(body).encode()
    lines = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    lines += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": data})


async def fail(send: Send, status: int, message: str, headers: dict[str, str] | None = None) -> None:
    await reply(send, status, {"error": {"message": message, "type": "x", "code": status}}, headers)


async def event(send: Send, body: dict[str, Any]) -> None:
    data = b"data: " + json.dumps(body).encode() + b"\n\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})


def _leave_with_parent(pid: int) -> None:
    while os.getppid() == pid:
        time.sleep(0.5)
    os._exit(0)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--served-model-name", default="base")
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--port-file", type=Path)
    options.add_argument("--word-seconds", type=float, default=0.0)
    options.add_argument("--load-seconds", type=float, default=0.0)
    options.add_argument("--start-seconds", type=float, default=0.0)
    options.add_argument("--max-queue", type=int, default=10_000)
    options.add_argument("--lora-modules", nargs="*", help="NAME=DIRECTORY of fixed adapters")
    options.add_argument("--sleeps", action="store_true", help="it can, as vLLM with --enable-sleep-mode")
    options.add_argument("--asleep", action="store_true", help="and does so at the start")
    options.add_argument("--wake-seconds", type=float, default=0.0)
    options.add_argument("--exit-code", type=int, help="print a sentence and leave at once")
    given = options.parse_args()
    if given.exit_code is not None:
        print("The model directory has no tokenizer.", flush=True)
        sys.exit(given.exit_code)
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    time.sleep(given.start_seconds)
    engine = InstantEngine(given.served_model_name, given.word_seconds, given.load_seconds, given.max_queue)
    engine.sleeps, engine.asleep, engine.wake_seconds = given.sleeps, given.asleep, given.wake_seconds
    engine.fixed = given.lora_modules is not None
    for name, _, path in (module.partition("=") for module in given.lora_modules or ()):
        if not (Path(path) / "adapter_config.json").exists():
            sys.exit(f"{path} is not a PEFT directory")
        engine.users[name] = 0
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", given.port))
    listener.listen(2048)
    if given.port_file:
        draft = given.port_file.with_suffix(".draft")
        draft.write_text(str(listener.getsockname()[1]))
        draft.replace(given.port_file)
    server = uvicorn.Server(
        uvicorn.Config(engine, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    )
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()
