"""An ms-swift command line as a training spec: 4.x as it is today, and the flags of 2024 by their new names.

What the command does not say has ms-swift's default, not ours, so that the run is the one that the command
asked for. A flag that has no meaning here is named with the reason; none is passed over in silence. Imports no
torch.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from comfyloop.errors import InvalidInput
from comfyloop.train.spec import TrainSpec
from comfyloop.train.swift_flag_table import HONOURED, NEEDLESS, OLD, REFUSED, RENAMED, Unmeant, integer, yes

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class FromSwift:
    """What became of a command line.

    Attributes:
        spec: `train` and `holdout` are the file names that the run directory will have.
        datasets, holdouts: The data files that the command names.
        needless: Flag -> why it makes no difference.
        refused: Flag -> why it cannot be honoured.
        renamed: Old flag -> today's.
    """

    spec: TrainSpec
    datasets: tuple[str, ...]
    holdouts: tuple[str, ...]
    needless: dict[str, str]
    refused: dict[str, str]
    renamed: dict[str, str]


def from_swift(command: str, *, model: str | None = None) -> FromSwift:
    """Read an ms-swift command line.

    Args:
        command: `swift sft --model … --dataset …` or `swift rlhf --rlhf_type dpo …`, on one line or several.
        model: A model directory or hub id in place of the command's.

    Raises:
        InvalidInput: It is no such command, names no model or no data, or a value is not one that the flag takes.
    """
    verb, flags, refused = _split(command)
    renamed = {name: RENAMED[name] for name in flags if name in RENAMED}
    given: dict[str, list[str]] = {}
    for name, words in flags.items():
        given.setdefault(RENAMED.get(name, name), []).extend(words)
    if model is not None:
        given["model"] = [model]
        given.pop("model_type", None)
    fields: dict[str, Any] = {}
    needless: dict[str, str] = {}
    recipe = _recipe(verb, given)
    wanted = {**_defaults(recipe, old=bool(OLD & flags.keys())), **given}
    _make_up(wanted, needless)
    for name, words in wanted.items():
        if name in _TAKEN:
            continue
        if name in NEEDLESS:
            needless[name] = NEEDLESS[name]
        elif name in HONOURED:
            place, convert = HONOURED[name]
            try:
                _put(fields, place, convert(words))
            except Unmeant as reason:
                refused[name] = str(reason)
            except (ValueError, IndexError):
                raise InvalidInput(
                    f"--{name} {' '.join(words)} is not a value that --{name} takes."
                ) from None
        else:
            refused[name] = REFUSED.get(name, "ComfyLoop has nothing like it")
    datasets, holdouts = tuple(given.get("dataset", ())), tuple(given.get("val_dataset", ()))
    if not wanted.get("model"):
        gone = f" (the model type {given['model_type'][0]} is only a name)" if "model_type" in given else ""
        raise InvalidInput(
            f"The command names no model{gone}.", "Add --model with a model directory or a hub id."
        )
    if not datasets:
        raise InvalidInput("The command names no data.", "Add --dataset with a .jsonl file.")
    told = fields | {"recipe": recipe, "train": "train.jsonl"}
    told |= {"holdout": "holdout.jsonl"} if holdouts else {}
    try:
        spec = TrainSpec.model_validate(told)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidInput(f"The command asks for what cannot be trained: {problems}.") from None
    return FromSwift(spec, datasets, holdouts, needless, refused, renamed)


# --- the command line ---------------------------------------------------------------------------------------


def _split(command: str) -> tuple[str, dict[str, list[str]], dict[str, str]]:
    """`sft`, `pt` or `rlhf`; each flag's values; variables and words that mean nothing here, with reasons."""
    try:
        # a comment begins with a word: shlex would cut `data.jsonl#500` short
        uncommented = re.sub(r"(?m)(^|\s)#.*$", " ", command)
        words = shlex.split(uncommented.replace("\\\n", " "))
    except ValueError as error:
        raise InvalidInput(f"The command cannot be read: {error}.", "Check its quotes.") from None
    refused: dict[str, str] = {}
    while words and (variable := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", words[0])):
        _variable(variable[1], variable[2], words, refused)
        words.pop(0)
    verbs = [i for i, word in enumerate(words[:5]) if word in {"sft", "rlhf", "dpo", "kto", "pt"}]
    if not verbs or not any("swift" in word for word in words[: verbs[0]]):
        raise InvalidInput(
            f"{' '.join(words[:3]) or 'nothing'} … is no training command of ms-swift.",
            "Give one that begins with `swift sft` or `swift rlhf`.",
        )
    if "megatron" in " ".join(words[: verbs[0]]):
        raise InvalidInput("Megatron commands are not understood.", "Give the `swift sft` form of it.")
    verb, rest = words[verbs[0]], words[verbs[0] + 1 :]
    flags: dict[str, list[str]] = {}
    name = ""
    for word in rest:
        if flag := re.fullmatch(r"--([A-Za-z][\w-]*)(?:=(.*))?", word, flags=re.DOTALL):
            name = flag[1].replace("-", "_")
            flags[name] = [] if flag[2] is None else [flag[2]]  # said twice: the last one counts
        elif name:
            flags[name].append(word)
        else:
            raise InvalidInput(
                f"{word!r} after `swift {verb}` belongs to no flag.", "Give it a flag, or drop it."
            )
    return verb, flags, refused


def _variable(name: str, value: str, words: list[str], refused: dict[str, str]) -> None:
    """Variables before the command that ms-swift reads as settings."""
    if name in {"MAX_PIXELS", "max_pixels"}:
        words += ["--max_pixels", value]
    elif name in {"NPROC_PER_NODE", "NNODES"} and value != "1":
        refused[name] = "say how many processes train with the settings of distributed training"
    elif name not in {"CUDA_VISIBLE_DEVICES", "NPROC_PER_NODE", "NNODES", "OMP_NUM_THREADS", "USE_HF"}:
        refused[name] = "a variable has to be set for the run itself"


def _recipe(verb: str, given: dict[str, list[str]]) -> str:
    if verb == "pt":
        raise InvalidInput(
            "`swift pt` learns whole texts, and ComfyLoop learns answers.", "Give the data as conversations."
        )
    kind = given.get("rlhf_type", ["dpo"])[-1] if verb == "rlhf" else verb
    if kind not in {"sft", "dpo", "kto"}:
        raise InvalidInput(f"ComfyLoop has no recipe like rlhf_type {kind}.", "It has sft, dpo and kto.")
    return kind


# --- values -------------------------------------------------------------------------------------------------


def _defaults(recipe: str, *, old: bool) -> dict[str, list[str]]:
    """What ms-swift does when it is not told: version 4.6, or 2.x for a command of 2024."""
    told = {
        "learning_rate": "1e-4",
        "num_train_epochs": "1" if old else "3",
        "lr_scheduler_type": "cosine",
        "warmup_ratio": "0.05" if old else "0",
        "weight_decay": "0.1",
        "max_grad_norm": "1.0" if not old else "0.5",
        "per_device_train_batch_size": "1",
        "lora_rank": "8",
        "lora_alpha": "32",
        "lora_dropout": "0.05",
        "target_modules": "all-linear" if not old else "DEFAULT",
        "gradient_checkpointing": "true",
        "loss_scale": "default" if recipe == "sft" else "last_round",
        "save_steps": "500" if not old else "50",
        "seed": "42",
    }
    return {name: [value] for name, value in told.items()} | ({"max_length": ["2048"]} if old else {})


def _make_up(wanted: dict[str, list[str]], needless: dict[str, str]) -> None:
    """What depends on other flags: accumulation, looks at the hold-out, quantisation."""
    batch = _value("per_device_train_batch_size", wanted["per_device_train_batch_size"], integer)
    wanted.setdefault("gradient_accumulation_steps", [str(max(1, math.ceil(16 / max(1, batch))))])
    wanted.setdefault("eval_steps", wanted["save_steps"])
    if "use_4bit" in wanted and _value("use_4bit", wanted.pop("use_4bit"), yes):
        wanted.setdefault("quant_bits", ["4"])
    if wanted.get("quant_bits") in (["0"], ["None"]):
        del wanted["quant_bits"]
    if "quant_bits" in wanted:
        wanted.setdefault("quant_method", ["bnb"])
    if "use_flash_attn" in wanted and _value("use_flash_attn", wanted.pop("use_flash_attn"), yes):
        wanted.setdefault("attn_impl", ["flash_attention_2"])
    if "target_regex" in wanted:
        wanted["target_modules"] = wanted.pop("target_regex")
    for name in ("template", "model_type"):
        if name in wanted:
            needless[name] = "the model's own class and chat template are used"
            del wanted[name]


def _value(name: str, words: Sequence[str], convert: Callable[[Sequence[str]], _Value]) -> _Value:
    """Raises InvalidInput when the words are no value of that flag, Unmeant when it means nothing here."""
    try:
        return convert(words)
    except Unmeant:
        raise
    except (ValueError, OverflowError, RecursionError):
        raise InvalidInput(f"--{name} {' '.join(words)} is not a value that --{name} takes.") from None


def _put(fields: dict[str, Any], place: str, value: Any) -> None:
    *outer, name = place.split(".")
    for key in outer:
        fields = fields.setdefault(key, {})
    fields[name] = value


_TAKEN = {"dataset", "val_dataset", "rlhf_type"}


def read_command(argument: str) -> str:
    """A command, or what the file of that name holds (a script with one)."""
    path = Path(argument)
    if "\n" not in argument and len(argument) < 1024 and path.is_file():
        return path.read_text(encoding="utf-8")
    return argument
