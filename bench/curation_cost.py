"""What curating costs as a project grows: the first snapshot, after 1% more, after a single edit, after a restart.

Samples about drawn pictures, ten to a picture, are uploaded into a real store; some are generations that somebody
edited. It is curated with default settings; then more comes in, and it is curated again in the same process, as a
service does, and at last in a new one, which knows what is on the disk alone.

    python bench/curation_cost.py [--samples 100000] [--pictures 10000] [--edits 5000] [--home DIR]

A home that is named is kept, and filled only once. Times are CPU seconds of the process and of the programs that
filters ask: a busy machine does not stretch them. Writes bench/results/curation_cost.json and .md.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))  # the bench's own package

from comfyloop import curate
from comfyloop.records import AnswerEdited, Feedback, Generation, Message, Project, SampleUploaded
from comfyloop.serve import collector
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback, generations, open_store, projects, snapshots

RESULTS = Path(__file__).parent / "results"
PROJECT = "acme"
SIDE = 96
Json = dict[str, Any]

THINGS = [
    "mug",
    "bowl",
    "plate",
    "vase",
    "lamp",
    "chair",
    "table",
    "shelf",
    "basket",
    "blanket",
    "pillow",
    "clock",
    "candle",
    "teapot",
    "jug",
    "tray",
    "spoon",
    "knife",
    "board",
    "stool",
    "bench",
    "mirror",
    "frame",
    "rug",
    "curtain",
    "kettle",
    "pan",
    "pot",
    "glass",
    "bottle",
]
LOOKS = [
    "red",
    "blue",
    "green",
    "yellow",
    "white",
    "black",
    "grey",
    "brown",
    "pink",
    "orange",
    "round",
    "square",
    "tall",
    "low",
    "wide",
    "narrow",
    "matt",
    "shiny",
    "glazed",
    "rough",
    "smooth",
    "striped",
    "dotted",
    "plain",
    "heavy",
    "light",
    "old",
    "new",
    "small",
    "large",
]
PLACES = [
    "kitchen",
    "hall",
    "garden",
    "office",
    "attic",
    "cellar",
    "balcony",
    "studio",
    "workshop",
    "library",
]


def text(rng: random.Random) -> str:
    look, other, third = rng.sample(LOOKS, 3)
    return (
        f"One {look}, {other} {rng.choice(THINGS)} stands beside a {third} {rng.choice(THINGS)} in the "
        f"{rng.choice(PLACES)}, number {rng.randrange(10_000)} of the summer collection."
    )


def picture(number: int) -> bytes:
    """One that no other is like: a few coarse colours, and grain."""
    drawn = np.random.default_rng(number)
    coarse = Image.fromarray(drawn.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    large = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int16)
    grainy = large + drawn.integers(-20, 21, (SIDE, SIDE, 1), dtype=np.int16)
    packed = io.BytesIO()
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(packed, "JPEG", quality=85)
    return packed.getvalue()


def samples(shas: list[str], first: int, count: int) -> Iterator[SampleUploaded]:
    for number in range(first, first + count):
        rng = random.Random(number)
        asked = f"Question {number}: what does the {rng.choice(PLACES)} picture show?"
        yield SampleUploaded(
            id=f"fb_{number:07}",
            project=PROJECT,
            author=f"person{number % 20}",
            messages=(
                Message.of("user", asked, [shas[number % len(shas)]]),
                Message.of("assistant", text(rng)),
            ),
        )


def edited(number: int) -> tuple[Generation, AnswerEdited]:
    rng = random.Random(f"edit {number}")
    wanted = text(rng)
    said = wanted.replace("One ", "A ", 1).replace("summer", "spring")
    generation = Generation(
        id=f"gen_{number:07}",
        project=PROJECT,
        version=0,
        model=f"{PROJECT}@base",
        messages=(
            Message.of("user", f"Edit {number}: describe the {rng.choice(THINGS)} for the catalogue."),
        ),
        answer=said,
        finish_reason="stop",
    )
    return generation, AnswerEdited(
        id=f"fe_{number:07}", project=PROJECT, author="ada", generation=generation.id, edited=wanted
    )


def put_edits(store: Store, first: int, count: int) -> None:
    made = [edited(number) for number in range(first, first + count)]
    with store.begin() as conn:
        for generation, _ in made:
            generations.add(conn, generation)
        feedback.add(conn, [edit for _, edit in made])


def put_samples(store: Store, shas: list[str], first: int, count: int) -> None:
    some: list[Feedback] = []
    for sample in samples(shas, first, count):
        some.append(sample)
        if len(some) == 2000:
            with store.begin() as conn:
                feedback.add(conn, some)
            some = []
    if some:
        with store.begin() as conn:
            feedback.add(conn, some)


def fill(store: Store, count: int, pictures: int, edits: int) -> list[str]:
    shas = [store.blobs.put(picture(number)) for number in range(pictures)]
    with store.read() as conn:
        there = any(one.name == PROJECT for one in projects.list_all(conn))
    if not there:
        with store.begin() as conn:
            projects.add(conn, Project(name=PROJECT, base_model="starter"))
        put_samples(store, shas, 0, count)
        put_edits(store, 0, edits)
    return shas


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def held_mb() -> int:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20


def peak_mb() -> int:
    """Of this process: what `getrusage` says begins with what its parent held."""
    (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) >> 10


def measured(what: str, done: Callable[[], Any]) -> Json:
    began, before = time.monotonic(), cpu_seconds()
    with collector.young_only():
        made = done()
    found = {
        "cpu": round(cpu_seconds() - before, 2),
        "seconds": round(time.monotonic() - began, 2),
        "held": held_mb(),
        "peak": peak_mb(),
    }
    if isinstance(made, curate.NothingToTrain):
        raise SystemExit(made.reason)
    print(f"{what}: {found}", flush=True)
    return found


def snapshot(store: Store, settings: Settings, known: curate.Known) -> Any:
    return curate.build(store, PROJECT, settings, known=known)


def turn(store: Store, settings: Settings, known: curate.Known, learned: frozenset[str]) -> Any:
    """What the loop asks for: a live version has learned all but what is new."""
    return curate.build(store, PROJECT, settings, known=known, turn=curate.SnapshotRequest(learned))


def everything(store: Store) -> frozenset[str]:
    with store.read() as conn:
        return frozenset(id for _, id in feedback.ids_after(conn, PROJECT, 0, limit=10**9))


def restarted(home: Path, what: str) -> Json:
    """The same by a process that was just started."""
    command = [sys.executable, __file__, "--home", str(home), "--only", what]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: Json = json.loads(done.stdout.splitlines()[-1].removeprefix(f"{what}: ").replace("'", '"'))
    print(f"after a restart, {what}: {found}", flush=True)
    return found


def page(found: Json) -> str:
    steps = found["steps"]
    first = steps["first snapshot"]["cpu"]
    lines = [
        f"{found['samples']} samples about {found['pictures']} pictures and {found['edits']} edits, default settings; "
        f"not measured: {', '.join(found['not measured']) or 'nothing'}. CPU seconds; memory of the process.",
        "",
        "| | CPU s | of the first | holds, MB | at most, MB |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {one['cpu']:.2f} | {one['cpu'] / first:.1%} | {one['held']} | {one['peak'] or ''} |"
        for name, one in steps.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--samples", type=int, default=100_000)
    options.add_argument("--pictures", type=int, default=10_000)
    options.add_argument("--edits", type=int, default=5_000)
    options.add_argument("--home", type=Path)
    options.add_argument("--only", choices=("snapshot", "queue"), help=argparse.SUPPRESS)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="comfyloop-cost-") as scratch:
        home = asked.home or Path(scratch)
        settings = Settings(home=home / "home", cache_dir=home / "cache", project=PROJECT)
        with open_store(settings) as store:
            known = curate.Known()
            if asked.only == "snapshot":
                measured("snapshot", lambda: snapshot(store, settings, known))
                return
            if asked.only == "queue":
                measured("queue", lambda: curate.queue(store, PROJECT, settings, known=known))
                return
            shas = fill(store, asked.samples, asked.pictures, asked.edits)
            print(f"filled; this process holds {held_mb()} MB", flush=True)
            steps = {"first snapshot": measured("first", lambda: snapshot(store, settings, known))}
            more = max(1, asked.pictures // 100)
            new = [store.blobs.put(picture(asked.pictures + number)) for number in range(more)]
            put_samples(store, new, asked.samples, asked.samples // 100)
            steps["+1% of samples and pictures"] = measured("+1%", lambda: snapshot(store, settings, known))
            learned = everything(store)
            for number in range(2):
                put_edits(store, asked.edits + number, 1)
                name = f"a turn after {'one more edit' if number else 'one edit'}"
                steps[name] = measured(name, lambda: turn(store, settings, known, learned))
            steps["the review queue"] = measured(
                "queue", lambda: curate.queue(store, PROJECT, settings, known=known)
            )
            with store.read() as conn:
                report = json.loads(
                    (Path(snapshots.list_by(conn, PROJECT, limit=1)[0].path) / "report.json").read_text()
                )
        put = {"a snapshot after a restart": "snapshot", "the review queue after a restart": "queue"}
        steps |= {name: restarted(home, what) for name, what in put.items()}
    found = {
        "samples": asked.samples,
        "pictures": asked.pictures,
        "edits": asked.edits,
        "files": len(shas),
        "not measured": list(report["unmeasured"]),
        "steps": steps,
    }
    (RESULTS / "curation_cost.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "curation_cost.md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
