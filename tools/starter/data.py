"""The pictures the head learns from: emoji in five free styles, each with its name and keywords.

Everything comes from npm packages fetched by name and version; nothing is kept in this repository.
Flags and components (skin tones, hair) are left out: they are not subjects of a picture.
"""

import io
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

PACKAGES = {
    "names": "emojibase-data@17.0.0",  # MIT
    "noto": "emoji-datasource-google@16.0.0",  # pictures Apache-2.0
    "twemoji": "emoji-datasource-twitter@16.0.0",  # pictures CC-BY 4.0 (Twemoji)
    "fluent3d": "@lobehub/fluent-emoji-3d@1.1.0",  # MIT
    "fluentflat": "@iconify-json/fluent-emoji-flat@1.2.6",  # MIT
    "notoblob": "@iconify-json/noto-v1@1.2.5",  # Apache-2.0
    "openmoji": "openmoji@17.0.0",  # CC-BY-SA 4.0: a test style only, never trained on
}
TRAIN_STYLES = ("noto", "twemoji", "fluent3d", "fluentflat", "notoblob")
TEST_STYLE = "openmoji"
SKIPPED_GROUPS = {"flags", "component"}

# "siblings" holds out a random tenth; "families" is harder: whole kinds of things are held out.
HELD_OUT = {
    "siblings": Path(__file__).with_name("held_out.txt"),
    "families": Path(__file__).with_name("held_out_families.txt"),
}


@dataclass(frozen=True)
class Concept:
    code: str
    label: str
    tags: tuple[str, ...]
    group: str
    pictures: dict[str, str] = field(hash=False)  # style -> "file path" or "svg:package/name"


def fetch(work: Path, packages: dict[str, str] = PACKAGES) -> dict[str, Path]:
    """Download and unpack every package once; returns where each lies."""
    places = {}
    for key, spec in packages.items():
        place = work / "npm" / key
        if not (place / "package").is_dir():
            place.mkdir(parents=True, exist_ok=True)
            result = subprocess.run(
                ["npm", "pack", "--silent", spec], cwd=place, check=True, capture_output=True, text=True
            )
            with tarfile.open(place / result.stdout.split()[-1]) as archive:
                archive.extractall(place, filter="data")
        places[key] = place / "package"
    return places


def slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("’", "").replace("ñ", "n")).strip("-")


@cache
def icons(package: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((package / "icons.json").read_text())
    return loaded


def concepts(work: Path) -> list[Concept]:
    places = fetch(work)
    entries = json.loads((places["names"] / "en/data.json").read_text())
    messages = json.loads((places["names"] / "en/messages.json").read_text())
    groups = {g["order"]: g["key"] for g in messages["groups"]}
    concept_list = []
    for entry in entries:
        group = groups.get(entry.get("group", -1))
        if group is None or group in SKIPPED_GROUPS:
            continue
        code = entry["hexcode"].lower()
        spellings = dict.fromkeys([code, f"{code}-fe0f", code.replace("-fe0f", "")])
        name = slug(entry["label"])
        where = {
            "noto": [places["noto"] / f"img/google/64/{s}.png" for s in spellings],
            "twemoji": [places["twemoji"] / f"img/twitter/64/{s}.png" for s in spellings],
            "fluent3d": [places["fluent3d"] / f"assets/{s}.webp" for s in spellings],
            "openmoji": [places["openmoji"] / f"color/svg/{s.upper()}.svg" for s in spellings],
        }
        pictures = {style: str(path) for style, paths in where.items() for path in paths if path.exists()}
        for style in ("fluentflat", "notoblob"):
            if name in icons(places[style])["icons"]:
                pictures[style] = f"svg:{places[style]}:{name}"
        if any(style in pictures for style in TRAIN_STYLES):
            tags = tuple(t.lower() for t in entry.get("tags", ()) if t.lower() != entry["label"].lower())
            concept_list.append(Concept(code, entry["label"], tags, group, pictures))
    return concept_list


def picture(source: str) -> Image.Image:
    """The picture with its transparency, at its own size (SVG at 256 pixels)."""
    if not source.startswith("svg:") and not source.endswith(".svg"):
        return Image.open(source).convert("RGBA")
    import resvg_py  # only the training recipe draws SVG

    if source.endswith(".svg"):
        drawn = resvg_py.svg_to_bytes(svg_path=source, width=256, height=256)
    else:
        _, package, name = source.split(":")
        icon_set = icons(Path(package))
        icon = icon_set["icons"][name]
        width, height = icon.get("width", icon_set["width"]), icon.get("height", icon_set["height"])
        text = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        drawn = resvg_py.svg_to_bytes(svg_string=text, width=256, height=256)
    return Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")


# ---- the words of a concept -----------------------------------------------------------------------

# Words that name no subject: not learned, and not counted when they are said.
_GENERIC = """
a an and the of in on with at to for by or no not drawing photo picture image face person people man woman
men women boy girl sign symbol button keyword keywords show shows facing right left up down
"""
GENERIC = frozenset(_GENERIC.split())


def stem(word: str) -> str:
    return word[:-1] if word.endswith("s") and len(word) > 3 else word


def content_words(text: str) -> list[str]:
    return [w for w in re.findall(r"[a-z]+", text.lower()) if w not in GENERIC and len(w) > 2]


def stems(*texts: str) -> set[str]:
    return {stem(word) for text in texts for word in content_words(text)}


# ---- which concepts are held out ------------------------------------------------------------------


def sibling_key(label: str) -> str:
    """Concepts that differ in gender, variant or direction alone stay on one side of the split."""
    for word in ("man ", "woman ", "person ", "men ", "women ", "people "):
        label = label.removeprefix(word)
    return label.split(":")[0].replace(" facing right", "")


def held_out_codes(split: str = "siblings") -> frozenset[str]:
    """The fixed list: one code a line, then the label for the reader."""
    lines = HELD_OUT[split].read_text().splitlines()
    return frozenset(line.split()[0] for line in lines if line and not line.startswith("#"))


def split(concept_list: list[Concept], name: str = "siblings") -> tuple[list[Concept], list[Concept]]:
    """Training and held-out concepts."""
    held_out = held_out_codes(name)
    return [c for c in concept_list if c.code not in held_out], [
        c for c in concept_list if c.code in held_out
    ]
