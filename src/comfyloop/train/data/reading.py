"""Reads the rows of a data file as a recipe's samples, before the first step.

Every unusable row is reported with its file and line; it is never replaced by another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from comfyloop.errors import ComfyLoopError
from comfyloop.formats import BadRow, Row, UnusableRow
from comfyloop.train.data.encode import Encoder
from comfyloop.train.data.examples import Example
from comfyloop.train.data.rows import read_rows, refuse_or_skip
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.text import TrainSpec

_Item = TypeVar("_Item")
_PARTNERS_TRIED = 16


@dataclass(frozen=True)
class Pair:
    """Two answers to the same conversation; they share its images."""

    chosen: Example
    rejected: Example


@dataclass(frozen=True)
class Demonstrated:
    """An answer to learn, and the same with the answer shown in the conversation (None for a replay sample)."""

    example: Example
    teacher: Example | None


DEMONSTRATION = """

This is an example for a response to the question:
{answer}

Now answer with a response of your own."""
"""What the teacher is told after the question; the paper goes on "including the thinking process"."""


@dataclass(frozen=True)
class Labelled:
    """A wanted or unwanted answer, and the same conversation with another sample's answer."""

    example: Example
    wanted: bool
    mismatched: Example


def read_examples(
    directory: RunDirectory, file: str, encoder: Encoder, spec: TrainSpec, log: RunLog, control: Control
) -> list[Example]:
    """Rows with answers to learn. Raises DataError that names every line that is not one."""

    def make(row: Row) -> Example:
        return _wanted(encoder, row)

    examples = [example for _, example in _read(directory, file, make, spec, log, control)]
    _told(file, log, examples)
    return examples


def _wanted(encoder: Encoder, row: Row) -> Example:
    if row.label is False:
        raise UnusableRow(
            "its label is false: its answer is not to be learnt (recipe = kto would unlearn it)"
        )
    return encoder.encode(row)


def read_demonstrated(
    directory: RunDirectory, file: str, encoder: Encoder, spec: TrainSpec, log: RunLog, control: Control
) -> list[Demonstrated]:
    """Rows with answers to show to a teacher. Raises DataError that names every line that is not one."""

    def make(row: Row) -> Demonstrated:
        example = _wanted(encoder, row)
        if row.part == "replay":
            return Demonstrated(example, None)
        try:
            return Demonstrated(example, encoder.encode(with_demonstration(row)))
        except UnusableRow as error:
            raise UnusableRow(f"with its answer shown to the teacher: {error}") from None

    items = [item for _, item in _read(directory, file, make, spec, log, control)]
    _told(file, log, [item.example for item in items])
    return items


def with_demonstration(row: Row) -> Row:
    """The row with its answer in the question already, in the words of Shenfeld et al. (2026)."""
    *before, question, answer = row.turns
    if question.role != "user":
        raise UnusableRow("no question comes right before its answer")
    content = (*question.parts, DEMONSTRATION.format(answer=row.answer.strip()))
    return replace(row, turns=(*before, replace(question, content=content), answer))


def read_pairs(
    directory: RunDirectory, file: str, encoder: Encoder, spec: TrainSpec, log: RunLog, control: Control
) -> list[Pair]:
    """Rows with a `rejected_response`. Raises DataError that names every line that is not one."""

    def make(row: Row) -> Pair:
        if row.rejected is None:
            raise UnusableRow("it has no rejected_response, which recipe = dpo compares its answer with")
        if row.rejected.strip() == row.answer.strip():
            raise UnusableRow("its rejected_response is the same as its answer")
        chosen = encoder.encode(row)
        try:
            return Pair(chosen, encoder.with_answer(row, chosen, row.rejected))
        except UnusableRow as error:
            raise UnusableRow(f"of its rejected_response: {error}") from None

    pairs = [pair for _, pair in _read(directory, file, make, spec, log, control)]
    _told(file, log, [example for pair in pairs for example in (pair.chosen, pair.rejected)], len(pairs))
    return pairs


