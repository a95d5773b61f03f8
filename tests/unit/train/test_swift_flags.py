"""ms-swift command lines, of today and of 2024, as training specs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from comfyloop.client import show
from comfyloop.errors import InvalidInput
from comfyloop.train.specs.text import AdapterSpec, PreferenceSpec, TrainSpec
from comfyloop.train.swift.command_line import from_swift, read_command
from comfyloop.train.swift.flags import HONOURED, NEEDLESS, REFUSED, RENAMED

START = "swift sft --model /models/m --dataset data.jsonl"


def value(spec: TrainSpec, place: str) -> Any:
    found: Any = spec
    for name in place.split("."):
        found = getattr(found, name)
    return found


def test_the_command_of_2024() -> None:
    asked = from_swift(
        "CUDA_VISIBLE_DEVICES=0 swift sft --model_type qwen-vl-chat --model_id_or_path /models/qwen "
        "--train_dataset data.jsonl --sft_type lora --lora_rank 64 --lora_alpha 16 --use_4bit True "
        "--quantization_bit 4 --use_gradient_checkpointing --max_image_pixels 200704 "
        "--lora_target_modules ALL --template_type qwen-vl --output_dir out"
    )
    spec = asked.spec
    assert asked.datasets == ("data.jsonl",)
    assert spec.model == "/models/qwen"
    assert (spec.adapter.r, spec.adapter.lora_alpha) == (64, 16)
    assert spec.adapter.target_modules == "all-linear"
    assert spec.gradient_checkpointing and spec.max_pixels == 200704
    assert spec.epochs == 1  # as ms-swift did in 2024
    assert asked.renamed["max_image_pixels"] == "max_pixels"
    assert {"template", "model_type"} <= asked.needless.keys() and asked.output == "out"
    assert (spec.quant_method, spec.quant_bits) == ("bnb", 4)
    assert not asked.refused


ARTICLE = (
    "swift sft --model_type qwen-vl-chat --train_dataset sample_dataset.jsonl --lora_rank 64 --lora_alpha 16 "
    "--use_4bit True --quantization_bit 4 --output_dir output_qlora --num_train_epochs 3 "
    "--per_device_train_batch_size 1 --gradient_accumulation_steps 8 --learning_rate 1e-4"
)
FLAGS = ARTICLE.replace(" --", "\n--").split("\n")
FORMS = {
    "one line": ARTICLE,
    "backslashes": " \\\n    ".join(FLAGS),
    "backslashes of Windows": " \\\r\n    ".join(FLAGS),
    "backslashes before spaces": " \\  \n".join(FLAGS),
    "flattened": " \\ ".join(FLAGS),
    "flattened, not a space after": " \\".join(FLAGS),
    "flattened, not a space before": "\\ ".join(FLAGS),
    "lines": "\n".join(FLAGS),
    "quotes": f"'{ARTICLE}'",
    "quoted values": ARTICLE.replace("sample_dataset.jsonl", '"sample_dataset.jsonl"'),
    "dashes of an article": ARTICLE.replace("--", "–"),
    "a prompt before it": f"$ {ARTICLE}",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_article_s_command_is_the_same_in_every_form(form: str) -> None:
    asked = from_swift(read_command(FORMS[form]), model="/models/qwen")
    assert asked == from_swift(ARTICLE, model="/models/qwen")
    spec = asked.spec
    assert (spec.quant_method, spec.adapter.r, spec.adapter.lora_alpha, spec.epochs) == ("bnb", 64, 16, 3)
    assert (spec.gradient_accumulation_steps, spec.learning_rate) == (8, 1e-4)
    assert (asked.datasets, asked.output) == (("sample_dataset.jsonl",), "output_qlora")
    assert not asked.refused and not asked.needless


def test_a_script_is_read_and_a_space_in_a_name_stays_one(tmp_path: Path) -> None:
    script = tmp_path / "tune.sh"
    script.write_text("#!/bin/sh\n" + FORMS["backslashes"] + "\n")
    assert read_command(str(script)) == script.read_text()
    assert from_swift(read_command(str(script)), model="m") == from_swift(ARTICLE, model="m")
    spaced = from_swift(r"swift sft --model m --dataset my\ data.jsonl --val_dataset 'a b.jsonl'")
    assert (spaced.datasets, spaced.holdouts) == (("my data.jsonl",), ("a b.jsonl",))
    assert read_command("swift sft " + "x" * 5000).startswith("swift sft x")


def test_of_each_flag_it_is_said_what_became_of_it() -> None:
    asked = from_swift(ARTICLE, model="/models/qwen")
    flags = {word.removeprefix("--") for word in ARTICLE.split() if word.startswith("--")}
    assert flags == asked.honoured.keys() | asked.needless.keys() | asked.refused.keys()
    assert asked.honoured["use_4bit"] == "quant_method = bnb, quant_bits = 4"
    assert asked.honoured["output_dir"] == "output_qlora, the run directory"
    assert asked.honoured["model_type"] == "Qwen/Qwen-VL-Chat then; /models/qwen takes its place (--model)"
    shown = "\n".join(show.from_swift(asked))
    assert "--quantization_bit: quant_bits = 4 (--quant_bits today)" in shown


def test_a_model_type_that_transformers_loads_is_the_model() -> None:
    asked = from_swift("swift sft --model_type qwen2-vl-2b-instruct --dataset d.jsonl")
    assert asked.spec.model == "Qwen/Qwen2-VL-2B-Instruct"
    assert asked.honoured["model_type"] == "model = Qwen/Qwen2-VL-2B-Instruct"


def test_defaults_are_those_of_ms_swift_or_are_said_to_differ() -> None:
    today, old = from_swift(START), from_swift(ARTICLE, model="m")
    assert (today.spec.adam_beta2, old.spec.adam_beta2) == (0.95, 0.999)
    assert from_swift(f"{START} --adam_beta2 0.98").spec.adam_beta2 == 0.98
    assert from_swift(f"{START} --tuner_type full").spec.learning_rate == 1e-5
    assert from_swift(f"{START} --tuner_type full --learning_rate 2e-5").spec.learning_rate == 2e-5
    assert today.differs.keys() == {"max_pixels", "torch_dtype"}
    assert old.differs.keys() == today.differs.keys() | {"split_dataset_ratio", "truncation_strategy"}
    assert not from_swift(f"{START} --max_pixels 200704 --torch_dtype bfloat16").differs


def test_what_is_not_said_is_as_ms_swift_has_it_today() -> None:
    spec = from_swift(START).spec
    assert (spec.learning_rate, spec.epochs, spec.weight_decay, spec.warmup_ratio) == (1e-4, 3, 0.1, 0)
    assert (spec.per_device_train_batch_size, spec.gradient_accumulation_steps) == (1, 16)
    assert (spec.adapter.r, spec.adapter.lora_alpha, spec.adapter.lora_dropout) == (8, 32, 0.05)
    assert spec.adapter.target_modules == "all-linear" and spec.gradient_checkpointing
    assert spec.train_on == "all" and spec.recipe == "sft" and spec.max_length == 0


@pytest.mark.parametrize(
    ("flags", "place", "expected"),
    [
        ("--lora_rank 16", "adapter.r", 16),
        ("--lora_rank=16", "adapter.r", 16),
        ("--lora-rank 16", "adapter.r", 16),
        ("--lora_rank 4 --lora_rank 16", "adapter.r", 16),
        ("--lora_alpha 32.0", "adapter.lora_alpha", 32),
        ("--target_modules q_proj v_proj", "adapter.target_modules", ("q_proj", "v_proj")),
        ("--target_modules all-linear", "adapter.target_modules", "all-linear"),
        ("--lora_target_modules ALL", "adapter.target_modules", "all-linear"),
        ("--lora_target_modules DEFAULT", "adapter.target_modules", "attention"),
        (r"--target_regex 'model\.layers\..*q_proj'", "adapter.target_modules", r"model\.layers\..*q_proj"),
        ("--use_dora true", "adapter.use_dora", True),
        ("--use_rslora", "adapter.use_rslora", True),
        ("--adapters /models/lora", "adapter.init_from", "/models/lora"),
        ("--per_device_train_batch_size 4", "gradient_accumulation_steps", 4),
        ("--batch_size 32", "gradient_accumulation_steps", 1),
        ("--gradient_accumulation_steps 2", "gradient_accumulation_steps", 2),
        ("--gradient_checkpointing false", "gradient_checkpointing", False),
        ("--use_gradient_checkpointing False", "gradient_checkpointing", False),
        ("--torch_dtype bfloat16", "dtype", "bfloat16"),
        ("--dtype bf16", "dtype", "bfloat16"),
        ("--dtype AUTO", "dtype", "auto"),
        ("--attn_impl flash_attn", "attn_implementation", "flash_attention_2"),
        ("--use_flash_attn true", "attn_implementation", "flash_attention_2"),
        ("--max_steps -1", "max_steps", 0),
        ("--max_steps 7", "max_steps", 7),
        ("--save_steps 20", "eval_steps", 20),
        ("--save_steps 20 --eval_steps 5", "eval_steps", 5),
        ("--loss_scale last_round", "train_on", "last"),
        ("--max_length 1024", "max_length", 1024),
        ("--lr_scheduler_type linear", "lr_scheduler_type", "linear"),
        ("--num_train_epochs 0.5", "epochs", 0.5),
        ("""--rope_scaling '{"rope_type": "yarn", "factor": 2.0}'""", "rope_scaling.factor", 2.0),
        ("--quant_method bnb --quant_bits 4", "quant_method", "bnb"),
        ("--freeze_vit false", "freeze_vit", False),
        ("--tuner_type full", "tuner_type", "full"),
        ("--neftune_noise_alpha 5", "neftune_noise_alpha", 5.0),
        ("--modules_to_save multi_modal_projector", "adapter.modules_to_save", ("multi_modal_projector",)),
        ("--val_dataset v.jsonl", "holdout", "holdout.jsonl"),
    ],
)
def test_each_flag_goes_where_it_belongs(flags: str, place: str, expected: Any) -> None:
    asked = from_swift(f"{START} {flags}")
    assert value(asked.spec, place) == expected
    assert not asked.refused


def test_preferences() -> None:
    command = "swift rlhf --model m --dataset d.jsonl --rlhf_type"
    dpo = from_swift(f"{command} dpo --beta 0.2 --rpo_alpha 0.5 --loss_type ipo").spec
    assert (dpo.recipe, dpo.preference.beta, dpo.preference.rpo_alpha) == ("dpo", 0.2, 0.5)
    assert dpo.preference.loss_type == "ipo" and dpo.train_on == "last"
    kto = from_swift(f"{command} kto --desirable_weight 1.5").spec
    assert (kto.recipe, kto.preference.desirable_weight) == ("kto", 1.5)
    assert from_swift("swift rlhf --model m --dataset d.jsonl").spec.recipe == "dpo"  # as ms-swift has it


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        ("--deepspeed zero2", "deepspeed"),
        ("--streaming true", "streaming"),
        ("--tuner_type adalora", "tuner_type"),
        ("--lr_scheduler_type polynomial", "lr_scheduler_type"),
        ("--loss_scale hermes", "loss_scale"),
        ("--lora_alpha 12.5", "lora_alpha"),
        ("--rope_scaling yarn", "rope_scaling"),
        ("--quant_method hqq --quant_bits 3", "quant_method"),
        ("--system 'Be brief.'", "system"),
        ("--galore_rank 8", "galore_rank"),
    ],
)
def test_each_flag_that_cannot_be_honoured_is_named(flags: str, flag: str) -> None:
    asked = from_swift(f"{START} {flags}")
    assert asked.refused[flag]


def test_variables_before_the_command() -> None:
    asked = from_swift(f"CUDA_VISIBLE_DEVICES=0,1 NPROC_PER_NODE=2 MAX_PIXELS=1003520 FPS=2 {START}")
    assert asked.spec.max_pixels == 1_003_520
    assert set(asked.refused) == {"NPROC_PER_NODE", "FPS"}


def test_a_command_over_several_lines_with_comments() -> None:
    asked = from_swift(
        "# tune it\nswift sft \\\n  --model m \\\n  --dataset 'my data.jsonl' b.json \\\n --seed 7\n"
    )
    assert asked.datasets == ("my data.jsonl", "b.json") and asked.spec.seed == 7


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("", "no training command of ms-swift"),
        ("python train.py --model m", "no training command of ms-swift"),
        ("swift infer --model m", "no training command of ms-swift"),
        ("megatron-swift sft --model m", "Megatron"),
        ("swift pt --model m --dataset d", "whole texts"),
        ("swift rlhf --rlhf_type grpo --model m --dataset d", "rlhf_type grpo"),
        ("swift sft --dataset d", "names no model"),
        (
            "swift sft --model_type qwen-vl-chat --train_dataset d",
            "stood for Qwen/Qwen-VL-Chat, which needs code of its own .* such as Qwen/Qwen2.5",
        ),
        ("swift sft --model_type qwen2_vl --train_dataset d", "qwen2_vl is only a name"),
        ("swift sft --model m", "names no data"),
        (
            "swift sft --model m --dataset d --task_type embedding",
            "--task_type embedding: ComfyLoop learns answers",
        ),
        ("swift sft --model m --dataset d --task_type seq_cls --num_labels 2", "--task_type seq_cls"),
        (
            "swift rlhf --rlhf_type dpo --model m --dataset d --loss_type sigmoid sft",
            "--loss_type sigmoid sft, and",
        ),
        ("swift rlhf --rlhf_type dpo --model m --dataset d --loss_type hinge", "--loss_type hinge, and"),
        (
            "swift rlhf --rlhf_type kto --model m --dataset d --loss_type apo_zero_unpaired",
            "loss of kto is kto",
        ),
        ("swift sft --model m --dataset d --loss_type infonce", "the loss of sft is cross_entropy"),
        ("swift sft --model m --dataset d --use_chat_template false", "--use_chat_template false"),
        ("swift sft data.jsonl --model m", "belongs to no flag"),
        ("swift sft --model m --dataset d --lora_rank many", "--lora_rank many is not a value"),
        ("swift sft --model m --dataset d --lora_rank 0", "adapter.r"),
        ("swift sft --model 'm", "cannot be read"),
        ("swift sft --model m --dataset d --torch_dtype int8", "dtype"),
        ("swift sft --model m --dataset d --per_device_train_batch_size 0", "per_device_train_batch_size"),
        ("swift sft --model m --dataset d --use_4bit maybe", "use_4bit"),
    ],
)
def test_commands_that_cannot_be_trained_are_refused_in_a_sentence(command: str, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        from_swift(command)


def test_another_model_takes_the_place_of_the_command_s() -> None:
    command = "swift sft --model_type qwen-vl-chat --train_dataset d.jsonl"
    assert from_swift(command, model="/models/qwen").spec.model == "/models/qwen"


def test_the_tables_agree() -> None:
    """A flag is in one table only, and old names lead to a name that is known."""
    assert not (HONOURED.keys() & NEEDLESS.keys()) | (HONOURED.keys() & REFUSED.keys())
    assert not (NEEDLESS.keys() & REFUSED.keys()) | (RENAMED.keys() & HONOURED.keys())
    known = {*HONOURED, *NEEDLESS, *REFUSED, "dataset", "val_dataset", "template", "model_type"}
    assert set(RENAMED.values()) <= known
    for place, _ in HONOURED.values():
        first, _, second = place.partition(".")
        parts: dict[str, type[BaseModel]] = {"adapter": AdapterSpec, "preference": PreferenceSpec}
        inner = parts.get(first)
        assert first in TrainSpec.model_fields and (inner is None or second in inner.model_fields)


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(
    st.dictionaries(st.sampled_from([*HONOURED, *NEEDLESS, *REFUSED, *RENAMED, "nonsense"]), st.lists(words))
)
def test_no_command_is_met_with_anything_but_a_spec_or_a_sentence(flags: dict[str, list[str]]) -> None:
    """Whatever the values, every flag is honoured, explained, or refused with an InvalidInput."""
    told = " ".join(f"--{name} {' '.join(map(shlex.quote, values))}" for name, values in flags.items())
    try:
        asked = from_swift(f"{START} {told}")
    except InvalidInput as error:
        assert str(error).strip().endswith(".")
        return
    explained = {
        *asked.honoured,
        *asked.needless,
        *asked.refused,
        "dataset",
        "val_dataset",
        "rlhf_type",
        "use_4bit",
    }
    for name in flags:
        today = RENAMED.get(name, name)
        assert today in explained or today in HONOURED or today in {"target_regex", "use_flash_attn"}, name


@given(
    rank=st.integers(1, 256),
    alpha=st.integers(1, 512),
    rate=st.floats(1e-7, 1.0),
    batch=st.integers(1, 64),
    seed=st.integers(0, 2**31),
    equals=st.booleans(),
    shuffled=st.permutations(range(5)),
)
def test_values_come_through_whatever_their_order_and_form(
    rank: int, alpha: int, rate: float, batch: int, seed: int, equals: bool, shuffled: list[int]
) -> None:
    flags = [
        ("lora_rank", rank),
        ("lora_alpha", alpha),
        ("learning_rate", rate),
        ("per_device_train_batch_size", batch),
        ("seed", seed),
    ]
    told = [f"--{n}={v}" if equals else f"--{n} {v}" for n, v in (flags[i] for i in shuffled)]
    spec = from_swift(f"{START} {' '.join(told)}").spec
    assert (spec.adapter.r, spec.adapter.lora_alpha, spec.learning_rate) == (rank, alpha, rate)
    assert (spec.per_device_train_batch_size, spec.seed) == (batch, seed)
    assert spec.per_device_train_batch_size * spec.gradient_accumulation_steps >= 16
