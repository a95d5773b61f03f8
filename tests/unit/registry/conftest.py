"""A small version of a real tiny model, and its bundle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from comfyloop.models.adapter_check import header
from comfyloop.records import GateItem, GateReport, Measure, Project, Verdict, Version
from comfyloop.registry import base_model, bundle, contents
from comfyloop.registry.contents import BundleOptions
from comfyloop.registry.manifest import BaseModelOf

pytest.importorskip("cryptography", reason="bundles are signed with it: pip install 'comfyloop[hubs]'")


def save_model(place: Path, kind: str = "llama", seed: int = 0) -> Path:
    """As much of a base model as a bundle is compared with, without torch."""
    rng = np.random.default_rng(seed)
    tensors = {
        f"model.layers.{layer}.self_attn.{name}_proj.weight": rng.normal(size=(16, 16)).astype(np.float32)
        for layer in range(2)
        for name in "qkvo"
    }
    place.mkdir(parents=True)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    (place / "config.json").write_text(json.dumps({"model_type": kind}))
    return place


def save_text_adapter(model: Path, place: Path, r: int = 2) -> Path:
    """A LoRA on the q projections of a model, as PEFT saves it, without torch."""
    found = {name: shape for name, shape in header(model / "model.safetensors").items() if "q_proj" in name}
    rng = np.random.default_rng(0)
    tensors = {}
    for name, (out, inner) in found.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        tensors[f"{stem}.lora_A.weight"] = rng.normal(size=(r, inner)).astype(np.float32)
        tensors[f"{stem}.lora_B.weight"] = rng.normal(size=(out, r)).astype(np.float32)
    place.mkdir(parents=True)
    save_file(
        tensors, place / "adapter_model.safetensors", metadata={"format": "pt", "made_in": "/home/anna/run"}
    )
    told = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": 2 * r, "target_modules": ["q_proj"],
        "bias": "none", "base_model_name_or_path": "/home/anna/models/tiny", "init_lora_weights": True,
    }  # fmt: skip
    (place / "adapter_config.json").write_text(json.dumps(told))
    return place


REPORT = GateReport(
    project="acme",
    live=0,
    candidate=17,
    verdict=Verdict.PROMOTE,
    reasons=("The candidate is better on your corrections.", "It is worse on questions about Annas Hund."),
    details=("The held-out sample s1 is left out: too long.",),
    measures=(
        Measure(
            metric="edit_distance",
            slice="all",
            items=8,
            live=0.8,
            candidate=0.2,
            low=-0.7,
            high=-0.5,
            higher_is_better=False,
        ),
        Measure(
            metric="edit_distance",
            slice="about Annas Hund",
            items=2,
            live=0.8,
            candidate=0.9,
            low=0.0,
            high=0.2,
        ),
    ),
    items=(
        GateItem(
            sample="s1",
            slice="text",
            question="Wie heisst Annas Hund?",
            reference="Rex aus der Gasse",
            live_answer="Ein Hund",
            candidate_answer="Rex aus der Gasse",
            scores={"edit_distance": (0.8, 0.0)},
        ),
    ),
)


@dataclass
class Made:
    """A version and how it is packed."""

    home: Path
    model: Path
    version: Version
    project: Project
    base: BaseModelOf

    def pack(self, target: Path, wanted: BundleOptions = BundleOptions(), **changed: object) -> Path:
        manifest, pieces = contents.gather(
            self.version, self.project, str, publisher="anna's studio".replace("'", ""), wanted=wanted,
            spec={"learning_rate": 1e-3, "train": "/home/anna/rows.jsonl", "adapter": {"r": 2, "init_from": None}},
        )  # fmt: skip
        bundle.write(manifest.model_copy(update=changed), pieces, target, self.home)
        return target

    def unpack(self, file: Path, into: Path, model: Path | None = None) -> tuple[bundle.Opened, bundle.Sides]:
        place = str(model or self.model)
        base = base_model.text_base(place, place) if model else self.base
        return bundle.unpack(file, into, text_base=base, image_base=None, text_place=place)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = tmp_path_factory.mktemp("home")
    model = save_model(tmp_path_factory.mktemp("models") / "small")
    text = save_text_adapter(model, home / "versions" / "acme" / "17" / "text")
    base = base_model.text_base(str(model), str(model))
    version = Version(project="acme", number=17, text_adapter=str(text), gate=REPORT)
    return Made(home, model, version, Project(name="acme", base_model=str(model)), base)


@pytest.fixture(scope="session")
def packed(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.pack(tmp_path_factory.mktemp("packed") / "acme-17.comfyloop")
