"""Five weeks of somebody's work as the store keeps it: what the pages are tried with. Made by the store's own functions
from the demo's examples; what the versions answered is made up, what is measured of it is measured."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection

from comfyloop.curate import CurationReport
from comfyloop.demo.scenes import Correction, load
from comfyloop.gate import Pairs, edit_distance
from comfyloop.gate.decision import measure
from comfyloop.records import (
    AnswerAccepted,
    AnswerEdited,
    AnswerRated,
    Dropped,
    Feedback,
    GateItem,
    GateReport,
    Generation,
    GraphEdited,
    ImagePicked,
    ImageRated,
    Loop,
    Measure,
    Message,
    Project,
    PromptEdited,
    Run,
    RunState,
    SampleUploaded,
    Snapshot,
    Verdict,
    Version,
    VersionState,
    now,
)
from comfyloop.store import Store, feedback, generations, lessons, loops, projects, runs, snapshots, versions

PROJECT = "acme"
WEEKS = 5
A_WEEK = 14
CHANGED = (0.79, 0.64, 0.5, 0.36, 0.21)
"""The share of answers that had to be changed, week by week."""
QUALITY = {0: 0.0, 1: 0.45, 2: 0.5, 3: 0.7, 4: 0.9, 5: 0.92}
"""How much of the wanted answer a version has learnt."""
STATES = {1: "retired", 2: "rejected", 3: "retired", 4: "live", 5: "candidate"}
DOUBTFUL = (
    "I'm sorry, but I cannot help with that.",
    "Meet the mug: it keeps the coffee hot and the",
    "TODO: write this caption",
    "mug, coffee, cup, clay, hot, warm, brown, kitchen, gift, best, sale, new, morning, cosy",
)
PARENTS = {1: 0, 2: 1, 3: 1, 4: 3, 5: 4}
REASONS: dict[int, tuple[Verdict, tuple[str, ...], str]] = {
    2: (
        Verdict.REJECT,
        ("The candidate is worse on your corrections by edit distance.",),
        "The live version stays. Look at the answers that got worse: corrections that contradict each other "
        "cannot all be learnt.",
    ),
    5: (
        Verdict.NOT_ENOUGH_EVIDENCE,
        (
            "On 12 held-out corrections, it is not yet clear that its answers come closer to yours with confidence.",
        ),
        "About 9 more held-out corrections would make it clear: go on correcting answers.",
    ),
}


def furnish(store: Store, home: Path) -> None:
    """Projects, generations, feedback, snapshots, runs with logs, versions with gate reports, and where the loop is."""
    chance = random.Random(7)
    begin = now() - timedelta(weeks=WEEKS)
    scenes = {scene.name: scene for scene in load()}
    pets = [*scenes["pet"].corrections, *scenes["pet"].held_out]
    brand = [*scenes["brand"].corrections, *scenes["brand"].held_out]
    blobs = {
        example.picture: store.blobs.put(example.picture.read_bytes(), "image/webp")
        for example in pets
        if example.picture
    }
    with store.begin() as conn:
        projects.ensure(conn, Project(name=PROJECT, base_model="starter", created_at=begin))
        projects.ensure(conn, Project(name="posters", base_model="starter", created_at=begin))
        sent = _feedback(conn, [*pets, *brand], blobs, begin, chance)
        for number in STATES:
            at = begin + timedelta(days=7 * number - 3)
            ids = sent[: 14 * number]
            snapshot = _snapshot(conn, home, number, ids, at)
            run = _run(conn, home, number, snapshot, at + timedelta(minutes=1), chance)
            _version(conn, home, number, snapshot, run, [*pets[-4:], *brand[-8:]], blobs, at, ids, chance)
        loops.save(
            conn,
            Loop(
                project=PROJECT,
                seen_seq=feedback.last_seq(conn, PROJECT) - 7,
                version=5,
                outcome="not_enough_evidence",
                reason=" ".join(("v5: not enough evidence.", *REASONS[5][1], REASONS[5][2])),
            ),
        )


def _question(example: Correction, blobs: dict[Path, str]) -> Message:
    images = [blobs[example.picture]] if example.picture else []
    return Message.of("user", example.question, images)


def _answer(example: Correction, quality: float, chance: random.Random) -> str:
    """The wanted words, of which some are missing; what knows nothing describes what it sees."""
    if quality == 0:
        thing = example.picture.stem if example.picture else example.question.rstrip(".").split(" a ")[-1]
        return f"The picture shows a {thing}." if example.picture else f"This is a {thing}. It is very nice."
    words = example.edited.split()
    return " ".join(word for word in words if chance.random() < 0.35 + 0.65 * quality) or words[0]


def _feedback(
    conn: Connection,
    examples: list[Correction],
    blobs: dict[Path, str],
    begin: datetime,
    chance: random.Random,
) -> list[str]:
    items = []
    for week in range(WEEKS):
        for place in range(A_WEEK):
            at = begin + timedelta(days=7 * week + place / 2.2, hours=place % 5)
            example = examples[(week * A_WEEK + place) % len(examples)]
            version = min(week, 4)
            made = Generation(
                id=f"gen_{week}_{place}",
                project=PROJECT,
                version=version,
                model=PROJECT,
                messages=(_question(example, blobs),),
                answer=_answer(example, QUALITY[version], chance),
                created_at=at,
            )
            generations.add(conn, made)
            about = {
                "id": f"fb_{week}_{place}",
                "project": PROJECT,
                "author": "mira" if place % 3 else "joon",
                "generation": made.id,
                "created_at": at + timedelta(minutes=2),
            }
            if place < round(CHANGED[week] * A_WEEK):
                items.append(AnswerEdited(**about, edited=example.edited))
            else:
                items.append(AnswerAccepted(**about))
    first, second = list(blobs.values())[:2]
    theirs = {"project": PROJECT, "author": "joon"}
    others: list[Feedback] = [
        GraphEdited(id="fb_graph", before={"1": {}}, after={"1": {"class_type": "KSampler"}}, **theirs),
        ImagePicked(id="fb_picked", picked=(first,), over=(second,), prompt="a dog that surfs", **theirs),
        ImageRated(id="fb_rated", image=second, rating=4, prompt="a rabbit that surfs", **theirs),
        PromptEdited(id="fb_prompt", before="a dog", after="a dog that surfs", **theirs),
        AnswerRated(id="fb_stars", generation="gen_0_1", rating=2, comment="Too dry.", **theirs),
    ]
    feedback.add(conn, [*items, *others, *(_doubtful(place, text) for place, text in enumerate(DOUBTFUL))])
    return [item.id for item in items]


def _doubtful(place: int, text: str) -> SampleUploaded:
    """Something that filters are unsure of."""
    asked = Message.of("user", f"Write a caption for product {place + 1}.")
    return SampleUploaded(
        id=f"fb_up_{place}",
        project=PROJECT,
        author="joon",
        messages=(asked, Message.of("assistant", text)),
    )


def _snapshot(conn: Connection, home: Path, number: int, ids: list[str], at: datetime) -> Snapshot:
    folder = home / "snapshots" / f"{number:064x}"
    folder.mkdir(parents=True)
    dropped = {"duplicate": number, "superseded": 1}
    report = CurationReport(
        project=PROJECT,
        feedback=len(ids),
        train={"sft": 9 * number},
        holdout={"sft": 2 + 2 * number},
        slices={"text": 6 * number, "vision": 5 * number},
        authors={"mira": 8 * number, "joon": 3 * number},
        new=9,
        rehearsal=9 * (number - 1),
        dev=0,
        replay=12 * number,
        dropped=dropped,
        details=tuple(
            Dropped(
                feedback=ids[place],
                reason=reason,
                detail=f"same as {ids[number + 1]}" if reason == "duplicate" else "",
            )
            for place, reason in enumerate(["duplicate"] * number + ["superseded"])
        ),
        coverage=("Most questions are captions of products; few ask about people.",),
    )
    (folder / "report.json").write_text(report.model_dump_json(indent=1), "utf-8")
    return snapshots.add(
        conn,
        Snapshot(
            id=f"{number:064x}",
            project=PROJECT,
            path=str(folder),
            train=9 * number,
            holdout=2 + 2 * number,
            replay=12 * number,
            new=9,
            rehearsal=9 * (number - 1),
            feedback=tuple(ids),
            by_kind={"sft": 9 * number},
            dropped=dropped,
            feedback_seq=len(ids),
            created_at=at,
        ),
    )


def _run(
    conn: Connection, home: Path, number: int, snapshot: Snapshot, at: datetime, chance: random.Random
) -> Run:
    folder = home / "runs" / f"run_{number}"
    folder.mkdir(parents=True)
    steps = 24 + 4 * number
    lines = []
    for step in range(steps + 1):
        loss = 3.4 * 0.93**step + 0.25 + chance.uniform(-0.12, 0.12)
        lines.append(
            {
                "step": step,
                "epoch": round(step / 8, 3),
                "loss": loss if step else None,
                "answer_token_accuracy": min(0.98, 0.4 + 0.02 * step + chance.uniform(-0.03, 0.03))
                if step
                else None,
                "grad_norm": 0.8 if step else None,
                "learning_rate": 0.001 if step else None,
                "samples_per_s": 3.0 + chance.uniform(-0.4, 0.4) if step else None,
                "answer_tokens_per_s": 70 + chance.uniform(-8, 8) if step else None,
                "padded_share": 0.0,
                "rss_mb": 960 + 6 * step,
                "holdout_loss": 3.6 * 0.95**step + 0.4 if step % 6 == 0 else None,
                "eta_seconds": 2.0 * (steps - step) if step else None,
            }
        )
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    status = {
        "state": "succeeded",
        "step": steps,
        "total_steps": steps,
        "loss": lines[-1]["loss"],
        "epoch": 3.0,
    }
    (folder / "status.json").write_text(json.dumps(status), "utf-8")
    run = Run(
        id=f"run_{number}",
        project=PROJECT,
        snapshot=snapshot.id,
        recipe="sft",
        path=str(folder),
        parent=PARENTS[number],
        created_at=at,
    )
    runs.add(conn, run)
    runs.set_state(conn, run.id, RunState.RUNNING)
    return runs.set_state(conn, run.id, RunState.SUCCEEDED)


def _version(
    conn: Connection,
    home: Path,
    number: int,
    snapshot: Snapshot,
    run: Run,
    asked: list[Correction],
    blobs: dict[Path, str],
    at: datetime,
    ids: list[str],
    chance: random.Random,
) -> None:
    adapter = home / "versions" / PROJECT / str(number) / "text"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 8}), "utf-8")
    live = PARENTS[number]
    version = Version(
        project=PROJECT,
        number=number,
        parent=live,
        snapshot=snapshot.id,
        run=run.id,
        text_adapter=str(adapter),
        gate=report_of(number, live, asked, blobs, at, chance),
        created_at=at,
    )
    versions.add(conn, version)
    lessons.add(conn, PROJECT, number, ids[-14:])
    if STATES[number] in ("live", "retired"):
        versions.promote(conn, PROJECT, number)
    elif STATES[number] == "rejected":
        versions.set_state(conn, PROJECT, number, VersionState.REJECTED)


def report_of(
    number: int,
    live: int,
    asked: list[Correction],
    blobs: dict[Path, str],
    at: datetime,
    chance: random.Random,
) -> GateReport:
    # what a version answers to a question stays the same in all reports
    def answer(example: Correction, version: int) -> str:
        return _answer(
            example, QUALITY[version] * (0.7 if version == 2 else 1), random.Random(f"{version} {example}")
        )

    items = []
    for place, example in enumerate(asked):
        before, after = answer(example, live), answer(example, number)
        distance = (edit_distance(before, example.edited), edit_distance(after, example.edited))
        items.append(
            GateItem(
                sample=f"{place:032x}",
                slice="vision" if example.picture else "text",
                question=example.question,
                images=(blobs[example.picture],) if example.picture else (),
                reference=example.edited,
                live_answer=before,
                candidate_answer=after,
                scores={
                    "edit_distance": distance,
                    "log_likelihood": (-1 - 3 * distance[0], -1 - 3 * distance[1]),
                },
            )
        )
    verdict, reasons, next_step = REASONS.get(
        number,
        (
            Verdict.PROMOTE,
            (
                "The candidate is better on your corrections: its answers are closer to yours, and it keeps "
                "what it knew.",
            ),
            "Nothing: it can be made live.",
        ),
    )
    return GateReport(
        project=PROJECT,
        live=live,
        candidate=number,
        verdict=verdict,
        reasons=reasons,
        next_step=next_step,
        measures=_measures(items, chance),
        details=(
            "One-sided level of this look, which is number 1.0 at these items: 2.0% for edit distance.",
        ),
        items=tuple(items),
        seconds=41.0,
        created_at=at,
    )


def _measures(items: list[GateItem], chance: random.Random) -> tuple[Measure, ...]:
    found = []
    for name, part in (
        ("all", items),
        ("vision", [item for item in items if item.slice == "vision"]),
        ("about caption, coffee, mug", items[-5:]),
    ):
        for metric in ("edit_distance", "log_likelihood"):
            scores = [item.scores[metric] for item in part]
            pairs = Pairs(metric, name, tuple(a for a, _ in scores), tuple(b for _, b in scores))
            found.append(measure(pairs, 0.95))
    general = tuple(chance.uniform(0.5, 0.8) for _ in range(24))
    moved = tuple(value + chance.uniform(-0.02, 0.025) for value in general)
    found.append(measure(Pairs("right_answer", "general", general, moved), 0.95, base=sum(general) / 24))
    return tuple(found)
