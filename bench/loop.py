"""From the last of 24 edits to the better answer: the loop by itself, against ms-swift by hand.

The same 24 edits of a brand's captions, the same SmolLM2-135M, LoRA r=8, batch 4, all cores of this machine, one
after the other in turn. Ours: `comfyloop up` with its defaults serves all the while, the starter, whose language model
that is; the time runs from the
acknowledgement of the last edit until a question that was never corrected is answered by the version that was trained,
judged and promoted. By hand, as its documentation shows it: `swift sft` on the 24 edits for as many epochs, then
`swift deploy` of the adapter until it answers the same question; nothing is served meanwhile, nothing is judged, and
the person who types the two commands takes no time.

    python bench/loop.py [--rounds 1] [--arms ours swift]

ms-swift is that of `comfyloop engines install swift` (or COMFYLOOP_SWIFT_PYTHON); without it only our own figure is
printed. Writes bench/results/loop.json and loop.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))  # the bench's own package

from bench.simulated.people import Item
from bench.simulated.users import person
from bench.train import language_model, machine
from comfyloop.client.client import Client
from comfyloop.curate.lesson import epochs_of
from comfyloop.demo import processes
from comfyloop.environments import clean_environ, python_of
from comfyloop.errors import NotFound
from comfyloop.gate.metrics import edit_distance
from comfyloop.records import AnswerEdited, LoopState
from comfyloop.settings import Settings

EDITS, UNSEEN = 24, 12
TOKENS = 48
PROJECT = "loop"
DEADLINE = 1800.0
HERE = Path(__file__).parent
Json = dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--arms", nargs="+", choices=["ours", "swift"], default=["ours", "swift"])
    options.add_argument("--out", type=Path, default=HERE / "results" / "loop.json")
    arguments = options.parse_args()
    who = person("brand")
    edits, unseen = who.train[:EDITS], who.test[:UNSEEN]
    swift = _swift() if "swift" in arguments.arms else None
    results: Json = {"machine": machine(), "edits": EDITS, "unseen": UNSEEN, "runs": []}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        model = language_model(Settings().cache_dir, place)
        for number in range(arguments.rounds):
            for arm in arguments.arms:
                where = place / f"{arm}-{number}"
                where.mkdir()
                if arm == "ours":
                    run = ours(where, edits, unseen)
                elif swift is not None:
                    run = by_hand(swift, where, model, edits, unseen)
                else:
                    continue
                results["runs"].append({"arm": arm, **run})
                print(f"{arm}: {run}", flush=True)
                shutil.rmtree(where, ignore_errors=True)
    text = table(results)
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(text + "\n")


def _swift() -> Path | None:
    try:
        return python_of("swift", Settings())
    except NotFound as error:
        print(f"ms-swift is left out: {error}")
        return None


def _wanted(item: Item) -> str:
    text = person("brand").wanted(item)
    assert text is not None
    return text


# --- ours ---------------------------------------------------------------------------------------------------


def ours(where: Path, edits: tuple[Item, ...], unseen: tuple[Item, ...]) -> Json:
    settings = Settings()
    with (
        # examples would answer at once from the edits themselves: it is the training that is timed
        processes.service(settings, where / "home", EDITS, PROJECT, examples="off") as service,
        Client(service.url, settings.token, PROJECT) as client,
    ):
        processes.wait_ready(client, lambda why: print(f"  {why}", flush=True))

        def ask(items: tuple[Item, ...]) -> list[Any]:
            return [client.ask(item.question, max_tokens=TOKENS) for item in items]

        before = _distance([answer.text for answer in ask(unseen)], unseen)
        feedback = [
            AnswerEdited(project=PROJECT, author="artist", generation=answer.generation, edited=_wanted(item))
            for item, answer in zip(edits, ask(edits), strict=True)
        ]
        client.send_feedback(feedback)
        began = time.monotonic()
        entered: dict[str, float] = {}
        while (loop := client.loop()).state is not LoopState.IDLE or not loop.outcome:
            entered.setdefault(loop.state.value, time.monotonic() - began)
            if time.monotonic() - began > DEADLINE:
                raise SystemExit(f"The loop stands at {loop.state} since half an hour.")
            time.sleep(0.1)
        client.ask(unseen[0].question, max_tokens=TOKENS)
        seconds = time.monotonic() - began
        after = _distance([answer.text for answer in ask(unseen)], unseen)
        steps = len(client.run_log(loop.run)[0])
    return {
        "seconds": round(seconds, 1),
        "outcome": loop.outcome,
        "before": before,
        "after": after,
        "entered": {state: round(at, 1) for state, at in entered.items()},
        "logged": steps,
    }


# --- by hand ------------------------------------------------------------------------------------------------


def by_hand(swift: Path, where: Path, model: Path, edits: tuple[Item, ...], unseen: tuple[Item, ...]) -> Json:
    rows = [
        {"messages": [{"role": "user", "content": i.question}, {"role": "assistant", "content": _wanted(i)}]}
        for i in edits
    ]
    data = where / "edits.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    environment = clean_environ() | {"HF_HUB_OFFLINE": "1", "MODELSCOPE_CACHE": str(where / "cache")}
    like = f"--model {model} --model_type llama --template chatml --torch_dtype bfloat16"
    epochs = round(epochs_of(EDITS, Settings()))
    words = (
        f"{like} --check_model false --dataset {data} --tuner_type lora --lora_rank 8 --lora_alpha 16 --use_cpu true "
        f"--per_device_train_batch_size 4 --gradient_accumulation_steps 1 --num_train_epochs {epochs} "
        f"--learning_rate 1e-3 --gradient_checkpointing false --output_dir {where / 'out'} --add_version false"
    )
    command = [str(swift), "-m", "swift.cli.main"]
    began = time.monotonic()
    with (where / "sft.log").open("wb") as log:
        result = subprocess.run([*command, "sft", *words.split()], stdout=log, stderr=log, env=environment)
    if result.returncode:
        raise SystemExit((where / "sft.log").read_text()[-3000:])
    train_seconds = time.monotonic() - began
    adapter = max((where / "out").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    port = _free_port()
    deploy = f"{like} --adapters {adapter} --infer_backend transformers --port {port} --host 127.0.0.1"
    with _process([*command, "deploy", *deploy.split()], where / "deploy.log", environment) as served:
        answers = [_asked(served, port, unseen[0].question, began)]
        seconds = time.monotonic() - began
        answers += [_asked(served, port, item.question, time.monotonic()) for item in unseen[1:]]
    return {
        "seconds": round(seconds, 1),
        "trained": round(train_seconds, 1),
        "epochs": epochs,
        "after": _distance(answers, unseen),
    }


def _asked(served: subprocess.Popen[bytes], port: int, question: str, began: float) -> str:
    """The answer, as soon as it is given."""
    while time.monotonic() - began < DEADLINE:
        if served.poll() is not None:
            raise SystemExit("`swift deploy` has ended.")
        with contextlib.suppress(httpx.TransportError):
            url = f"http://127.0.0.1:{port}/v1"
            name = httpx.get(f"{url}/models", timeout=10).json()["data"][-1]["id"]
            body = {
                "model": name,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": TOKENS,
                "temperature": 0,
            }
            answer = httpx.post(f"{url}/chat/completions", json=body, timeout=120).raise_for_status()
            return str(answer.json()["choices"][0]["message"]["content"])
        time.sleep(0.1)
    raise SystemExit("`swift deploy` gave no answer in half an hour.")


@contextlib.contextmanager
def _process(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is not None:
            print(log.read_text()[-3000:])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(timeout=60)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _distance(answers: list[str], items: tuple[Item, ...]) -> float:
    distances = [edit_distance(answer, _wanted(item)) for answer, item in zip(answers, items, strict=True)]
    return round(sum(distances) / len(distances), 3)


# --- telling ------------------------------------------------------------------------------------------------


def table(results: Json) -> str:
    least = {
        arm: min((run for run in results["runs"] if run["arm"] == arm), key=lambda run: float(run["seconds"]))
        for arm in dict.fromkeys(run["arm"] for run in results["runs"])
    }
    lines = [
        f"# From the last of {results['edits']} edits to the better answer: SmolLM2-135M, LoRA r=8, batch 4",
        "",
        f"{results['machine']}. Least of each arm's rounds; x is the ratio to ms-swift by hand.",
        "",
        f"| | seconds | x | edit distance on {results['unseen']} unseen | of these |",
        "|---|---|---|---|---|",
    ]
    peer = least.get("swift")
    for arm, run in least.items():
        ratio = f"{run['seconds'] / peer['seconds']:.2f}" if peer else ""
        if arm == "ours":
            parts = f"{run['outcome']}; entered after s: {run['entered']}"
        else:
            parts = f"`swift sft` {run['trained']} s ({run['epochs']} epochs), the rest `swift deploy`"
        lines.append(f"| {arm} | {run['seconds']} | {ratio} | {run['after']} | {parts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