def read_labelled(
    directory: RunDirectory, file: str, encoder: Encoder, spec: TrainSpec, log: RunLog, control: Control
) -> list[Labelled]:
    """Rows with a `label`. Raises DataError that names every line that is not one.

    Each is also given the answer of the row before it (the last one's for the first), for the estimate of the
    divergence; where that is the same answer, or does not fit, the one before that, and so on.
    """

    def make(row: Row) -> Example:
        if row.label is None:
            raise UnusableRow("it has no label, which says for recipe = kto whether its answer was wanted")
        return encoder.encode(row)

    rows = _read(directory, file, make, spec, log, control)
    labelled, alone = [], 0
    for number, (row, example) in enumerate(rows):
        control.check()
        partner = _partner(encoder, row, example, [r.answer for r, _ in rows], number)
        alone += partner is None
        labelled.append(Labelled(example, bool(row.label), partner or example))
    _told(file, log, [item.example for item in labelled])
    if len({item.wanted for item in labelled}) == 1 and file != spec.holdout:
        log.warn(
            f"All {len(labelled)} labels of {file.rpartition('/')[2]} are {str(labelled[0].wanted).lower()}: kto "
            "compares wanted answers with unwanted ones, and with one kind alone it only pushes all of them one way."
        )
    if alone:
        log.say(f"{alone} samples have no other answer beside them: the divergence is estimated on their own")
    return labelled


def _partner(
    encoder: Encoder, row: Row, example: Example, answers: Sequence[str], number: int
) -> Example | None:
    for back in range(1, min(len(answers), _PARTNERS_TRIED + 1)):
        other = answers[number - back]
        if other.strip() == row.answer.strip():
            continue
        try:
            return encoder.with_answer(row, example, other)
        except UnusableRow:  # too long together, for one
            continue
    return None


def _read(
    directory: RunDirectory,
    file: str,
    make: Callable[[Row], _Item],
    spec: TrainSpec,
    log: RunLog,
    control: Control,
) -> list[tuple[Row, _Item]]:
    path = directory.resolve(file)
    rows, bad = read_rows(path, log.say)
    items = []
    for row in rows:
        control.check()
        try:
            items.append((row, make(row)))
        except UnusableRow as error:
            bad.append(BadRow(row.line, row.id, str(error), row.item))
        except (ComfyLoopError, MemoryError):
            raise
        except Exception as error:  # the code of the model's processor and tokenizer raises what it likes
            reason = f"the model's own code fails on it ({type(error).__name__}: {error})"
            bad.append(BadRow(row.line, row.id, reason, row.item))
    bad.sort(key=lambda b: b.line)
    held_out = file == spec.holdout
    refuse_or_skip(path, len(items), bad, spec.skip_bad, spec.max_bad_share, may_be_none=held_out)
    log.left_out(path, bad)
    if held_out:
        repeated = len(
            {_question_key(row) for row, _ in items}
            & {_question_key(row) for row in _rows_of(directory, spec)}
        )
        if repeated:
            log.warn(
                f"{repeated} of the {len(items)} rows of the hold-out {path.name} ask what rows of the training data "
                "ask: what is measured on them says nothing about what is new."
            )
    return items


def _rows_of(directory: RunDirectory, spec: TrainSpec) -> list[Row]:
    return read_rows(directory.resolve(spec.train))[0]


def _question_key(row: Row) -> tuple[object, ...]:
    """A key that is equal for rows that ask the same question."""
    question = tuple((turn.role, turn.parts) for turn in row.turns[:-1] if turn.role != "system")
    return (question, tuple(map(str, row.images)))


def _told(file: str, log: RunLog, examples: Sequence[Example], samples: int | None = None) -> None:
    name, tokens = file.rpartition("/")[2], sum(map(len, examples))
    log.say(f"{name}: {len(examples) if samples is None else samples} samples, {tokens} tokens")


def fingerprint(spec: TrainSpec, examples: Iterable[Example], labels: Iterable[bool] = ()) -> str:
    """A hash of everything that a checkpoint depends on: the data, and every value that affects the loss."""
    spec_json = spec.at_once().model_dump_json(
        exclude={
            "train",
            "holdout",
            "threads",
            "memory_gb",
            "step_aside_after",
            "nice",
            "save_steps",
            "eval_steps",
            "early_stopping_patience",
            "feature_cache_dir",
            "feature_cache_gb",
            "world_size",
            "rank_timeout",
        }
    )
    digest = hashlib.sha256(spec_json.encode())
    for example in examples:
        digest.update(example.input_ids.numpy().tobytes() + example.answer.numpy().tobytes())
        digest.update(example.pixels.digest if example.pixels else b"")
    digest.update(bytes(labels))
    return digest.hexdigest()
