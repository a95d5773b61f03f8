"""ms-swift command lines, of today and of 2024, as training specs."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.errors import InvalidInput
from comfyloop.train.spec import AdapterSpec, PreferenceSpec, TrainSpec
from comfyloop.train.swift_flag_table import HONOURED, NEEDLESS, REFUSED, RENAMED
from comfyloop.train.swift_flags import from_swift

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
    assert {"template", "model_type", "output_dir"} <= asked.needless.keys()
    assert (spec.quant_method, spec.quant_bits) == ("bnb", 4)
    assert not asked.refused


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
        ("swift sft --model_type qwen-vl-chat --train_dataset d", "qwen-vl-chat is only a name"),
        ("swift sft --model m", "names no data"),
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
        inner = {"adapter": AdapterSpec, "preference": PreferenceSpec}.get(first)
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
    explained = {*asked.needless, *asked.refused, "dataset", "val_dataset", "rlhf_type", "use_4bit"}
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
