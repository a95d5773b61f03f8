"""A hundred versions come and go while eight clients listen: nobody fails, nobody hears a wrong version."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from comfyloop import environments
from comfyloop.records import Version
from comfyloop.settings import Settings
from comfyloop.store import open_store, versions
from tests.acceptance.conftest import RunningService, wait_for
from tests.models import save_language_model
from tests.swaps import MARKERS, QUESTION, listening, sentence, train_markers

Make = Callable[..., RunningService]


@pytest.fixture(scope="module")
def markers(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return train_markers(tiny_llm, tmp_path_factory.mktemp("markers"), steps=300)


def marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def add_versions(service: RunningService, adapters: dict[str, Path], count: int) -> None:
    """Versions 1 to `count`, each with files of its own; version n says the marker of n."""
    with open_store(Settings(home=service.home, project="acme")) as store, store.begin() as conn:
        for number in range(1, count + 1):
            path = service.home / "versions" / "acme" / str(number) / "text"
            shutil.copytree(adapters[marker(number)], path)
            versions.add(conn, Version(project="acme", number=number, text_adapter=str(path)))


def engine_models(url: str) -> set[str]:
    return {model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]}


def swap(service: RunningService, moves: int, clients: int) -> None:
    """Promote one version after the other, going back after every fourth, under load; then look at it all."""
    url = service.client.url
    moved: list[int] = []
    with httpx.Client(base_url=url, timeout=180) as http, listening(url, clients) as heard:
        number = 0
        while len(moved) < moves:
            if len(moved) % 5 == 4:
                done = http.post("/v1/rollback")
                assert done.status_code == 200 and done.json()["number"] == number - 1, done.text
            else:
                number += 1
                done = http.post(f"/v1/versions/{number}/promote")
                assert done.status_code == 200, done.text
            moved.append(done.json()["number"])
            ready = http.get("/readyz")  # the alias never points at what is not loaded
            assert ready.status_code == 200, ready.text
            body = {"model": "acme", "messages": QUESTION, "max_tokens": 24, "temperature": 0.0}
            said = http.post("/v1/chat/completions", json=body)
            assert said.headers["x-comfyloop-version"] == f"acme@{moved[-1]}"
            assert said.json()["choices"][0]["message"]["content"] == sentence(marker(moved[-1]))
    assert heard.failures == []
    names = {name for name, _ in heard.answers}
    assert len(names) > moves // 4, "the clients heard too few versions to tell"
    expected = {name: sentence(marker(int(name.partition("@")[2]))) for name in names - {"acme@base"}}
    assert heard.wrong({**expected, "acme@base": dict(heard.answers).get("acme@base", "")}) == []


@pytest.mark.slow
def test_a_hundred_versions_change_under_load(
    make_service: Make, tiny_llm: Path, markers: dict[str, Path]
) -> None:
    service = make_service(project="acme", model=tiny_llm, dtype="float32", engine_threads=1)
    service.start()
    add_versions(service, markers, 100)
    service.wait_ready()
    swap(service, 100, clients=8)


@pytest.mark.slow
def test_versions_change_under_load_by_new_processes(
    make_service: Make, tiny_llm: Path, markers: dict[str, Path]
) -> None:
    service = make_service(
        project="acme", model=tiny_llm, dtype="float32", engine_threads=1, engine_swap="blue_green"
    )
    service.start()
    add_versions(service, markers, 2)
    service.wait_ready()
    swap(service, 2, clients=2)
    wait_for(lambda: len(service.children("comfyloop.serve.embedded")) == 1, 60, service.what_happened)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["load", "blue_green"])
def test_versions_change_under_load_on_vllm(
    make_service: Make, starter: Path, tmp_path: Path, how: str
) -> None:
    python = environments.find("vllm", Settings())
    if python is None:
        pytest.skip("vLLM is not installed: `comfyloop engines install vllm`")
    model = tmp_path / "language-model"
    save_language_model(starter, model)
    adapters = train_markers(model, tmp_path / "markers", rate=2e-3)
    service = make_service(
        project="acme",
        model=model,
        engine="vllm",
        engine_swap=how,
        vllm_python=python,
        engine_args='["--max-model-len", "512"]',
    )
    service.start()
    moves = 10 if how == "load" else 2
    add_versions(service, adapters, moves)
    service.wait_ready(300)
    swap(service, moves, clients=4)
