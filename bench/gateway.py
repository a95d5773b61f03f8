"""What the gateway adds to a chat request: through it against straight to the engine, side by side.

An engine that answers at once and the gateway run as processes of their own; requests are sent at a fixed rate,
whether or not earlier ones have been answered, in turns of a few seconds each way. Prints milliseconds and what
the gateway adds.

    python bench/gateway.py [--rate 200] [--seconds 5] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from comfyloop.client.client import Client
from comfyloop.demo.processes import wait_ready

INSTANT = Path(__file__).parent.parent / "tests" / "unit" / "serve" / "instant_engine.py"


def serve(home: Path, engine_url: str, port_file: Path) -> None:
    """The gateway's process."""
    from comfyloop import service
    from comfyloop.serve.api import server
    from comfyloop.settings import Settings

    settings = Settings(home=home, project="acme", engine_url=engine_url, port=0)
    with service.running(settings) as services:
        listener = server.bind("127.0.0.1", 0)
        draft = port_file.with_suffix(".draft")
        draft.write_text(str(listener.getsockname()[1]))
        draft.replace(port_file)
        server.run(services, listener)


class Connections:
    """Kept-alive HTTP/1.1 connections to one port; as little of a client as can be."""

    def __init__(self, port: int, model: str) -> None:
        self.port = port
        body = json.dumps(
            {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        ).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.request = head.encode() + body
        self.free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def drop(self) -> None:
        for _, writer in self.free:
            writer.close()
        self.free.clear()

    async def ask(self) -> None:
        reader, writer = (
            self.free.pop() if self.free else await asyncio.open_connection(port=self.port, host="127.0.0.1")
        )
        writer.write(self.request)
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise SystemExit(f"It answered: {head.decode()}")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.split(b":")[1]))
        self.free.append((reader, writer))


async def turn(connections: Connections, rate: float, seconds: float) -> list[float]:
    """Milliseconds from when a request was due to the end of its answer, but for the first half second."""
    took: list[float] = []
    connections.drop()  # they may have been closed while the other way had its turn
    seconds += 0.5
    begin = time.perf_counter()

    async def one(due: float) -> None:
        await connections.ask()
        took.append((time.perf_counter() - due) * 1000)

    asking = []
    for index in range(int(rate * seconds)):
        due = begin + index / rate
        if (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        asking.append(asyncio.create_task(one(max(due, time.perf_counter()))))
    await asyncio.gather(*asking)
    return took[int(rate * 0.5) :]


def quantiles(took: list[float]) -> tuple[float, float]:
    return statistics.median(took), statistics.quantiles(took, n=100)[98]


async def compare(
    engine: int, gateway: int, process: psutil.Process, rate: float, seconds: float, rounds: int
) -> None:
    ways = {"engine": Connections(engine, "base"), "gateway": Connections(gateway, "acme")}
    for connections in ways.values():
        await turn(connections, rate, 1.0)
    rows: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    before = sum(process.cpu_times()[:2])
    for _ in range(rounds):
        for way, connections in ways.items():
            rows[way].append(quantiles(await turn(connections, rate, seconds)))
    request_count = int(rate * (seconds + 0.5)) * rounds
    cpu = (sum(process.cpu_times()[:2]) - before) / request_count * 1000
    print(
        f"{rate:g} requests/s, {rounds} turns of {seconds:g} s each way, load average {os.getloadavg()[0]:.1f}"
    )
    best = {
        way: (
            statistics.median(p50 for p50, _ in quantiles_of_turns),
            min(p99 for _, p99 in quantiles_of_turns),
        )
        for way, quantiles_of_turns in rows.items()
    }
    (gateway_p50, gateway_p99), (engine_p50, engine_p99) = best["gateway"], best["engine"]
    best["added"] = (gateway_p50 - engine_p50, gateway_p99 - engine_p99)
    for way, (p50, p99) in best.items():
        print(f"{way:8} p50 {p50:6.2f} ms   p99 {p99:6.2f} ms")
    print("p50 over all turns, p99 of the quietest turn; reach: added p50 <= 1.5 ms, p99 <= 5 ms")
    print(f"the gateway's processor time a request: {cpu:.2f} ms")


def wait_for(file: Path, process: subprocess.Popen[bytes]) -> int:
    for _ in range(600):
        if file.exists():
            return int(file.read_text())
        if process.poll() is not None:
            raise SystemExit("A process ended before it had opened its port.")
        time.sleep(0.05)
    raise SystemExit(f"{file} did not appear within 30 seconds.")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rate", type=float, default=200)
    options.add_argument("--seconds", type=float, default=5)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument(
        "--serve", nargs=3, metavar=("HOME", "ENGINE_URL", "PORT_FILE"), help=argparse.SUPPRESS
    )
    arguments = options.parse_args()
    if arguments.serve:
        serve(Path(arguments.serve[0]), arguments.serve[1], Path(arguments.serve[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "engine.port", Path(folder) / "gateway.port"]
        processes = [subprocess.Popen([sys.executable, str(INSTANT), "--port-file", str(files[0])])]
        try:
            engine = wait_for(files[0], processes[0])
            home, url = str(Path(folder) / "home"), f"http://127.0.0.1:{engine}"
            processes.append(
                subprocess.Popen([sys.executable, __file__, "--serve", home, url, str(files[1])])
            )
            gateway = wait_for(files[1], processes[1])
            with Client(f"http://127.0.0.1:{gateway}") as client:
                wait_ready(client, print)
            asyncio.run(
                compare(
                    engine,
                    gateway,
                    psutil.Process(processes[1].pid),
                    arguments.rate,
                    arguments.seconds,
                    arguments.rounds,
                )
            )
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()


if __name__ == "__main__":
    main()
