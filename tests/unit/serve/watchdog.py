"""How long a service keeps a small question waiting while something large is asked of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from tests.unit.serve.gateway import Gateway

SEND = """
import sys, httpx
url, content_type, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
body = sys.stdin.buffer.read()
for _ in range(times):
    answer = httpx.post(url, content=body, headers={"Content-Type": content_type}, timeout=60, trust_env=False)
print(answer.status_code, answer.text[:300])
"""


def send(url: str, body: bytes, content_type: str = "application/json", times: int = 1) -> Callable[[], str]:
    """Post from a process of its own, whose work does not hold up this one; call the result for the answer."""
    process = subprocess.Popen(
        [sys.executable, "-c", SEND, url, content_type, str(times)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(body)
    process.stdin.close()

    def answer() -> str:
        assert process.stdout is not None
        said = process.stdout.read().decode()
        process.wait(timeout=60)
        return said

    return answer


@dataclass
class Watched:
    work: float = 0.0  # CPU seconds that the event loop spent between two looks, at most
    held: float = (
        0.0  # CPU seconds that the whole process spent meanwhile: other threads that did not let it in
    )
    wait: float = 0.0  # seconds that a small question took, at most: other processes count, too


@contextmanager
def watched(gateway: Gateway) -> Iterator[Watched]:
    """What the service's event loop did at a stretch while the block ran; filled at its end."""
    found, over = Watched(), threading.Event()

    async def look() -> None:
        last, before = time.thread_time(), time.process_time()
        while not over.is_set():
            await asyncio.sleep(0.001)
            now, all_now = time.thread_time(), time.process_time()
            found.work, found.held = max(found.work, now - last), max(found.held, all_now - before)
            last, before = now, all_now

    def ask() -> None:
        with httpx.Client(base_url=gateway.url, timeout=60, trust_env=False) as http:
            while not over.is_set():
                began = time.perf_counter()
                http.get("/healthz")
                found.wait = max(found.wait, time.perf_counter() - began)
                time.sleep(0.01)

    loop = gateway.served.servers[0].get_loop()
    looking = asyncio.run_coroutine_threadsafe(look(), loop)
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield found
    finally:
        over.set()
        asking.join()
        looking.result(timeout=10)
