"""The repository itself, cloned into custom_nodes as ComfyUI-Manager does it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

from comfyloop.comfyui import pack_folder

ROOT = Path(__file__).parents[3]


def cloned(tmp_path: Path) -> Path:
    clone = tmp_path / "custom_nodes" / "ComfyLoop"
    clone.mkdir(parents=True)
    (clone / "prestartup_script.py").write_bytes((ROOT / "prestartup_script.py").read_bytes())
    (clone / "comfyui").symlink_to(pack_folder())
    return clone


def test_a_clone_imports_and_brings_its_page_words_and_templates(tmp_path: Path) -> None:
    clone = cloned(tmp_path)
    for _ in range(2):
        runpy.run_path(str(clone / "prestartup_script.py"))
    look = "import ComfyLoop as pack; print(pack.WEB_DIRECTORY, pack.NODE_CLASS_MAPPINGS)"
    told = subprocess.run(
        [sys.executable, "-c", look], cwd=clone.parent, capture_output=True, text=True, check=True
    )
    web = told.stdout.split()[0]
    assert (clone / web / "comfyloop.js").exists()
    assert (clone / "locales" / "zh").is_dir() and list((clone / "workflows").glob("*.json"))


def test_a_checkout_elsewhere_is_left_as_it_is(tmp_path: Path) -> None:
    clone = cloned(tmp_path)
    elsewhere = clone.rename(tmp_path / "work")
    runpy.run_path(str(elsewhere / "prestartup_script.py"))
    assert not (elsewhere / "__init__.py").exists()


def test_where_nothing_can_be_written_it_is_said_what_to_do(tmp_path: Path) -> None:
    lead = runpy.run_path(str(ROOT / "prestartup_script.py"))["lead_to_the_pack"]
    why = lead(tmp_path / "gone")
    assert "custom_nodes/comfyloop" in why and "comfyloop comfyui link" in why
