"""What is served is what was judged, readiness is asked at the moment, and nothing is acknowledged that is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from comfyloop import integrity
from comfyloop.client.client import Client
from comfyloop.errors import Conflict, DamagedVersion, StorageError
from comfyloop.records import Version
from comfyloop.service import _alone
from comfyloop.settings import Settings
from comfyloop.store import Store, generations, open_store, projects, versions
from tests.unit.serve.gateway import INSTANT, Gateway
from tests.unit.serve.test_serve_router import eventually

pytestmark = pytest.mark.slow


def add_version(
    gateway: Gateway, number: int, parent: int = 0, text: str | None = None, image: bool = False
) -> Path:
    """A version as the loop makes it; `text`: the adapter of another version, which it keeps."""
    folder = gateway.services.settings.home / "versions" / "acme" / str(number)
    new: list[Path] = []
    if text is None:
        (folder / "text").mkdir(parents=True)
        (folder / "text" / "adapter_config.json").write_text('{"r": 8}')
        (folder / "text" / "adapter_model.safetensors").write_bytes(os.urandom(1000))
        new.append(folder / "text")
    if image:
        (folder / "image").mkdir(parents=True)
        (folder / "image" / "x.safetensors").write_bytes(os.urandom(1000))
        new.append(folder / "image" / "x.safetensors")
    version = Version(
        project="acme",
        number=number,
        parent=parent,
        text_adapter=text or str(folder / "text"),
        image_adapter=str(new[-1]) if image else None,
        sha256=integrity.hash_of(*new),
    )
    with gateway.store.begin() as conn:
        versions.add(conn, version)
    return folder


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[500] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped", "file gone", "folder gone", "config changed", "one file more"])
def test_a_version_whose_files_are_not_those_that_were_judged_never_answers(
    gateway: Gateway, how: str
) -> None:
    folder = add_version(gateway, 1) / "text"
    gateway.services.router.promote("acme", 1)
    assert gateway.said("acme", max_tokens=1) == "acme-v1"
    if how == "flipped":
        flip(folder / "adapter_model.safetensors")
    elif how == "file gone":
        (folder / "adapter_model.safetensors").unlink()
    elif how == "folder gone":
        shutil.rmtree(folder)
    elif how == "config changed":
        (folder / "adapter_config.json").write_text('{"r": 9}')
    else:
        (folder / "more").write_text("")
    assert gateway.engine.client is not None
    pid = gateway.engine.pid  # type: ignore[attr-defined]
    os.kill(pid, signal.SIGKILL)
    # at once, before anything has looked
    assert gateway.http.get("/readyz").status_code == 503
    eventually(lambda: gateway.ask("acme@base").status_code == 200, seconds=60)
    refused = gateway.ask("acme")
    assert refused.status_code == 503, refused.text
    error = refused.json()["error"]
    assert error["code"] == "damaged_version" and "acme@1" in error["message"] and "rollback" in error["hint"]
    ready = gateway.http.get("/readyz")
    assert ready.status_code == 503 and "acme@1" in ready.json()["problems"]["acme"]
    assert gateway.http.post("/v1/rollback", json={}).status_code == 200
    assert gateway.said("acme", max_tokens=1) == "base"
    assert gateway.http.get("/readyz").status_code == 200


def test_a_side_that_was_kept_is_checked_where_it_was_made(gateway: Gateway) -> None:
    first = add_version(gateway, 1, image=True)
    second = add_version(gateway, 2, parent=1, text=str(first / "text"), image=True)
    third = add_version(gateway, 3, parent=2, image=True)

    def check(number: int) -> None:
        with gateway.store.read() as conn:
            integrity.check(conn, versions.get(conn, "acme", number))

    for number in (1, 2, 3):
        check(number)
    flip(second / "image" / "x.safetensors")
    check(1), check(3)
    with pytest.raises(DamagedVersion, match="acme@2"):
        check(2)
    download = gateway.http.get("/v1/versions/2/image-adapter")
    assert download.status_code == 503 and "not those that were judged" in download.text
    assert gateway.http.get("/v1/versions/3/image-adapter").status_code == 200
    flip(second / "image" / "x.safetensors")
    flip(first / "text" / "adapter_model.safetensors")
    with pytest.raises(DamagedVersion, match="acme@1"):
        check(2)
    check(3)
    assert third.exists()


def test_readiness_is_asked_at_the_moment(gateway: Gateway) -> None:
    assert gateway.http.get("/readyz").json()["storage"] == ""
    home = gateway.services.settings.home
    home.rename(home.with_name("moved"))
    ready = gateway.http.get("/readyz")
    assert ready.status_code == 503 and ready.json()["storage"]
    with pytest.raises(Exception, match=r"database|folder"):
        Client(gateway.url).call("GET", "/readyz")
    home.with_name("moved").rename(home)
    assert gateway.http.get("/readyz").status_code == 200


@pytest.mark.parametrize("how", ["folder removed", "file removed", "file replaced"])
def test_what_is_lost_is_not_acknowledged(gateway: Gateway, how: str) -> None:
    id = gateway.ask().json()["id"]
    home = gateway.services.settings.home
    item = {"kind": "answer_edited", "project": "acme", "generation": id, "edited": "Aloha!"}
    assert gateway.http.post("/v1/feedback", json=item).status_code == 201
    if how == "folder removed":
        shutil.rmtree(home)
    elif how == "file removed":
        (home / "comfyloop.db").unlink()
    else:
        shutil.copy(home / "comfyloop.db", home / "new")
        (home / "new").replace(home / "comfyloop.db")
    for _ in range(3):
        lost = gateway.http.post("/v1/feedback", json=item)
        assert lost.status_code == 507 and "deleted or replaced" in lost.text
    assert gateway.ask().status_code == 507


@pytest.mark.parametrize("how", ["emptied", "gone"])
def test_an_emptied_database_is_no_fresh_start(settings: Settings, how: str) -> None:
    file = settings.home / "comfyloop.db"
    file.parent.mkdir()
    file.touch()
    with open_store(settings) as store:  # nothing else is there: a start that was cut off
        store.blobs.put(b"picture")
    file.write_bytes(b"") if how == "emptied" else file.unlink()
    with pytest.raises(StorageError, match=f"is {'empty' if how == 'emptied' else 'gone'}, but blobs"):
        open_store(settings)
    assert not file.exists() or file.stat().st_size == 0


def test_two_services_do_not_share_a_folder(tmp_path: Path) -> None:
    with _alone(tmp_path), pytest.raises(Conflict, match="Another service runs"), _alone(tmp_path):
        pass
    with _alone(tmp_path):
        pass


# --- the end of a service


IN_A_HURRY = (
    "from comfyloop.cli import main; from comfyloop.serve.api import server; server.DRAIN_SECONDS = 1; main()"
)
"""`comfyloop`, but what is under way when it is told to leave gets a second, not ten."""


@contextmanager
def service(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """`comfyloop up` over an engine that answers slowly."""
    port_file, engine_port, home = tmp_path / "port", tmp_path / "engine", tmp_path / "home"
    engine = subprocess.Popen(
        [sys.executable, str(INSTANT), "--port-file", str(engine_port), "--word-seconds", "0.2"]
    )
    eventually(engine_port.exists, seconds=30)
    environment = os.environ | {
        "COMFYLOOP_HOME": str(home),
        "COMFYLOOP_ENGINE_URL": f"http://127.0.0.1:{engine_port.read_text()}",
        "COMFYLOOP_PROJECT": "acme",
        "COMFYLOOP_TRIGGER_SAMPLES": "2",
    }
    command = [sys.executable, "-c", IN_A_HURRY, "up", "--port", "0", "--port-file", str(port_file)]
    process = subprocess.Popen(command, env=environment)
    try:
        eventually(lambda: port_file.exists() and port_file.read_text().endswith("\n"), seconds=60)
        url = f"http://127.0.0.1:{port_file.read_text().strip()}"

        def ready() -> bool:
            try:
                return httpx.get(f"{url}/readyz").status_code == 200
            except httpx.HTTPError:
                return False

        eventually(ready, seconds=60)
        yield process, url, home
    finally:
        for one in (process, engine):
            one.kill()
            one.wait()


def read(store: Store) -> list[str]:
    with store.read() as conn:
        assert [project.name for project in projects.list_all(conn)] == ["acme"]
        return [f"{g.answer} ({g.finish_reason})" for _, g in generations.list_by(conn, "acme")]


def test_a_service_that_is_told_to_leave_takes_everything_apart(tmp_path: Path) -> None:
    with service(tmp_path) as (process, url, home):
        second = subprocess.run(
            [sys.executable, "-m", "comfyloop", "up", "--port", "0", "--home", str(home)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode == 4 and "Another service runs" in second.stderr
        body = {"model": "acme", "stream": True, "max_tokens": 200}
        body |= {"messages": [{"role": "user", "content": "say 200 words"}]}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            for _ in range(4):
                next(lines)
            children = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            began = time.monotonic()
            assert process.wait(timeout=40) == 0
            assert time.monotonic() - began < 30
        assert not [
            child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        ]
        assert not (home / "comfyloop.db-wal").exists()
        with open_store(Settings(home=home)) as store:
            (said,) = read(store)
    assert said.startswith("base base") and said.endswith("(cancelled)")
