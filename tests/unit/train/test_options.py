"""A training spec from a command line and from the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comfyloop.errors import InvalidInput
from comfyloop.recipes import RECIPES
from comfyloop.settings import Settings
from comfyloop.train.specs.options import make_spec
from comfyloop.train.specs.rates import own_rate
from comfyloop.train.specs.text import TrainSpec

KNOWN: dict[str, Any] = {"model": "m", "train": "t.jsonl", "holdout": None, "recipe": None}


def test_assignments_become_fields_of_their_kind() -> None:
    spec = make_spec(
        KNOWN,
        ["adapter.r=4", "adapter.target_modules=q_proj, k_proj", "learning_rate=1e-4", "quant_method=bnb",
         "adapter.modules_to_save=norm", "gradient_checkpointing=true", "holdout=none", "recipe = kto",
         "preference.beta=0.5", 'rope_scaling={"rope_type": "yarn", "factor": 2}'],
    )  # fmt: skip
    assert spec.adapter.r == 4
    assert spec.adapter.target_modules == ("q_proj", "k_proj")
    assert spec.adapter.modules_to_save == ("norm",)
    assert (spec.learning_rate, spec.quant_method, spec.recipe) == (1e-4, "bnb", "kto")
    assert spec.gradient_checkpointing is True
    assert spec.preference.beta == 0.5
    assert spec.rope_scaling is not None
    assert make_spec({**KNOWN, "recipe": "dpo"}, ["adapter.target_modules=all-linear"]).adapter == (
        TrainSpec.model_validate(
            {"model": "m", "train": "t", "adapter": {"target_modules": "all-linear"}}
        ).adapter
    )


def test_a_learning_rate_that_suits_the_recipe() -> None:
    def rate(*more: str) -> float:
        return make_spec(KNOWN, more).learning_rate

    assert rate() == rate("recipe=sft") == 2.8e-4  # the model is not here: the rate of a 7B
    assert rate("recipe=dpo") == rate("recipe=kto") == 1.4e-5
    assert rate("tuner_type=full") == 1e-5
    assert rate("tuner_type=full", "learning_rate=0.1") == 0.1
    assert rate("recipe=image_sft") == 1e-4


@pytest.mark.parametrize(
    ("config", "rate"),
    [
        ({"hidden_size": 576}, 2e-3),  # SmolLM2-135M
        ({"hidden_size": 64}, 2e-3),  # no more for narrower ones
        ({"hidden_size": 1280, "text_config": {"hidden_size": 2048}}, 5.6e-4),  # Qwen2.5-VL-3B
        ({"text_config": {"hidden_size": 3584}}, 3.2e-4),
        ({"n_embd": 768}, 1.5e-3),
        ({}, 2.8e-4),
        ({"hidden_size": "wide"}, 2.8e-4),
        ([], 2.8e-4),
    ],
)
def test_a_wider_model_learns_at_a_lower_rate(config: Any, rate: float, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert own_rate(RECIPES["sft"], str(tmp_path)) == rate
    assert own_rate(RECIPES["sft"], str(tmp_path), going_on=True) == pytest.approx(rate / 2, rel=0.02)
    assert (
        TrainSpec.from_settings(Settings(), model=str(tmp_path), train="t", holdout=None).learning_rate
        == rate
    )


@pytest.mark.parametrize(
    ("assignment", "why"),
    [
        ("learning_rate", "says no value"),
        ("colour=3", "no field 'colour'.*The fields are .*adapter.r"),
        ("adapter=3", "adapter: "),
        ("adapter.r=-1", "adapter.r: it must be at least 1"),
        ("learning_rate=fast", "learning_rate: .*number"),
        ("freeze_llm=true", "leave nothing to train"),
    ],
)
def test_what_is_no_spec_is_said_in_a_sentence(assignment: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        make_spec(KNOWN, [assignment])


def test_settings_choose_recipe_and_start() -> None:
    def spec(**values: Any) -> TrainSpec:
        return TrainSpec.from_settings(Settings(**values), model="m", train="t", holdout=None)

    assert spec().learning_rate == 2.8e-4
    assert spec(recipe="kto").learning_rate == 1.4e-5
    assert spec().adapter.target_modules == "all-linear"
    assert spec(lora_target_modules="attention").adapter.target_modules == "attention"
    told = spec(recipe="dpo", preference_beta=0.3, quant_method="bnb", learning_rate=0.1)
    assert (told.recipe, told.preference.beta, told.quant_method, told.learning_rate) == (
        "dpo", 0.3, "bnb", 0.1,
    )  # fmt: skip
