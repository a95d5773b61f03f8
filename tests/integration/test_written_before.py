"""A data folder, a run and an adapter that were written before the rooms were drawn anew are read as they were meant.

`tests/cases/written-before/home.zip` was made at the commit before "Read rows of pictures …" by what stood there then:
a run of four steps on `tiny_llm`, its version promoted, feedback of most kinds and the snapshot made of it.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from comfyloop.formats import rows
from comfyloop.models import adapter_check
from comfyloop.records import ImagePicked, VersionState
from comfyloop.serve.embedded.lora import read_adapter
from comfyloop.settings import Settings
from comfyloop.store import feedback, generations, open_store, projects, runs, snapshots, versions
from comfyloop.train.run.directory import RunDirectory, TrainState
from comfyloop.train.specs.files import read_spec
from comfyloop.train.specs.text import TrainSpec

WRITTEN = Path(__file__).parents[1] / "cases" / "written-before" / "home.zip"
KINDS = {
    "answer_edited": 4, "answer_accepted": 1, "answer_rated": 1, "image_picked": 1, "image_rated": 1,
    "prompt_edited": 1, "sample_uploaded": 1,
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    zipfile.ZipFile(WRITTEN).extractall(tmp_path)
    return tmp_path / "home"


def test_the_data_folder_is_migrated_and_nothing_of_it_is_lost(home: Path) -> None:
    with open_store(Settings(home=home)) as store:
        with store.read() as conn:
            assert projects.get(conn, "acme").live == 1
            version = versions.get(conn, "acme", 1)
            assert version.state is VersionState.LIVE and version.run == "run_old"
            assert runs.get(conn, "run_old").recipe == "sft"
            assert len(generations.list_by(conn, "acme")) == 8
            assert feedback.counts(conn, "acme") == KINDS
            (pick,) = [item for _, item in feedback.list_by(conn, "acme") if isinstance(item, ImagePicked)]
            snapshot = snapshots.get(conn, "acme", version.snapshot)
        for sha in (*pick.picked, *pick.over):
            assert store.blobs.get(sha).startswith(b"\x89PNG")
    folder = home / "snapshots" / snapshot.id
    for name in ("train.jsonl", "train.preference.jsonl", "train.labelled.jsonl"):
        lines = (folder / name).read_text("utf-8").splitlines()
        assert len(rows.read(folder / name).good) == len(lines) > 0, name


def test_the_run_says_what_it_did(home: Path) -> None:
    directory = RunDirectory(home / "runs" / "run_old")
    spec = read_spec(directory.path)
    assert isinstance(spec, TrainSpec) and (spec.recipe, spec.max_steps, spec.adapter.r) == ("sft", 4, 2)
    status = directory.read_status()
    assert (status.state, status.step, status.total_steps) == (TrainState.SUCCEEDED, 4, 4)
    assert [line["step"] for line in directory.log_lines()] == [0, 1, 2, 3, 4]


def test_the_adapter_is_served(home: Path, tiny_llm: Path) -> None:
    folder = home / "runs" / "run_old" / "adapter"
    adapter_check.check("acme-v1", str(folder), adapter_check.Limits("embedded"), str(tiny_llm))
    adapter = read_adapter("acme-v1", folder, AutoModelForCausalLM.from_pretrained(tiny_llm))
    assert adapter.r == json.loads((folder / "adapter_config.json").read_text("utf-8"))["r"] == 2
    assert any(bool(torch.any(pair.b != 0)) for pair in adapter.pairs.values())
