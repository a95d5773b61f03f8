"""The rows of a data file as examples, read before a step is taken; every line that cannot be one is named."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from comfyloop.train.control import Control
from comfyloop.train.encode import Encoder, Example, encode_rows
from comfyloop.train.log import RunLog
from comfyloop.train.rows import read_rows, refuse_or_skip
from comfyloop.train.spec import TrainSpec
from comfyloop.train.status import RunDirectory


def read_examples(
    directory: RunDirectory, file: str, encoder: Encoder, spec: TrainSpec, log: RunLog, control: Control
) -> list[Example]:
    """All rows of a file as examples. Raises DataError that names every line that cannot be one."""
    path = directory.resolve(file)
    rows, bad = read_rows(path)
    examples = encode_rows(encoder, rows, bad, each=control.check)
    refuse_or_skip(path, len(examples), bad, spec.skip_bad, spec.max_bad_share)
    for row in bad:
        log.say(f"left out {path.name}:{row.line} (sample {row.id}): {row.reason}")
    log.say(f"{path.name}: {len(examples)} samples, {sum(map(len, examples))} tokens")
    return examples


def fingerprint(spec: TrainSpec, examples: Sequence[Example]) -> str:
    """What a checkpoint depends on: the data, and every value that moves the loss."""
    told = spec.model_dump_json(
        exclude={"train", "holdout", "threads", "memory_gb", "nice", "save_steps", "eval_steps"}
    )
    digest = hashlib.sha256(told.encode())
    for example in examples:
        digest.update(example.input_ids.numpy().tobytes() + example.answer.numpy().tobytes())
    return digest.hexdigest()
