"""What a change of version costs those who chat meanwhile, and how soon the new one speaks.

A whole service on the starter; clients stream without pause while versions are promoted and rolled back, each swap
followed by one question more. Times between tokens during swaps are compared with those while the same questions are
asked without a swap, in turns. Beside it, where they are
installed: vLLM's own load route, and starting `swift deploy` again with another adapter.

    python bench/swap.py [--swaps 100] [--clients 4]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tests' service and clients

import httpx
import psutil

from bench import engines
from comfyloop import starter
from comfyloop.records import Version
from comfyloop.settings import Settings
from comfyloop.store import open_store, versions
from tests.acceptance.conftest import RunningService

QUESTION = [{"role": "user", "content": "Tell a long story about a lighthouse."}]
TURN = 10
"""Swaps in a row; then comes a steady time as long."""


class Clients:
    """Stream without pause; times between tokens go into `gaps`."""

    def __init__(self, url: str, count: int) -> None:
        self.gaps: list[float] = []
        self.failures = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url,)) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, url: str) -> None:
        body = {"model": "acme", "messages": QUESTION, "max_tokens": 64, "stream": True}
        with httpx.Client(base_url=url, timeout=120) as http:
            while not self._stop.is_set():
                last = 0.0
                with http.stream("POST", "/v1/chat/completions", json=body) as response:
                    self.failures += response.status_code != 200
                    for line in response.iter_lines():
                        if '"content":' not in line:
                            continue
                        now = time.monotonic()
                        if last:
                            self.gaps.append(now - last)
                        last = now

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def first_token(url: str, model: str, extra_path: str = "") -> float:
    """Seconds until a chat's first word."""
    body = {"model": model, "messages": QUESTION, "max_tokens": 2, "stream": True, "temperature": 0.0}
    began = time.monotonic()
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=300) as response:
        if response.status_code != 200:
            raise SystemExit(f"{url} refused: {response.read()[:300]!r}")
        for line in response.iter_lines():
            if '"content":' in line and '"content":""' not in line.replace(" ", ""):
                break
    return time.monotonic() - began


def ours(work: Path, swaps: int, clients: int) -> dict[str, object]:
    model = starter.ensure(Settings().cache_dir)
    home = work / "home"
    shutil.rmtree(home, ignore_errors=True)
    service = RunningService(home, project="acme", model=model)
    adapters = list(engines.random_adapters(model, work / "adapters", ["a", "b", "c"]).values())
    service.start()
    with open_store(Settings(home=home, project="acme")) as store, store.begin() as conn:
        for number in range(1, swaps + 1):
            path = home / "versions" / "acme" / str(number) / "text"
            shutil.copytree(adapters[number % 3], path)
            versions.add(conn, Version(project="acme", number=number, text_adapter=str(path)))
    service.wait_ready(300)
    url = service.client.url
    steady: list[float] = []
    during: list[float] = []
    until_spoken: list[float] = []
    resident: dict[int, float] = {}
    try:
        with httpx.Client(base_url=url, timeout=120) as http:
            listening = Clients(url, clients)
            swaps_done = number = 0
            time.sleep(5)
            while swaps_done < swaps:
                listening.gaps.clear()
                began = time.monotonic()
                for _ in range(TURN):
                    asked_at = time.monotonic()
                    if swaps_done % 4 == 3:
                        answer = http.post("/v1/rollback")
                    else:
                        number += 1
                        answer = http.post(f"/v1/versions/{number}/promote")
                    answer.raise_for_status()
                    first_token(url, "acme")
                    until_spoken.append(time.monotonic() - asked_at)
                    swaps_done += 1
                during += listening.gaps
                pause = (time.monotonic() - began) / TURN
                listening.gaps.clear()
                for _ in range(TURN):  # the same questions at the same pace, and no swap
                    asked_at = time.monotonic()
                    first_token(url, "acme")
                    time.sleep(max(0.0, pause - (time.monotonic() - asked_at)))
                steady += listening.gaps
                by_process = _resident(service)
                resident[swaps_done] = sum(by_process.values())
                print(f"{swaps_done} swaps, {resident[swaps_done]:.0f} MB: {by_process}", flush=True)
            listening.stop()
    finally:
        service.stop()
    return {
        "between_tokens_p99_ms": {
            "steady": round(1000 * engines.percentile(steady, 0.99), 1),
            "during swaps": round(1000 * engines.percentile(during, 0.99), 1),
        },
        "p99_ratio": round(engines.percentile(during, 0.99) / engines.percentile(steady, 0.99), 3),
        "promote_to_first_token_s": {
            "median": round(engines.percentile(until_spoken, 0.5), 3),
            "p95": round(engines.percentile(until_spoken, 0.95), 3),
        },
        "resident_mb": {str(count): round(size, 1) for count, size in resident.items()},
        "resident_ratio": round(resident[max(resident)] / resident[min(resident)], 4),
        "failed_requests": listening.failures,
        "tokens": {"steady": len(steady), "during swaps": len(during)},
    }


