"""Whether it goes on learning: simulated people with hidden preferences, round after round, against a real service.

Each person asks, corrects what comes back, and has a turn of the loop; then questions that are never corrected are
asked. Each arm, a set of settings, is a service of its own over a home of its own, one after the other. Written after
every round; --resume goes on where a run was killed. The people are in `bench/simulated/users.py`, the arms in
`arms.py` beside it.

    python bench/flywheel.py --users brand terse --arms nothing today --rounds 6 --per-round 20
    python bench/flywheel.py --quick
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the bench's own package

from bench.simulated import homes, report
from bench.simulated.arms import ARMS, Arm, fitting
from bench.simulated.people import Person
from bench.simulated.rounds import Plan, Played
from bench.simulated.users import MAKERS, ROUNDS_OF_ITEMS, person
from comfyloop import __version__
from comfyloop.client.client import Client
from comfyloop.demo import processes
from comfyloop.settings import Settings

NEVER = 10**9
"""Pieces of feedback that start a turn by themselves: turns here start by hand."""

Json = dict[str, Any]


class Book:
    """The results' file, its table and its picture."""

    def __init__(self, path: Path, conditions: Json, *, resume: bool) -> None:
        self.path = path
        self.results: Json = {"made": conditions, "people": {}, "bases": {}, "runs": []}
        if resume and path.exists():
            self.results = json.loads(path.read_text(encoding="utf-8"))
            before = {name: self.results["made"][name] for name in _PLAYED_ALIKE}
            if before != {name: conditions[name] for name in _PLAYED_ALIKE}:
                raise SystemExit(
                    f"{path} was made otherwise ({before}): give the same options, or another --out."
                )

    def run(self, person: str, arm: str) -> Json:
        run: Json
        for run in self.results["runs"]:
            if (run["person"], run["arm"]) == (person, arm):
                return run
        run = {"person": person, "arm": arm, "rounds": [], "done": False}
        self.results["runs"].append(run)
        return run

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        texts = {
            ".json": json.dumps(self.results, indent=1, ensure_ascii=False) + "\n",
            ".md": report.table(self.results) + "\n",
            ".svg": report.plot(self.results),
        }
        for suffix, text in texts.items():
            part = self.path.with_suffix(f"{suffix}.part")
            part.write_text(text, encoding="utf-8")
            part.replace(self.path.with_suffix(suffix))


_PLAYED_ALIKE = ("model", "rounds", "per_round", "tokens")


def play(book: Book, who: Person, arm: Arm, plan: Plan, settings: Settings, work: Path) -> None:
    """All rounds that are still to be played of one person with one arm."""
    run = book.run(who.name, arm.name)
    arm_settings, run["left_out"] = fitting(arm)
    for sentence in run["left_out"]:
        print(sentence, flush=True)
    if why := _not_played(who, arm, arm_settings, settings, plan):
        run["skipped"] = why
        print(f"{who.name}/{arm.name} is left out: {why}", flush=True)
        book.write()
        return
    if run["done"]:
        return
    run.pop("skipped", None)
    run |= {"about": arm.about, "settings": arm_settings}
    project = f"{who.name}-{arm.name}"
    home = work / project
    if not run["rounds"]:
        homes.forget(home)
    run["rounds"] = run["rounds"][: homes.restore(home)]
    trigger = {"trigger_minutes": 0}
    with (
        processes.service(settings, home, NEVER, project, **trigger, **arm_settings) as service,
        Client(service.url, settings.token, project) as client,
    ):
        processes.wait_ready(client, lambda why: print(f"  {why}", flush=True))
        played = Played(client, service.process.pid, who, arm, plan)
        base = book.results["bases"].get(who.name)
        if base is None:
            base = book.results["bases"][who.name] = played.ask_base()
        for number in range(len(run["rounds"]) + 1, plan.rounds + 1):
            played_round = played.round(number, base)
            run["rounds"].append(played_round)
            book.write()
            homes.keep(home, number)
            print(report.line(who.name, arm.name, played_round, plan.rounds), flush=True)
    run["done"] = True
    book.write()
    homes.forget(home)


def _not_played(who: Person, arm: Arm, arm_settings: Json, settings: Settings, plan: Plan) -> str:
    """Why this person or arm cannot be played here, as a sentence; empty: it can."""
    if who.needs and settings.model == "starter":
        return f"The starter knows English only, and {who.name} writes {who.needs}: set COMFYLOOP_MODEL."
    if arm.environment and not arm_settings:
        return "This code has none of its settings: it would be the same as today."
    if arm.by_peer and not plan.peer:
        return "The peer's rule needs --peer, a Python that has soup-cli."
    return ""


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--users", nargs="+", choices=MAKERS, default=["brand", "terse"])
    options.add_argument("--arms", nargs="+", choices=ARMS, default=["nothing", "today"])
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--per-round", type=int, default=20)
    options.add_argument(
        "--every", type=int, default=2, help="First round's and general items: every so many rounds."
    )
    options.add_argument("--at-once", type=int, default=1, help="Measuring questions asked at a time.")
    options.add_argument("--no-candidates", action="store_true", help="Measure what is live only.")
    options.add_argument("--peer", default="", metavar="PYTHON", help="A Python that has soup-cli.")
    options.add_argument("--quick", action="store_true", help="Two rounds of twelve: first user, last arm.")
    options.add_argument("--resume", action="store_true", help="Go on with what --out holds.")
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "flywheel.json")
    options.add_argument("--work", type=Path, default=None, help="Homes of the services that run.")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.users, arguments.arms = arguments.users[:1], [arguments.arms[-1]]
        arguments.rounds, arguments.per_round = 2, 12
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # services and trainers are ended then, too
    if arguments.rounds * arguments.per_round > ROUNDS_OF_ITEMS:
        options.error(f"There are {ROUNDS_OF_ITEMS} items a person: fewer rounds, or fewer a round.")
    plan = Plan(
        arguments.rounds,
        arguments.per_round,
        every=arguments.every,
        at_once=arguments.at_once,
        candidates=not arguments.no_candidates,
        peer=arguments.peer,
    )
    settings = Settings()
    conditions = {
        "comfyloop": __version__,
        "model": settings.model,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "rounds": plan.rounds,
        "per_round": plan.per_round,
        "tokens": plan.tokens,
    }
    book = Book(arguments.out, conditions, resume=arguments.resume)
    work = arguments.work or Path(tempfile.gettempdir()) / f"bench-flywheel-{arguments.out.stem}"
    began = time.monotonic()
    for name in arguments.users:
        who = person(name)
        book.results["people"][name] = {
            "about": who.about,
            "floor": round(who.best_possible(changed=True), 4),
            "must_not_learn": who.must_not_learn,
        }
        for arm in arguments.arms:
            play(book, who, ARMS[arm], plan, settings, work)
    print(report.table(book.results))
    print(f"{time.monotonic() - began:.0f} s. {arguments.out} and beside it .md and .svg")


if __name__ == "__main__":
    main()
