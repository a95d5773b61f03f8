"""Converts an ms-swift command line to a training spec: today's 4.x, and the flags of 2024 by their new names.

Missing flags have ms-swift's defaults, not ours, so that the run is the one that the command asked for; `differs`
lists the exceptions. The result is reported for every flag; none is ignored silently. Imports no torch.
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

from comfyloop.complaints import in_words
from comfyloop.declared import listed
from comfyloop.errors import InvalidInput
from comfyloop.recipes import RECIPES
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.swift.flags import (
    HONOURED,
    MODEL_TYPES,
    MODEL_TYPES_OF_OWN_CODE,
    NEEDLESS,
    OLD,
    REFUSED,
    RENAMED,
    Other,
    Unmeant,
    integer,
    one,
    refuse_other_learning,
    yes,
)

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class FromSwift:
    """The result of converting a command line.

    Attributes:
        spec: `train` and `holdout` are the file names that the run directory will have.
        datasets, holdouts: The data files that the command names.
        output: The directory that it names for its output; None: none.
        honoured: Flag of the command -> what it has become.
        differs: Flag that the command does not have -> how ours differs from ms-swift's default.
        needless: Flag -> why it makes no difference.
        refused: Flag -> why it cannot be honoured.
        renamed: Old flag -> today's.
    """

    spec: TrainSpec
    datasets: tuple[str, ...]
    holdouts: tuple[str, ...]
    output: str | None
    honoured: dict[str, str]
    differs: dict[str, str]
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
    words_of: dict[str, list[str]] = {}
    for name, words in flags.items():
        words_of.setdefault(RENAMED.get(name, name), []).extend(words)
    fields: dict[str, Any] = {}
    needless: dict[str, str] = {}
    honoured: dict[str, str] = {}
    recipe = _recipe(verb, words_of)
    try:
        refuse_other_learning(recipe, words_of)
    except Other as reason:
        raise InvalidInput(f"The command asks for {reason}.", "Train it with ms-swift itself.") from None
    except ValueError:
        raise InvalidInput("--use_chat_template takes true or false.") from None
    if not _has_losses(recipe):
        words_of.pop("loss_type", None)  # the one that there is
    old = bool(OLD & flags.keys())
    with_defaults = {**_defaults(recipe, words_of, old=old), **words_of}
    _name_model(with_defaults, model, honoured)
    _make_up(with_defaults, needless, honoured)
    for name, words in with_defaults.items():
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
            except Other as reason:
                raise InvalidInput(
                    f"The command asks for --{name} {' '.join(words)}, and {reason}.",
                    "Train it with ms-swift itself.",
                ) from None
            except (ValueError, IndexError):
                raise InvalidInput(
                    f"--{name} {' '.join(words)} is not a value that --{name} takes."
                ) from None
        else:
            refused[name] = REFUSED.get(name, "ComfyLoop has nothing like it")
    datasets, holdouts = tuple(words_of.get("dataset", ())), tuple(words_of.get("val_dataset", ()))
    if not datasets:
        raise InvalidInput("The command names no data.", "Add --dataset with a .jsonl file.")
    spec_fields = fields | {"recipe": recipe, "train": "train.jsonl"}
    spec_fields |= {"holdout": "holdout.jsonl"} if holdouts else {}
    try:
        spec = TrainSpec.model_validate(spec_fields)
    except ValidationError as error:
        wrong = in_words(error.errors(), "together", spec_fields)
        raise InvalidInput(f"The command asks for what cannot be trained: {wrong}.") from None
    output = _value("output_dir", words_of["output_dir"], one) if "output_dir" in words_of else None
    honoured |= _became(spec, flags, words_of, refused)
    differs = _differences(words_of, old=old)
    return FromSwift(spec, datasets, holdouts, output, honoured, differs, needless, refused, renamed)


def _became(
    spec: TrainSpec, flags: dict[str, list[str]], words_of: dict[str, list[str]], refused: dict[str, str]
) -> dict[str, str]:
    """The spec's value of each honoured flag, under the command's name for it."""
    descriptions = {
        "dataset": "trained on",
        "val_dataset": "held out, never trained on",
        "output_dir": "the run directory",
    }
    became: dict[str, str] = {}
    for flag in flags:
        name = RENAMED.get(flag, flag)
        if name in descriptions and words_of.get(name):
            became[flag] = f"{' '.join(words_of[name])}, {descriptions[name]}"
        elif name == "rlhf_type" or (name == "loss_type" and not _has_losses(spec.recipe)):
            became[flag] = f"recipe = {spec.recipe}"
        elif name in HONOURED and name not in refused:
            place = HONOURED[name][0]
            value: Any = spec
            for part in place.split("."):
                value = getattr(value, part)
            became[flag] = f"{place} = {value}"
    return became


# --- the command line ---------------------------------------------------------------------------------------


def _split(command: str) -> tuple[str, dict[str, list[str]], dict[str, str]]:
    """`sft`, `pt` or `rlhf`; each flag's values; unsupported variables and words, with reasons."""
    try:
        # a comment begins with a word: shlex would cut `data.jsonl#500` short
        uncommented = re.sub(r"(?m)(^|\s)#.*$", " ", command)
        words = shlex.split(_on_one_line(uncommented))
        if len(words) == 1 and " " in words[0]:  # the whole command in quotes
            words = shlex.split(_on_one_line(words[0]))
    except ValueError as error:
        raise InvalidInput(f"The command cannot be read: {error}.", "Check its quotes.") from None
    refused: dict[str, str] = {}
    while words and (variable := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", words[0])):
        _variable(variable[1], variable[2], words, refused)
        words.pop(0)
    verbs = [i for i, word in enumerate(words[:5]) if word in {"rlhf", "pt", *_RECIPES}]
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


def _on_one_line(command: str) -> str:
    """Normalise a command as a shell would read it, also if a web page removed its line breaks but kept the
    backslashes before them, or turned hyphens into dashes."""
    plain = command.replace("\u00a0", " ")
    plain = re.sub(r"(?<!\S)[–—](?=[A-Za-z])", "--", plain)
    plain = re.sub(r"\\[ \t]*\r?\n", " ", plain)
    plain = re.sub(r"(?<!\S)\\(?=\s|$)", " ", plain)
    return re.sub(r"\\\s+(?=--)", " ", plain)


def _variable(name: str, value: str, words: list[str], refused: dict[str, str]) -> None:
    """Variables before the command that ms-swift reads as settings."""
    if name in {"MAX_PIXELS", "max_pixels"}:
        words += ["--max_pixels", value]
    elif name in {"NPROC_PER_NODE", "NNODES"} and value != "1":
        refused[name] = "say how many processes train with the settings of distributed training"
    elif name not in {"CUDA_VISIBLE_DEVICES", "NPROC_PER_NODE", "NNODES", "OMP_NUM_THREADS", "USE_HF"}:
        refused[name] = "a variable has to be set for the run itself"


def _has_losses(recipe: str) -> bool:
    """Whether ms-swift has more than one loss for it."""
    swift = RECIPES[recipe].swift
    return swift is not None and not swift.loss


_RECIPES = {name: recipe for name, recipe in RECIPES.items() if recipe.swift is not None}
"""Those that ms-swift has, too, by the same names."""


def _recipe(verb: str, words_of: dict[str, list[str]]) -> str:
    if verb == "pt":
        raise InvalidInput(
            "`swift pt` learns whole texts, and ComfyLoop learns answers.", "Give the data as conversations."
        )
    kind = words_of.get("rlhf_type", ["dpo"])[-1] if verb == "rlhf" else verb
    if kind not in _RECIPES:
        own = " The nearest to OPSD is recipe = sdft: give the rows' own answers." if kind == "gkd" else ""
        raise InvalidInput(
            f"ComfyLoop has no recipe like rlhf_type {kind}.", f"It has {listed(_RECIPES, 'and')}.{own}"
        )
    return kind


# --- values -------------------------------------------------------------------------------------------------


def _defaults(recipe: str, words_of: dict[str, list[str]], *, old: bool) -> dict[str, list[str]]:
    """ms-swift's defaults: those of version 4.6, or of 2.x for a command of 2024."""
    defaults = {
        "learning_rate": "1e-5" if words_of.get("tuner_type") == ["full"] else "1e-4",
        "num_train_epochs": "1" if old else "3",
        "lr_scheduler_type": "cosine",
        "warmup_ratio": "0.05" if old else "0",
        "weight_decay": "0.1",
        "adam_beta2": "0.95" if not old else "0.999",
        "max_grad_norm": "1.0" if not old else "0.5",
        "per_device_train_batch_size": "1",
        "lora_rank": "8",
        "lora_alpha": "32",
        "lora_dropout": "0.05",
        "target_modules": "all-linear" if not old else "DEFAULT",
        "gradient_checkpointing": "true",
        "loss_scale": "default" if RECIPES[recipe].all_turns else "last_round",
        "save_steps": "500" if not old else "50",
        "seed": "42",
    }
    return {name: [value] for name, value in defaults.items()} | ({"max_length": ["2048"]} if old else {})


def _differences(words_of: dict[str, list[str]], *, old: bool) -> dict[str, str]:
    """Defaults of ms-swift that differ from ours, by flag."""
    ours = TrainSpec.model_fields
    differences = {
        "max_pixels": "ms-swift leaves pictures to the model's processor; here those of more than "
        f"{ours['max_pixels'].default:,} pixels are scaled down to that, as they are when the result is served",
        "torch_dtype": "ms-swift takes the precision in the model's config.json; here it is bfloat16 where the "
        "processor has it, float32 elsewhere",
    }
    if old:
        differences["split_dataset_ratio"] = (
            "ms-swift of 2024 held out 1% of the rows; here every row is trained on"
        )
        differences["truncation_strategy"] = (
            "ms-swift of 2024 left out rows that are too long; here they are an error"
        )
    stand_ins = {"split_dataset_ratio": "val_dataset"}
    return {
        n: how for n, how in differences.items() if n not in words_of and stand_ins.get(n) not in words_of
    }


def _name_model(words_of: dict[str, list[str]], model: str | None, honoured: dict[str, str]) -> None:
    """Determine the model to train. Raises InvalidInput if none that can be trained is named."""
    kind = (words_of.get("model_type") or [""])[0]
    hub_id = MODEL_TYPES.get(kind) or MODEL_TYPES_OF_OWN_CODE.get(kind)
    if model is not None:
        words_of["model"] = [model]
        if hub_id:
            honoured["model_type"] = f"{hub_id} then; {model} takes its place (--model)"
            del words_of["model_type"]
    elif not words_of.get("model") and kind in MODEL_TYPES:
        words_of["model"] = [MODEL_TYPES[kind]]
        honoured["model_type"] = f"model = {MODEL_TYPES[kind]}"
        del words_of["model_type"]
    elif not words_of.get("model"):
        why = f": --model_type {kind} is only a name" if kind else ""
        if hub_id:
            why = (
                f": --model_type {kind} stood for {hub_id}, which needs code of its own that is not run here"
            )
        raise InvalidInput(
            f"The command names no model{why}.",
            "Add --model with a model directory or the hub id of a model that transformers loads, such as "
            "Qwen/Qwen2.5-VL-3B-Instruct.",
        )


def _make_up(words_of: dict[str, list[str]], needless: dict[str, str], honoured: dict[str, str]) -> None:
    """Fill in values that depend on other flags: accumulation, evaluation steps, quantisation."""
    batch = _value("per_device_train_batch_size", words_of["per_device_train_batch_size"], integer)
    words_of.setdefault("gradient_accumulation_steps", [str(max(1, math.ceil(16 / max(1, batch))))])
    words_of.setdefault("eval_steps", words_of["save_steps"])
    if "use_4bit" in words_of:
        four = _value("use_4bit", words_of.pop("use_4bit"), yes)
        if four:
            words_of.setdefault("quant_bits", ["4"])
        honoured["use_4bit"] = (
            "quant_method = bnb, quant_bits = 4" if four else "no quantisation by this flag"
        )
    if words_of.get("quant_bits") in (["0"], ["None"]):
        del words_of["quant_bits"]
    if "quant_bits" in words_of:
        words_of.setdefault("quant_method", ["bnb"])
    if "use_flash_attn" in words_of:
        flash = _value("use_flash_attn", words_of.pop("use_flash_attn"), yes)
        if flash:
            words_of.setdefault("attn_impl", ["flash_attention_2"])
        honoured["use_flash_attn"] = f"attn_implementation = {'flash_attention_2' if flash else 'auto'}"
    if "target_regex" in words_of:
        words_of["target_modules"] = words_of.pop("target_regex")
        honoured["target_regex"] = f"adapter.target_modules = {' '.join(words_of['target_modules'])}"
    for name in ("template", "model_type"):
        if name in words_of:
            needless[name] = "the model's own class and chat template are used"
            del words_of[name]


def _value(name: str, words: Sequence[str], convert: Callable[[Sequence[str]], _Value]) -> _Value:
    """Convert a flag's value. Raises InvalidInput if it is invalid, Unmeant if it has no meaning here."""
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


_TAKEN = {"dataset", "val_dataset", "rlhf_type", "output_dir"}


def read_command(argument: str) -> str:
    """The command itself, or the content of the file of that name (a script)."""
    path = Path(argument)
    try:
        is_script = "\n" not in argument and path.is_file()
    except (OSError, ValueError):  # longer than a file's name can be
        return argument
    return path.read_text(encoding="utf-8") if is_script else argument
