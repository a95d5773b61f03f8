"""Emoji: a picture of each thing with its name in English and Chinese, from two packages of the npm registry.

Names are emojibase's, pictures Microsoft's Fluent Emoji in 3D. People, flags and symbols are left out.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comfyloop.errors import DataError
from comfyloop.sources.builtin.declared import Builtin, asked, drawn, write_rows
from comfyloop.sources.builtin.registry import RegistryPackage, obtain

NAMES = RegistryPackage(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    6_711_091,
)
PICTURES = RegistryPackage(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    15_792_027,
)
GROUPS = frozenset([3, 4, 5, 6, 7])
"""Animals, food, travel, activities, objects."""
ASKED = {"en": "What is this?", "zh": "这是什么?"}


def make(folder: Path, cache: Path) -> None:
    names, pictures = obtain(NAMES, cache), obtain(PICTURES, cache)
    (folder / "pictures").mkdir()
    try:
        things = _things(names)
        write_rows(folder, _rows(things, _unpacked(pictures, folder / "pictures", set(things))))
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise DataError(f"The emoji packages are not as they were: {error!r}.", "Report this.") from error


def _things(package: Path) -> dict[str, dict[str, str]]:
    """The names of each thing in each language, by its code."""
    found: dict[str, dict[str, str]] = {}
    with tarfile.open(package) as archive:
        for language in ASKED:
            member = archive.extractfile(f"package/{language}/data.json")
            assert member is not None
            for entry in json.load(member):
                if entry.get("group") in GROUPS:
                    found.setdefault(entry["hexcode"].lower(), {})[language] = entry["label"]
    return {code: names for code, names in found.items() if names.keys() == ASKED.keys()}


def _unpacked(package: Path, folder: Path, codes: set[str]) -> dict[str, str]:
    """The pictures of these codes, written into a folder."""
    found: dict[str, str] = {}
    wanted = {code.replace("-fe0f", "") for code in codes}
    with tarfile.open(package) as archive:
        for member in archive:
            name = Path(member.name)
            code = name.stem.replace("-fe0f", "")
            if member.isfile() and name.suffix == ".webp" and name.parent.name == "assets" and code in wanted:
                source = archive.extractfile(member)
                assert source is not None
                (folder / name.name).write_bytes(source.read())
                found[code] = f"pictures/{name.name}"
    return found


def _rows(things: dict[str, dict[str, str]], pictures: dict[str, str]) -> Iterator[dict[str, Any]]:
    for code, names in things.items():
        picture = pictures.get(code.replace("-fe0f", ""))
        if picture is None:
            continue
        for language, question in ASKED.items():
            yield asked(question, names[language], picture)
        yield drawn(f"{names['en']}, 3d emoji", picture)


BUILTIN = Builtin(
    name="emoji",
    what="Pictures of things with their names in English and Chinese",
    licence="MIT (emojibase, Fluent Emoji)",
    rows=2547,
    bytes=NAMES.bytes + PICTURES.bytes,
    modalities=("text", "image"),
    languages=("en", "zh"),
    make=make,
)
