"""What recipes declare, everything that lists them goes by."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError
from typer.testing import CliRunner

from comfyloop import curate
from comfyloop.cli import app
from comfyloop.complaints import in_words
from comfyloop.curate.samples import Source, make
from comfyloop.declared import listed
from comfyloop.errors import InvalidInput
from comfyloop.recipes import RECIPES, TextRecipe, of_side
from comfyloop.records import Message
from comfyloop.settings import Settings
from comfyloop.train.specs.files import read_spec, write_spec
from comfyloop.train.specs.image import ImageTrainSpec
from comfyloop.train.specs.options import make_spec
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.swift.arguments import Places, arguments
from comfyloop.train.swift.command_line import from_swift


@pytest.mark.parametrize("name", RECIPES)
def test_each_has_its_way_of_training(name: str) -> None:
    found = importlib.util.find_spec(f"comfyloop.train.recipes.{name}")
    assert found is not None and found.origin is not None
    functions = [
        node for node in ast.parse(Path(found.origin).read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    (run,) = (node for node in functions if node.name == "run")  # not imported: that would bring torch
    assert [argument.arg for argument in run.args.args] == ["directory", "spec", "log", "control"]


@pytest.mark.parametrize("name", RECIPES)
def test_settings_and_specs_take_it_with_the_rate_that_suits_it(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    (tmp_path / "config.json").write_text('{"hidden_size": 576}')
    spec = make_spec({"model": str(tmp_path), "train": "t.jsonl", "recipe": name}, [])
    assert spec.learning_rate == recipe.learning_rate
    assert isinstance(spec, ImageTrainSpec if recipe.side == "image" else TrainSpec)
    write_spec(tmp_path, spec)
    assert read_spec(tmp_path) == spec
    setting = {"text": "recipe", "image": "image_recipe"}[recipe.side]
    assert getattr(Settings(**{setting: name}), setting) == name
    assert curate.data_files(tmp_path, name).train.name in ("train.jsonl", f"train.{recipe.kind}.jsonl")


@pytest.mark.parametrize("name", RECIPES)
def test_its_kind_of_sample_is_one_that_is_made(name: str) -> None:
    question, answer = Message.of("user", "Q?"), Message.of("assistant", "A.")
    sample = make(RECIPES[name].kind, (question, answer), Source("acme", ("fb_1",), "sample_uploaded", "ada"))
    assert sample.kind == RECIPES[name].kind


@pytest.mark.parametrize("name", of_side("text"))
def test_ms_swift_does_those_that_say_so_and_reads_its_own_words_back(name: str) -> None:
    swift = RECIPES[name].swift
    told = {"model": "m", "train": "t.jsonl", "recipe": name, "train_engine": "swift"}
    if swift is None:
        with pytest.raises(ValidationError, match="our own trainer"):
            TrainSpec.model_validate(told)
        return
    spec = TrainSpec.model_validate(told)
    places = Places("m", Path("t.jsonl"), None, Path("out"))
    words = arguments(spec, places, dtype="float32", use_cpu=True, targets=["q_proj"], own="comfyloop")
    chosen = {"--rlhf_type", "--beta", *(f"--{flag}" for flag in swift.flags)}
    assert (chosen & set(words) == set()) == (swift.command == "sft")
    kind = ["--rlhf_type", name] if swift.command == "rlhf" else []
    command = " ".join(["swift", swift.command, *kind, "--model", "m", "--dataset", "d.jsonl"])
    assert from_swift(command).spec.recipe == name


def test_one_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(TextRecipe).validate_python("image_sft")
    assert in_words(refused.value.errors(), "it") == "it: it must be " + listed(
        [repr(name) for name in of_side("text")]
    )
    with pytest.raises(ValidationError, match="'image_dpo'"):
        Settings(image_recipe="dpo")
    with pytest.raises(InvalidInput, match="recipe: it must be 'dpo'"):
        make_spec({"model": "m", "train": "t.jsonl", "recipe": "grpo"}, [])


def test_help_lists_them() -> None:
    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "250"}).output
    assert all(name in shown for name in RECIPES)
