"""The image side's gate on a real, tiny model: one that learnt the person's colours, and one that learnt others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comfyloop import gate
from comfyloop.curate import read_samples
from comfyloop.curate.rows import dump_rows, row_of
from comfyloop.curate.samples import Source, make
from comfyloop.gate.decision import Decision
from comfyloop.records import Message, Sample, Verdict
from comfyloop.settings import Settings
from comfyloop.train.image.kohya import FILE
from comfyloop.train.judge import judge
from comfyloop.train.recipes import image_sft
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.runners import local
from comfyloop.train.specs.files import write_spec
from comfyloop.train.specs.image import ImageAdapterSpec, ImageTrainSpec
from comfyloop.train.specs.judge import SEEN_FILE, SHEET_FILE, JudgeFindings, JudgeSpec, picture_file
from tests.integration.train.runs import finish
from tests.integration.train.test_image_runs import shape

SETTINGS = Settings(gate_max_drawn=2)
TOLD: dict[str, Any] = {
    "dtype": "float32", "threads": 1, "nice": 0, "bucket_step": 8, "max_steps": 24, "epochs": 99, "seed": 1,
    "learning_rate": 3e-3, "adapter": ImageAdapterSpec(r=4, lora_alpha=4, target_modules="all"),
}  # fmt: skip


def samples(numbers: range, folder: Path) -> list[Sample]:
    """A warm picture that was kept over a cold one, for a brief each; the pictures lie in the folder."""
    made = []
    for i in numbers:
        shape(i, True).save(folder / f"{i:064x}.png")
        shape(i, False).save(folder / f"{i + 1000:064x}.png")
        source = Source("acme", (f"fb_{i}",), "image_picked", "local")
        messages = (Message.of("user", f"thing {i}"), Message.of("assistant", ("a disc", "a box")[i % 2]))
        made.append(make("captioned_image", messages, source, picked=f"{i:064x}"))
        made.append(make("image_pair", messages, source, picked=f"{i:064x}", over=f"{i + 1000:064x}"))
    return made


def write(place: Path, rows: list[Sample]) -> Path:
    place.write_text(dump_rows([row_of(sample, lambda sha: f"images/{sha}.png") for sample in rows]))
    return place


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("snapshot")
    (folder / "images").mkdir()
    for side, numbers in (("train", range(12)), ("holdout", range(12, 19))):
        rows = samples(numbers, folder / "images")
        for kind in ("captioned_image", "image_pair"):
            write(folder / f"{side}.{kind}.jsonl", [row for row in rows if row.kind == kind])
    chance = np.random.default_rng(0)
    for i in range(12):
        noise = Image.fromarray(chance.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        noise.save(folder / "images" / f"noise{i}.png")
    lines = [
        json.dumps({"messages": [{"role": "user", "content": "a disc"}], "chosen": f"images/noise{i}.png"})
        for i in range(12)
    ]
    (folder / "noise.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def good(snapshot: Path, tiny_sd15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that has learnt to draw what was kept."""
    folder = tmp_path_factory.mktemp("good")
    return train(folder / "run", tiny_sd15, snapshot / "train.captioned_image.jsonl")


def train(directory: Path, model: Path, data: Path) -> Path:
    run = RunDirectory(directory)
    run.path.mkdir()
    spec = ImageTrainSpec(model=str(model), train=str(data), **TOLD)
    image_sft.run(run, spec, RunLog(run), Control(run, lambda held: None))
    return run.adapter / FILE


