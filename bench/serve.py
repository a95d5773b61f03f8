"""Tokens per second of the embedded engine against other servers, the same model, side by side.

All servers run at once and take turns, so that what else the machine does hits them alike; each is asked by one
client and by eight, of the base model, of one adapter, and of two versions at a time.

    python bench/serve.py [--rounds 3] [--tokens 64]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tests' models

from bench import engines

CASES = {
    "1 client": ["base"],
    "8 clients": ["base"] * 8,
    "1 client, adapter": ["v1"],
    "8 clients, base and adapter": ["base", "v1"] * 4,
    "8 clients, two adapters": ["v1", "v2"] * 4,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--work", type=Path, default=None, help="Keeps models and logs here.")
    given = options.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="bench-serve-"))
    work.mkdir(parents=True, exist_ok=True)
    model = engines.language_model(work)
    adapters = engines.random_adapters(model, work, ["v1", "v2"])
    servers: list[engines.Server] = []
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    with engines.stopping(servers):
        for begin in (engines.embedded, engines.swift_deploy, engines.transformers_serve, engines.vllm):
            server = begin(model, adapters, work)
            if server is not None:
                servers.append(server)
                print(f"{server.name} was ready after {server.ready_seconds:.0f} s", flush=True)
        for server in servers:
            asyncio.run(engines.load(server, list(server.models), 1, 8))  # warm
        for _ in range(given.rounds):
            for case, clients in CASES.items():
                for server in servers:
                    if set(clients) <= server.models.keys():
                        measured = asyncio.run(engines.load(server, clients, 1, given.tokens))
                        rows.setdefault(case, {}).setdefault(server.name, []).append(measured.row())
                        print(f"{case:30} {server.name:20} {measured.row()}", flush=True)
        memory = {server.name: round(server.resident_mb()) for server in servers}
    medians = {
        case: {
            name: {key: statistics.median(row[key] for row in measured) for key in measured[0]}
            for name, measured in by_server.items()
        }
        for case, by_server in rows.items()
    }
    told = {
        "what": "medians over rounds; tokens_per_second is wall time on a machine that did other work too",
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "rounds": given.rounds,
        "resident_mb": memory,
        "cases": medians,
    }
    engines.write("serve", told, table(medians))


def table(medians: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [
        "| case | server | tokens/s | embedded is faster by | CPU ms/token | first token, ms |",
        "|---|---|---|---|---|---|",
    ]
    for case, servers in medians.items():
        ours = servers["embedded"]["tokens_per_second"]
        for name, row in servers.items():
            ratio = f"{ours / row['tokens_per_second']:.2f}"
            lines.append(
                f"| {case} | {name} | {row['tokens_per_second']:.1f} | {ratio} | {row['cpu_ms_per_token']:.1f} "
                f"| {row['first_token_p50_ms']:.0f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
