"""General questions with the base model's own answers, trained beside the corrections against forgetting.

Measured: without them a style learnt from product texts leaks into "why is the sky blue"; with one sample in
four of this kind it does not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.resources import files
from itertools import islice, zip_longest
from pathlib import Path

from comfyloop.curate.groups import group_of
from comfyloop.curate.samples import Source, make
from comfyloop.durable import write_whole
from comfyloop.records import Message, Sample
from comfyloop.texts import whole_sentences

Ask = Callable[[Sequence[str]], Sequence[str]]
"""Asks the base model (greedily, without a system prompt): questions in, answers in the same order out."""

AskAbout = Callable[[Sequence[Message]], Sequence[str]]
"""The same, of messages with pictures."""

ORIGIN = "replay"


def questions() -> tuple[str, ...]:
    """The shipped questions, in an order that mixes their kinds: any first few are a fair choice."""
    kinds: dict[str, list[str]] = json.loads(
        files("comfyloop.curate").joinpath("general_questions.json").read_text(encoding="utf-8")
    )
    longest = max(map(len, kinds.values()))
    return tuple(asked[i] for i in range(longest) for asked in kinds.values() if i < len(asked))


def answered() -> tuple[tuple[str, str], ...]:
    """Shipped questions with short answers, in an order that mixes their kinds: facts, arithmetic, instructions, JSON,
    calls, refusals. What a model knows is lost in few words first: measured after two turns of a brand's captions, the
    chance of right answers on 72 others fell by 2.9 points with none of these, by 1.5 with half of the replay made up
    of them, and nothing less was learned."""
    rows: list[dict[str, str]] = json.loads(
        files("comfyloop.curate").joinpath("general_answers.json").read_text(encoding="utf-8")
    )
    return tuple((row["question"], row["answer"]) for row in rows)


def every_question() -> tuple[str, ...]:
    return (*questions(), *(question for question, _ in answered()))


def most() -> int:
    """How many there are at all."""
    return len(every_question())


def needed(train: int, share: float) -> int:
    """How many replay samples make up `share` of all when added to `train` others."""
    return math.ceil(round(train * share / (1 - share), 9))


def samples(project: str, base_model: str, ask: Ask, cache_dir: Path, count: int) -> list[Sample]:
    """Up to `count` replay samples, every second one with a short answer that is given; what the base model is asked,
    it is asked once, and its answer remembered.

    Args:
        base_model: What tells base models apart (name or hash): the key of the cache.
        ask: Called with all questions that are not in the cache yet, at most once.
        cache_dir: Where the answers are kept, one JSON file a base model.
    """
    short = answered()[: count // 2]
    asked = questions()[: count - len(short)]
    longer = _answered(project, base_model, {q: Message.of("user", q) for q in asked}, ask, cache_dir)
    short_ones = [_sample(project, Message.of("user", question), answer) for question, answer in short]
    return [sample for both in zip_longest(longer, short_ones) for sample in both if sample]


def of_pictures(
    project: str,
    base_model: str,
    ask: AskAbout,
    cache_dir: Path,
    pictures: Sequence[str],
    shipped: Sequence[str],
    count: int,
) -> list[Sample]:
    """Up to `count` general questions about pictures: no version is to lose sight of them.

    Args:
        pictures: SHA-256 of the project's own pictures, each of which is asked about in turn.
        shipped: Those of `shipped_pictures`, asked about in between.
    """
    turns = zip_longest(_pairs(pictures), _pairs(shipped))
    asked = islice((pair for both in turns for pair in both if pair), count)
    wanted = {f"{sha} {question}": Message.of("user", question, [sha]) for sha, question in asked}
    return _answered(project, base_model, wanted, lambda keys: ask([wanted[key] for key in keys]), cache_dir)


def forget(cache_dir: Path, pictures: Collection[str]) -> None:
    """What base models said about these pictures is not remembered any longer."""
    for cache in (cache_dir / "replay").glob("*.json"):
        answers = _load(cache)
        kept = {key: answer for key, answer in answers.items() if key.partition(" ")[0] not in pictures}
        if len(kept) < len(answers):
            _save(cache, kept)


def _pairs(pictures: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each picture with each question; no picture comes twice before all have come."""
    asked = picture_questions()
    for round in range(len(asked)):
        for place, picture in enumerate(pictures):
            yield picture, asked[(place + round) % len(asked)]


def shipped_pictures() -> tuple[bytes, ...]:
    """Plain pictures of everyday things: a model that sees is asked about them whatever the project is about.

    Noto Emoji (Google, Apache-2.0) of npm's @iconify-json/noto 1.2.9, drawn at 192 pixels on white; none of them is
    one of the gate's.
    """
    folder = files("comfyloop.curate").joinpath("replay_pictures")
    return tuple(
        entry.read_bytes()
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.is_file()
    )


def picture_questions() -> tuple[str, ...]:
    text = files("comfyloop.curate").joinpath("picture_questions.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))


def _answered(
    project: str, base_model: str, wanted: dict[str, Message], ask: Ask, cache_dir: Path
) -> list[Sample]:
    """Samples of questions, by the keys under which the answers are remembered."""
    cache = cache_dir / "replay" / f"{hashlib.sha256(base_model.encode()).hexdigest()[:32]}.json"
    answers = _shipped_answers(base_model) | _load(cache)
    if missing := [key for key in wanted if key not in answers]:
        given = ask(missing)
        answers |= {key: whole_sentences(answer) for key, answer in zip(missing, given, strict=True)}
        _save(cache, answers)
    return [_sample(project, question, answers[key]) for key, question in wanted.items() if answers[key]]


def _sample(project: str, question: Message, answer: str) -> Sample:
    source = Source(project, (), ORIGIN, ORIGIN)
    return make("sft", (question, Message.of("assistant", answer)), source, slice="general", replay=True)


def choose(replay: Sequence[Sample], others: Sequence[Sample], count: int) -> tuple[Sample, ...]:
    """The first `count` that no person has given another answer to, in training or in hold-out."""
    if not replay or not count:
        return ()
    asked = {_asked(sample) for sample in others}
    return tuple([sample for sample in replay if _asked(sample) not in asked][:count])


def _asked(sample: Sample) -> tuple[tuple[str, ...], str]:
    """Which pictures are asked about, and what. Of one picture much can be asked, though all of it is one group."""
    pictures = tuple(sha for message in sample.prompt for sha in message.images)
    return pictures, group_of([Message.of(message.role, message.text) for message in sample.prompt])


def _shipped_answers(base_model: str) -> dict[str, str]:
    """What a base model that everybody has said when it was asked here, by the same keys: nobody need wait for it.

    Made by `tools/replay_answers.py`.
    """
    shipped = files("comfyloop.curate").joinpath("replay_answers.json").read_text(encoding="utf-8")
    answers: dict[str, str] = json.loads(shipped).get(base_model, {})
    return answers


def _load(cache: Path) -> dict[str, str]:
    try:
        found = json.loads(cache.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a torn cache is only a reason to ask again
        return {}
    return found if isinstance(found, dict) else {}


def _save(cache: Path, answers: dict[str, str]) -> None:
    write_whole(cache, json.dumps(answers, indent=1), "ascii")  # half characters, too