def told(
    model: Path, snapshot: Path, live: Path | None, candidate: Path, viewer: Path | None = None
) -> JudgeSpec:
    rows = held_out(snapshot)
    kept = [sample for sample in rows if sample.kind == "captioned_image"]
    return JudgeSpec(
        image=ImageTrainSpec(model=str(model), train=str(snapshot / "train.captioned_image.jsonl"), **TOLD),
        live=str(live) if live is not None else None,
        candidate=str(candidate),
        kept=str(snapshot / "holdout.captioned_image.jsonl"),
        pairs=str(snapshot / "holdout.image_pair.jsonl"),
        taste=str(snapshot / "train.image_pair.jsonl"),
        chosen=tuple(sample.id for sample in rows),
        written={sample.id: ("a thing", f"{sample.answer}, bright") for sample in kept},
        drawn=tuple(sample.id for sample in gate.to_draw(kept, SETTINGS)),
        steps=2,
        viewer=str(viewer) if viewer is not None else None,
    )


def held_out(snapshot: Path) -> list[Sample]:
    kinds = ("captioned_image", "image_pair")
    return [row for kind in kinds for row in read_samples(snapshot / f"holdout.{kind}.jsonl", "acme")]


def verdict(place: Path, snapshot: Path) -> Decision:
    seen = JudgeFindings.model_validate_json((place / SEEN_FILE).read_bytes())
    return gate.decide_images(gate.evidence(held_out(snapshot), seen.scores), SETTINGS)


@pytest.mark.slow
def test_what_was_planted_is_promoted(
    snapshot: Path, good: Path, tiny_sd15: Path, tiny_vlm: Path, tmp_path: Path
) -> None:
    place = tmp_path / "gate"
    spec = told(tiny_sd15, snapshot, None, good, tiny_vlm)
    write_spec(place, spec)
    local.start(place)
    status = finish(place)
    assert (status.step, status.total_steps) == (32, 32)  # 7 pictures, 7 pairs and 2 drawings, by both
    decision = verdict(place, snapshot)
    assert decision.verdict is Verdict.PROMOTE, decision.reasons
    assert {(m.metric, m.slice) for m in decision.measures} == {
        *(
            ("denoising_loss", s)
            for s in ("all", "own", "written", "low noise", "middle noise", "high noise")
        ),
        *(
            (m, "all")
            for m in ("pick_margin", "pick_accuracy", "text_similarity", "kept_similarity", "taste")
        ),
    }
    taste = JudgeFindings.model_validate_json((place / SEEN_FILE).read_bytes()).taste
    assert taste.startswith("Your taste is known from picks and ratings: of 12 comparisons")
    with Image.open(place / SHEET_FILE) as sheet:
        assert sheet.width > 3 * 256 and sheet.height > 2 * 256
    drawn = [picture_file(place / "drawn", side, spec.drawn[0]).read_bytes() for side in (0, 1)]
    assert drawn[0] != drawn[1]


@pytest.mark.slow
def test_other_pictures_are_rejected_and_a_stopped_comparison_goes_on(
    snapshot: Path, good: Path, tiny_sd15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = train(tmp_path / "run", tiny_sd15, snapshot / "noise.jsonl")
    run = RunDirectory(tmp_path / "gate")
    run.path.mkdir()
    spec = told(tiny_sd15, snapshot, good, adapter)
    asked: list[tuple[int, str]] = []

    def counting(ask: Callable[..., dict[str, float]], stop_after: int) -> Callable[..., dict[str, float]]:
        def counted(version: judge.ComparedVersion, row: Any) -> dict[str, float]:
            if len(asked) == stop_after:
                raise KeyboardInterrupt
            asked.append((version.side, row.id))
            return ask(version, row)

        counted.__name__ = ask.__name__
        return counted

    errors = judge.errors
    monkeypatch.setattr(judge, "errors", counting(errors, 4))
    with pytest.raises(KeyboardInterrupt):
        judge.run(run, spec, RunLog(run), Control(run, lambda held: None))
    monkeypatch.setattr(judge, "errors", counting(errors, 99))
    judge.run(run, spec, RunLog(run), Control(run, lambda held: None))
    assert len(asked) == len(set(asked)) == 14
    decision = verdict(run.path, snapshot)
    assert decision.verdict is Verdict.REJECT and "worse at drawing what you kept" in decision.reasons[0]
