"""SGLang's adapters, over a server of its shape: the routes, the names and the answers of 0.5.23, read from its source.
SGLang itself, which needs a GPU, has not been run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from comfyloop.errors import Conflict, InvalidInput
from comfyloop.serve.api.server import bind
from comfyloop.serve.engines.client import AsyncEngineClient
from comfyloop.serve.engines.kinds import KINDS
from comfyloop.serve.engines.process import EngineProcess

KIND = KINDS["sglang"]


def like_sglang() -> FastAPI:
    app, loaded = FastAPI(), {}

    @app.get("/health")
    def health() -> Response:
        return Response()

    @app.get("/v1/models")
    def models() -> object:
        cards = [{"id": "base", "root": "base"}]
        cards += [{"id": name, "root": path, "parent": "base"} for name, path in loaded.items()]
        return {"object": "list", "data": cards}

    @app.post("/load_lora_adapter")
    async def load(request: Request) -> Response:
        told = await request.json()
        if told["lora_name"] in loaded or not Path(told["lora_path"]).exists():
            why = f"Failed to load LoRA adapter {told['lora_name']}"
            return JSONResponse({"success": False, "error_message": why, "loaded_adapters": loaded}, 400)
        loaded[told["lora_name"]] = told["lora_path"]
        return JSONResponse({"success": True, "error_message": None, "loaded_adapters": loaded})

    @app.post("/unload_lora_adapter")
    async def unload(request: Request) -> Response:
        loaded.pop((await request.json())["lora_name"])
        return JSONResponse({"success": True, "error_message": None, "loaded_adapters": loaded})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        _, _, adapter = str((await request.json())["model"]).partition(":")
        if adapter and adapter not in loaded:
            return JSONResponse({"object": "error", "message": f"LoRA {adapter} was never registered."}, 400)
        message = {"role": "assistant", "content": f"by {adapter or 'the base'}"}
        return JSONResponse({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    return app


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineProcess]:
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(like_sglang(), log_level="error"))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    engine = EngineProcess("sglang", tmp_path, url=url, dialect=KIND.dialect)
    engine.start()
    engine.wait_ready(60)
    yield engine
    engine.stop()
    server.should_exit = True
    thread.join(10)


def test_an_adapter_is_loaded_asked_and_unloaded(engine: EngineProcess, tmp_path: Path) -> None:
    def answer(model: str) -> str:
        return engine.client.answer(model, [{"role": "user", "content": "Who?"}], 8)

    engine.load("acme-v1", str(tmp_path))
    assert engine.client.models() == {"base": "base", "acme-v1": str(tmp_path)}
    assert (answer("base"), answer("acme-v1")) == ("by the base", "by acme-v1")
    engine.load("acme-v1", str(tmp_path))  # once more is no more
    with pytest.raises(Conflict, match="another adapter by the name acme-v1"):
        engine.load("acme-v1", str(tmp_path / "other"))
    engine.unload("acme-v1")
    assert engine.client.models() == {"base": "base"}
    with pytest.raises(InvalidInput, match="acme-v1 was never registered"):
        answer("acme-v1")


def test_the_gateway_asks_for_it_by_the_same_name(engine: EngineProcess, tmp_path: Path) -> None:
    engine.load("acme-v2", str(tmp_path))

    async def ask() -> str:
        gateway = AsyncEngineClient()
        body = {"model": "acme-v2", "messages": [{"role": "user", "content": "Who?"}]}
        try:
            return str((await gateway.chat(engine.client, body))["choices"][0]["message"]["content"])
        finally:
            await gateway.close()

    assert asyncio.run(ask()) == "by acme-v2"


def test_its_refusal_is_told_in_its_words(engine: EngineProcess, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="Failed to load LoRA adapter acme-v3"):
        engine.load("acme-v3", str(tmp_path / "nowhere"))
