"""What capture costs: milliseconds added to a prompt, events a second into the spool and into a running service.

    python bench/capture.py                       spool and prompt handler
    python bench/capture.py --url http://127.0.0.1:8265 --project acme     and delivery into that service

Medians and p99 over the repetitions printed beside them, each measured with the same graph of 40 nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from comfyui.capture import Capture
from comfyui.config import Config
from comfyui.delivery import Delivery
from comfyui.feedback import item
from comfyui.host import Host
from comfyui.service import Service
from comfyui.spool import Spool

NODES, PROMPTS, APPENDS, EVENTS = 40, 3000, 500, 2000


def graph(edit: int) -> dict:
    """A workflow as large as people's are, with another value each time."""
    nodes = {
        str(n): {
            "class_type": f"Node{n % 9}",
            "inputs": {"text": "a red fox " * 6, "value": n, "in": [str(n - 1), 0]},
        }
        for n in range(1, NODES)
    }
    nodes["0"] = {"class_type": "Start", "inputs": {"value": edit}}
    return nodes


def sample(project: str, number: int) -> dict:
    def message(role: str, text: str) -> dict:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    question, answer = message("user", f"What is number {number}?"), message("assistant", "A poster. " * 20)
    return item("sample_uploaded", project, author="bench", messages=[question, answer])


def show(what: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(
        f"{what:<52} median {statistics.median(ordered) * 1e3:8.3f} ms   p99 {p99 * 1e3:8.3f} ms   n={len(ordered)}"
    )


def prompts(folder: Path) -> None:
    """Turn by turn without capture, with it off, and with it on, while its thread compares every run with the last
    one and spools the difference: what the first shows is the machine's own noise."""
    spool = Spool(folder / "prompts")
    ended = {"status": {"status_str": "success"}, "outputs": {}}
    host = Host(
        lambda _: ended,
        lambda _: False,
        lambda: False,
        lambda _: None,
        lambda _, name: "prompt" if name == "text" else "value",
    )
    off = Capture(host, Config, spool.append)
    on = Capture(host, lambda: Config(capture=("default",)), spool.append)
    on.start()
    handlers = {
        "no capture": lambda request: request,
        "capture off": off.on_prompt,
        "capture on": on.on_prompt,
    }
    seconds: dict[str, list[float]] = {what: [] for what in handlers}
    for number in range(PROMPTS):
        for what, handler in handlers.items():
            workflow = {"extra_pnginfo": {"workflow": {"id": "bench"}}}
            request = {"prompt": graph(number // 10), "extra_data": workflow}
            started = time.perf_counter()
            handler(request)
            seconds[what].append(time.perf_counter() - started)
            time.sleep(0.0005)
    for what, times in seconds.items():
        show(f"in a prompt of {NODES} nodes, {what}", times)


def spooling(folder: Path) -> None:
    spool = Spool(folder / "spool")
    seconds = []
    for number in range(APPENDS):
        started = time.perf_counter()
        spool.append([sample("default", number)])
        seconds.append(time.perf_counter() - started)
    show("one event into the spool (fsync)", seconds)
    print(f"{'events a second into the spool, one at a time':<52} {APPENDS / sum(seconds):8.0f}")
    batches = [[sample("default", n) for n in range(50)] for _ in range(20)]
    started = time.perf_counter()
    for batch in batches:
        spool.append(batch)
    print(
        f"{'events a second into the spool, 50 at a time':<52} {1000 / (time.perf_counter() - started):8.0f}"
    )


def delivering(folder: Path, url: str, token: str, project: str) -> None:
    spool = Spool(folder / "delivery")
    spool.append([sample(project, number) for number in range(EVENTS)])
    delivery = Delivery(lambda: spool, lambda: Service(url, token))

    async def drain() -> list[float]:
        seconds: list[float] = []
        while True:
            started = time.perf_counter()
            if not await delivery.step(spool):
                return seconds
            seconds.append(time.perf_counter() - started)

    seconds = asyncio.run(drain())
    show("a batch of 100 events into the service", seconds)
    print(f"{'events a second into the service':<52} {EVENTS / sum(seconds):8.0f}")
    if spool.refused():
        print(f"{len(spool.refused())} were refused: {spool.refused()[0]['why']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--url", default="", help="A running service; what is sent there has the author `bench`."
    )
    parser.add_argument("--token", default="")
    parser.add_argument("--project", default="default")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        prompts(Path(folder))
        spooling(Path(folder))
        if wanted.url:
            delivering(Path(folder), wanted.url, wanted.token, wanted.project)


if __name__ == "__main__":
    main()