def _resident(service: RunningService) -> dict[str, float]:
    """MB by what the processes run."""
    assert service.process is not None
    top = psutil.Process(service.process.pid)
    by_command: dict[str, float] = {}
    for process in (top, *top.children(recursive=True)):
        name = " ".join(process.cmdline()[1:3])
        by_command[name] = by_command.get(name, 0.0) + round(process.memory_info().rss / 2**20, 1)
    return by_command


def others(work: Path) -> dict[str, object]:
    model = engines.language_model(work)
    adapters = engines.random_adapters(model, work / "alone", ["v1", "v2", "v3", "v4"])
    result: dict[str, object] = {}
    server = engines.vllm(model, {}, work)
    if server is not None:
        with engines.stopping([server]):
            first_token(server.url, "base")
            seconds = []
            for name, path in adapters.items():
                began = time.monotonic()
                body = {"lora_name": name, "lora_path": str(path)}
                httpx.post(f"{server.url}/v1/load_lora_adapter", json=body, timeout=120).raise_for_status()
                first_token(server.url, name)
                seconds.append(time.monotonic() - began)
            result["vLLM: load route to first token, s"] = [round(value, 2) for value in seconds]
    else:
        print("vLLM is left out: `comfyloop engines install vllm` has not been done.")
    server = engines.swift_deploy(model, {"v1": adapters["v1"]}, work)
    if server is not None:
        with engines.stopping([server]):
            asyncio.run(engines.load(server, ["v1"], 1, 2))
            result["swift deploy: restart to first token, s"] = round(
                server.ready_seconds + first_token(server.url, "v1"), 1
            )
    else:
        print("ms-swift is left out: `comfyloop engines install swift` has not been done.")
    return result


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--swaps", type=int, default=100)
    options.add_argument("--clients", type=int, default=4)
    options.add_argument("--alone", action="store_true", help="Keep what was measured of the others before.")
    options.add_argument("--work", type=Path, default=None, help="Keeps models and logs here.")
    arguments = options.parse_args()
    arguments.swaps = -(-arguments.swaps // TURN) * TURN  # whole turns
    work = arguments.work or Path(tempfile.mkdtemp(prefix="bench-swap-"))
    work.mkdir(parents=True, exist_ok=True)
    file = engines.RESULTS / "swap.json"
    before = json.loads(file.read_text()) if arguments.alone and file.exists() else {}
    results = {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "clients": arguments.clients,
        **ours(work, arguments.swaps, arguments.clients),
        **(
            {key: value for key, value in before.items() if key.startswith(("vLLM", "swift"))}
            if arguments.alone
            else others(work)
        ),
    }
    rows = [f"| {key} | {value} |" for key, value in results.items()]
    engines.write("swap", results, "\n".join(["| what | measured |", "|---|---|", *rows]))


if __name__ == "__main__":
    main()
