"""Whether a model learns more from edits by `sft` or by distilling itself (`sdft`), and what either forgets.

The trainer alone, no service: the people of the flywheel bench correct so many answers a round, and each round goes
on from the adapter of the one before, with the same rows, replay and seeds for every arm. Then the questions that are
never taught are answered greedily (edit distance to what was wanted), and the base model's own general answers are
scored (share of their log-likelihood lost). Written after every run.

    python bench/self_distillation.py --users brand --rounds 3 --per-round 20
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the bench's own package

import torch
from peft import PeftModel

from bench.simulated.measures import distances, mean, repetition
from bench.simulated.people import Person
from bench.simulated.users import MAKERS, person
from bench.simulated.words import GENERAL
from comfyloop import curate, starter
from comfyloop.formats import Row, Turn
from comfyloop.models import devices
from comfyloop.recipes import RECIPES
from comfyloop.settings import Settings
from comfyloop.train.data.examples import Example
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.specs.files import write_spec
from comfyloop.train.specs.text import AdapterSpec, TrainSpec
from comfyloop.train.text.answers import read_answers
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.models import Loaded, describe, read_weights
from comfyloop.train.text.sampled import sample

ARMS: dict[str, dict[str, Any]] = {
    "sft": {"recipe": "sft"},
    "sdft": {"recipe": "sdft"},
    "sdft, lmbda 0": {"recipe": "sdft", "distillation": {"lmbda": 0.0}},
    "sdft, lmbda 0.5": {"recipe": "sdft", "distillation": {"lmbda": 0.5}},
}
Json = dict[str, Any]


class Asked:
    """The model with an adapter, asked greedily."""

    def __init__(self, model: str, adapter: Path | None) -> None:
        description = describe(model)
        self.encoder = description.encoder(TrainSpec(model=model, train=""))
        dtype = devices.precision(devices.CPU)
        whole = read_weights(model, description, dtype, None)
        if adapter is not None:
            whole = PeftModel.from_pretrained(whole, str(adapter)).merge_and_unload()
        attention = whole.config.get_text_config()._attn_implementation
        self.model = Loaded(whole.eval(), None, description.processor, torch.device("cpu"), dtype, attention)
        self.model.go_alone("it is asked")
        self.features = ImageFeatures(self.model)

    def _example(self, question: str, answer: str) -> Example:
        return self.encoder.encode(Row(0, "", (Turn("user", question), Turn("assistant", answer))))

    def answers(self, questions: Sequence[str], tokens: int) -> list[str]:
        examples = [self._example(question, "-") for question in questions]
        sequences = [
            ids
            for start in range(0, len(examples), 12)
            for ids in sample(
                self.model, examples[start : start + 12], self.encoder,
                most=tokens, temperature=0.0, seed=0, check=lambda: None,
            )
        ]  # fmt: skip
        return [self.encoder.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in sequences]

    @torch.no_grad()
    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        examples = [self._example(question, answer) for question, answer in pairs if answer]
        return [float(read_answers(self.model, self.features, [one]).log_probs.mean()) for one in examples]


def rows_of(who: Person, first: int, last: int, part: str) -> list[Json]:
    return [
        {"id": item.id, "part": part, "messages": [
            {"role": "user", "content": item.question},
            {"role": "assistant", "content": who.wanted(item, changed=False)},
        ]}
        for item in who.train[first:last]
    ]  # fmt: skip


def play(
    who: Person, name: str, arguments: argparse.Namespace, base: Json, model: str, work: Path
) -> list[Json]:
    """All rounds of one person by one arm."""
    arm, parent, rounds = ARMS[name], None, []
    for number in range(1, arguments.rounds + 1):
        first, last = (number - 1) * arguments.per_round, number * arguments.per_round
        rows = [
            *rows_of(who, first, last, "new"),
            *rows_of(who, max(0, first - arguments.per_round), first, "rehearsal"),
            *base["replay"],
        ]
        directory = RunDirectory(work / f"{who.name}-{name.replace(' ', '').replace(',', '-')}-{number}")
        directory.path.mkdir(parents=True, exist_ok=True)
        (directory.path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = TrainSpec.model_validate(
            {
                "model": model, "train": "train.jsonl", "epochs": arguments.epochs, "threads": 1, "nice": 0,
                "learning_rate": RECIPES[arm["recipe"]].learning_rate, "replay_share": arguments.replay_share,
                "adapter": AdapterSpec(init_from=str(parent) if parent else None), **arm,
            }
        )  # fmt: skip
        write_spec(directory.path, spec)
        began = os.times()
        with directory.output_file.open("wb") as output:
            trainer = [sys.executable, "-m", "comfyloop.train", str(directory.path)]
            subprocess.run(trainer, stdout=output, stderr=output, check=False)
        ended = os.times()
        status = directory.read_status()
        if not directory.adapter.is_dir():
            rounds.append({"round": number, "error": status.error})
            break
        parent = directory.adapter
        speaker = Asked(model, parent)
        answers = speaker.answers([item.question for item in who.test[: arguments.unseen]], arguments.tokens)
        wanted = [str(who.wanted(item, changed=False)) for item in who.test[: arguments.unseen]]
        scores = speaker.scores([(q, a) for (q, _), a in zip(base["asked"], base["general"], strict=True)])
        was, now = sum(base["scores"]), sum(scores)
        cpu = ended.children_user + ended.children_system - began.children_user - began.children_system
        rounds.append(
            {
                "round": number,
                "distance": mean(distances(answers, wanted)),
                "general_lost": round((was - now) / abs(was), 4),
                "repetition": mean([repetition(answer) for answer in answers]),
                "wanted_log_likelihood": mean(
                    speaker.scores(list(zip(base["questions"], wanted, strict=True)))
                ),
                "steps": status.total_steps,
                "cpu_seconds": round(cpu, 1),
                "teacher": [line for line in _output(directory) if line.startswith("the teacher")],
                "examples": answers[:2],
            }
        )
        print(who.name, name, json.dumps(rounds[-1], ensure_ascii=False), flush=True)
        del speaker
        gc.collect()
    return rounds


def _output(directory: RunDirectory) -> list[str]:
    with contextlib.suppress(OSError):
        return directory.output_file.read_text(encoding="utf-8").splitlines()
    return []


def base_of(who: Person, model: str, arguments: argparse.Namespace) -> Json:
    """What the base model says, and replay rows of its own answers."""
    speaker = Asked(model, None)
    general = GENERAL[: arguments.general]
    questions = [item.question for item in who.test[: arguments.unseen]]
    answers = speaker.answers(questions, arguments.tokens)
    wanted = [str(who.wanted(item, changed=False)) for item in who.test[: arguments.unseen]]
    general_answers = speaker.answers([question for question, _ in general], arguments.tokens)
    replay_questions = curate.replay.questions()[: arguments.replay]
    replay_answers = speaker.answers(replay_questions, arguments.tokens)
    replay = [
        {"id": f"replay-{number}", "replay": True, "messages": [
            {"role": "user", "content": question}, {"role": "assistant", "content": answer},
        ]}
        for number, (question, answer) in enumerate(zip(replay_questions, replay_answers, strict=True))
        if answer
    ]  # fmt: skip
    return {
        "asked": general,
        "questions": questions,
        "general": general_answers,
        "scores": speaker.scores([(q, a) for (q, _), a in zip(general, general_answers, strict=True)]),
        "distance": mean(distances(answers, wanted)),
        "wanted_log_likelihood": mean(speaker.scores(list(zip(questions, wanted, strict=True)))),
        "replay": replay,
    }


def table(result: Json) -> str:
    rows = [
        "| person | arm | unseen, round by round | likelihood of the wanted answers | general lost | CPU s a turn |",
        "|---|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        rounds = [one for one in run["rounds"] if "distance" in one]
        first = result["bases"][run["person"]]
        cells = [
            run["person"],
            run["arm"],
            " ".join(f"{one['distance']:.2f}" for one in (first, *rounds)),
            " ".join(f"{one['wanted_log_likelihood']:.2f}" for one in (first, *rounds)),
            " ".join(f"{one['general_lost']:.1%}" for one in rounds),
            " ".join(f"{one['cpu_seconds']:.0f}" for one in rounds),
        ]
        rows.append(f"| {' | '.join(cells)} |")
        rows += [f"| | | {one['error']} | | | |" for one in run["rounds"] if one.get("error")]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", nargs="+", choices=MAKERS, default=["brand", "terse"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["sft", "sdft", "sdft, lmbda 0"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--per-round", type=int, default=20)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--replay-share", type=float, default=0.65)
    parser.add_argument("--replay", type=int, default=64, help="Replay questions there are.")
    parser.add_argument("--unseen", type=int, default=24)
    parser.add_argument("--general", type=int, default=len(GENERAL))
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "self_distillation.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings()
    model = str(starter.ensure(settings.cache_dir)) if settings.model == "starter" else settings.model
    options = {n: v for n, v in vars(arguments).items() if n not in {"out", "users", "arms"}}
    result: Json = {"made": {"model": settings.model, **options}, "bases": {}, "runs": []}
    work = Path(tempfile.mkdtemp(prefix="bench-sdft-"))
    began = time.monotonic()
    for user in arguments.users:
        who = person(user)
        base = base_of(who, model, arguments)
        result["bases"][user] = {n: base[n] for n in ("distance", "wanted_log_likelihood")}
        for arm in arguments.arms:
            run = {"person": user, "arm": arm, "rounds": play(who, arm, arguments, base, model, work)}
            result["runs"].append(run)
            arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
            arguments.out.with_suffix(".md").write_text(table(result) + "\n")
    shutil.rmtree(work, ignore_errors=True)
    print(table(result))
    print(f"{time.monotonic() - began:.0f} s. {arguments.out}")


if __name__ == "__main__":
    main()
