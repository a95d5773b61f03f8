"""`comfyloop demo brand` on tiny models: the whole flow with real processes, whatever the models make of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from comfyloop.cli import app
from comfyloop.demo.brand import material, posters
from comfyloop.demo.brand.material import Brand
from comfyloop.demo.brand.painter import Drawing, Painter
from comfyloop.errors import RunFailed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def brand(monkeypatch: pytest.MonkeyPatch) -> Brand:
    """Fewer products than the demo has: enough for the gate to look at both sides."""
    whole = material.load()
    few = whole._replace(
        catalogue=whole.catalogue[:15], corrections=whole.corrections[:6], held_out=whole.held_out[:2]
    )
    monkeypatch.setattr(material, "load", lambda: few)
    return few


def test_a_brand_is_learnt_corrected_and_learnt_again(
    brand: Brand, tiny_llm: Path, tiny_sd15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {
        "CACHE_DIR": str(tmp_path / "cache"),
        "EPOCHS": "1",
        "IMAGE_EPOCHS": "1",
        "IMAGE_TARGET_MODULES": "all",
        "GATE_MAX_ANSWERS": "2",
        "GATE_MAX_PICTURES": "6",
        "GATE_MAX_DRAWN": "2",
        "GATE_DRAW_STEPS": "2",
    }
    for name, value in few.items():
        monkeypatch.setenv(f"COMFYLOOP_{name}", value)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(
        app,
        [
            *("demo", "brand", "--json", "--report", "report", "--home", "home"),
            *("--model", str(tiny_llm), "--image-model", str(tiny_sd15)),
        ],
    )
    assert done.exit_code in (0, 1), done.output
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "report" / "brand-report.json").read_text(encoding="utf-8"))
    assert report["ok"] == (done.exit_code == 0)
    assert report["background"]["failed"] == 0

    first, second = report["turns"]
    assert (first["version"], second["version"]) == (1, 2)
    for turn in (first, second):  # both sides were trained, and the gate has judged the pair
        assert {line["side"] for line in turn["log"]} == {"text", "image"}
        assert turn["gate"]["candidate"] == turn["version"]
        assert turn["outcome"] in {"promoted", "rejected", "not_enough_evidence"}
    live = max([t["version"] for t in (first, second) if t["outcome"] == "promoted"], default=0)
    assert report["live"] == live
    lora = next((tmp_path / "home" / "home" / "versions" / "brand" / "1" / "image").glob("*.safetensors"))
    with safe_open(lora, "np") as file:  # where the setting says
        assert any("_conv1." in name for name in file.keys())  # noqa: SIM118

    columns = report["columns"]
    corrected = len(brand.catalogue) + 3 * len(
        brand.corrections
    )  # prompts of all; copy and a picture of some
    assert second["sent"] == f"{corrected} pieces of corrections"
    assert [[w["product"] for w in c["works"]] for c in columns] == [[p.name for p in brand.held_out]] * 3
    assert all(work["prompt"] for column in columns for work in column["works"])
    html = (tmp_path / "report" / "brand-report.html").read_text(encoding="utf-8")
    assert html.count("data:image/webp") == 3 * len(brand.held_out)
    with Image.open(tmp_path / "report" / "brand-sheet.png") as sheet:
        assert sheet.width == 3 * (posters.WIDTH + posters.GAP) + posters.GAP


def test_an_image_model_that_cannot_draw_is_told_in_a_sentence(tmp_path: Path) -> None:
    painter = Painter(str(tmp_path / "none.safetensors"), tmp_path / "cache", tmp_path / "pictures")
    with pytest.raises(RunFailed, match=r"could not be drawn: .*none\.safetensors"):
        painter.draw([Drawing("a teapot", 7, "teapot.png")], None)
