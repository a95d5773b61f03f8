"""Which pages and names may reach the service, over HTTP and WebSocket, and who may reach its engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from comfyloop import tokens
from comfyloop.errors import InvalidInput
from comfyloop.serve.api import server
from comfyloop.settings import Settings
from tests.unit.serve.gateway import Gateway, instant, running_gateway

pytestmark = pytest.mark.slow

PAGE = "https://studio.example"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},  # another server on this machine
        {"Origin": "null"},  # a page in a sandbox, a file
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example", "Content-Type": "text/plain"},
    ],
)
def test_a_page_of_another_site_changes_and_reads_nothing(
    shared_gateway: Gateway, headers: dict[str, str]
) -> None:
    http = shared_gateway.http
    assert http.post("/v1/loop", json={"project": "acme"}, headers=headers).status_code == 403
    refused = http.get("/v1/feedback", headers=headers)
    assert refused.status_code == 403 and "allowed_origins" in refused.json()["error"]["message"]
    assert "access-control-allow-origin" not in refused.headers
    asked = {**headers, "Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert http.options("/v1/loop", headers=asked).status_code == 403
    with shared_gateway.store.read() as conn:
        from comfyloop.store import loops

        assert not loops.get(conn, "acme").requested


@pytest.mark.parametrize("path", ["/v1/events", "/v1/chat/completions"])
def test_a_page_of_another_site_opens_no_socket(shared_gateway: Gateway, path: str) -> None:
    url = shared_gateway.url.replace("http", "ws") + path
    with pytest.raises(InvalidStatus):
        connect(url, origin="https://evil.example")  # type: ignore[call-overload]
    with connect(url, origin=shared_gateway.url):  # type: ignore[call-overload]
        pass


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8265", "127.0.0.1.evil.example", ""])
def test_a_name_that_was_bound_anew_reads_nothing(shared_gateway: Gateway, host: str) -> None:
    refused = shared_gateway.http.get("/v1/generations", headers={"Host": host})
    # the HTTP parser itself refuses a request without a host
    assert refused.status_code in (400, 421)
    if host:
        with pytest.raises(InvalidStatus):
            connect(
                shared_gateway.url.replace("http", "ws") + "/v1/events", additional_headers={"Host": host}
            )


def test_its_own_names_page_and_programs_are_let_in(shared_gateway: Gateway) -> None:
    http, port = shared_gateway.http, shared_gateway.url.rpartition(":")[2]
    for host in (f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", f"127.0.0.1:{port}", "127.0.0.1"):
        assert http.get("/v1/loop", headers={"Host": host}).status_code == 200
    assert http.get("/v1/loop", headers={"Origin": shared_gateway.url}).status_code == 200
    opened = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert http.get("/docs", headers=opened).status_code == 200
    assert http.post("/v1/rollback", json={}, headers=opened).status_code == 403


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("https://127.0.0.1", "127.0.0.1:443", True),  # as `proxy_set_header Host $host:$server_port` says it
        ("http://127.0.0.1", "127.0.0.1:80", True),
        ("http://127.0.0.1", "127.0.0.1:443", False),
        ("https://127.0.0.1", "127.0.0.1:4443", False),
    ],
)
def test_the_page_behind_a_proxy_that_names_the_port_is_its_own(
    shared_gateway: Gateway, origin: str, host: str, own: bool
) -> None:
    answered = shared_gateway.http.get("/v1/loop", headers={"Origin": origin, "Host": host})
    assert answered.status_code == (200 if own else 403)


def test_an_allowed_page_asks_and_is_answered(settings: Settings) -> None:
    allowing = settings.model_copy(
        update={"allowed_origins": (PAGE + "/",), "allowed_hosts": ("loop.lan",), "token": "t0"}
    )
    with running_gateway(allowing, instant()) as gateway:
        asked = {
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        }
        preflight = gateway.http.options("/v1/chat/completions", headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == PAGE
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
        without = gateway.http.get("/v1/models", headers={"Origin": PAGE})
        assert without.status_code == 401 and without.headers["access-control-allow-origin"] == PAGE
        gateway.http.headers["Authorization"] = "Bearer t0"
        answer = gateway.http.post(
            "/v1/chat/completions",
            json={"model": "acme", "messages": [{"role": "user", "content": "hi"}]},
            headers={"Origin": PAGE, "Host": "loop.lan:80"},
        )
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == PAGE
        assert "X-ComfyLoop-Generation" in answer.headers["access-control-expose-headers"]
        other = gateway.http.get("/v1/models", headers={"Origin": PAGE + ".evil.example"})
        assert other.status_code == 403


def test_preflights_are_answered_for_allowed_pages_alone(settings: Settings) -> None:
    allowing = settings.model_copy(
        update={"allowed_origins": ("https://Studio.example/", "http://localhost:3000")}
    )
    with running_gateway(allowing, instant()) as gateway:

        def preflight(origin: str, path: str, method: str) -> httpx.Response:
            asked = {
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Private-Network": "true",
            }
            return gateway.http.options(path, headers={"Origin": origin, **asked})

        for path, method in (
            ("/v1/chat/completions", "POST"),
            ("/v1/projects/acme/preferences/length", "PUT"),
            ("/v1/projects/acme", "PATCH"),
            ("/v1/feedback/fb_1", "DELETE"),
        ):
            for origin in (PAGE, "http://localhost:3000"):
                let_in = preflight(origin, path, method)
                assert let_in.status_code == 204 and method in let_in.headers["access-control-allow-methods"]
                assert let_in.headers["access-control-allow-origin"] == origin
                assert let_in.headers["access-control-allow-private-network"] == "true"
                assert let_in.headers["vary"] == "Origin" and "*" not in let_in.headers.values()
            others = ("https://evil.example", "http://studio.example", "http://localhost:3001", "null", "*")
            for origin in (*others, PAGE + ":8443", "https://a.studio.example", PAGE + ".evil.example"):
                refused = preflight(origin, path, method)
                assert refused.status_code == 403, origin
                assert not [name for name in refused.headers if name.startswith("access-control")]
        # What is wrong is told to the page, too: without the header it would read "CORS error" alone.
        wrong = gateway.http.post("/v1/chat/completions", json={}, headers={"Origin": PAGE})
        assert wrong.status_code == 400 and wrong.headers["access-control-allow-origin"] == PAGE


def test_the_reference_page_needs_no_other_server(shared_gateway: Gateway) -> None:
    page = shared_gateway.http.get("/docs")
    assert page.status_code == 200 and "/v1/chat/completions" in page.text and "ChatRequest" in page.text
    assert "<script" not in page.text and "//" not in page.text.replace("http://", "").replace(
        "comfyloop://", ""
    )
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert shared_gateway.http.get("/redoc").status_code == 404


def test_beyond_loopback_a_token_is_made_kept_and_asked(gateway: Gateway, tmp_path: Path) -> None:
    home = tmp_path / "elsewhere"
    assert tokens.stored(home) == ""
    token = tokens.ensure(home)
    assert len(token) >= 24 and tokens.ensure(home) == token == tokens.stored(home)
    assert (home / tokens.NAME).stat().st_mode & 0o777 == 0o600
    with pytest.raises(InvalidInput, match="COMFYLOOP_TOKEN"):
        listener = server.bind("0.0.0.0", 0)
        with listener:
            server.run(gateway.services, listener)


def test_a_start_beyond_loopback_shows_its_token(tmp_path: Path) -> None:
    home, port_file = tmp_path / "home", tmp_path / "port"
    argv = ["up", "--host", "0.0.0.0", "--port", "0", "--home", str(home), "--port-file", str(port_file)]
    environment = {**os.environ, "COMFYLOOP_MODEL": str(tmp_path / "no-model"), "COMFYLOOP_WARM_TRAINER": "0"}
    log, folder = tmp_path / "log", tmp_path / "folder"
    folder.mkdir()
    (folder / "uvicorn.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nimport os; os._exit(1)\n")
    script = Path(sys.executable).with_name("comfyloop")
    with log.open("w") as output:
        process = subprocess.Popen([script, *argv], env=environment, stdout=output, stderr=output, cwd=folder)
    try:
        from tests.unit.serve.test_serve_router import eventually

        def listening() -> bool:
            try:
                return (
                    httpx.get(f"http://127.0.0.1:{port_file.read_text().strip()}/healthz").status_code == 200
                )
            except (OSError, httpx.HTTPError):
                return False

        eventually(listening, seconds=60)
        token = tokens.stored(home)
        assert token and token in log.read_text()
        url = f"http://127.0.0.1:{port_file.read_text().strip()}/v1/loop"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 200
        engine = next((home / "engines").glob("*.log"))
        eventually(lambda: "no-model" in engine.read_text(), seconds=60)
        assert not (tmp_path / "ran").exists(), "a module in the working directory was imported"
        assert home.stat().st_mode & 0o777 == 0o700
        assert (home / "comfyloop.db").stat().st_mode & 0o077 == 0
    finally:
        process.terminate()
        process.wait(timeout=30)
