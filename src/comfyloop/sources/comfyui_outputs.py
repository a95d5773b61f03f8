"""What ComfyUI saved: the workflow inside a picture says by which prompt, seed and models it was made.

Where a person has put a text beside a picture, that is said of it, and not its prompt.

Which text made the picture is told by following the workflow, as the node pack does for a pick.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from PIL import Image

from comfyloop.comfyui.workflow import malformed, shown_text
from comfyloop.sources.captions import TEXTS, beside, of_picture
from comfyloop.sources.source import DataSource, SourceItem, SourceOptions, found
from comfyloop.sources.tree import Tree

LONGEST = 16 * 2**20
"""Bytes of a workflow."""
_PNG = b"\x89PNG\r\n\x1a\n"
_LOOKED_AT = 12
_MODELS = re.compile(r"(ckpt|unet|model|lora|vae|clip)_name\d*$")
_COUNTER = re.compile(r"_\d+_?$")
_LONGEST_COMMENT = 1000


def fits(tree: Tree) -> bool:
    bare = [name for name in tree.pictures if beside(tree, name) is None]
    return any(texts_of(tree.path(name)).get("prompt") for name in bare[:_LOOKED_AT])


def read(tree: Tree, options: SourceOptions) -> Iterator[SourceItem]:
    for name in (*tree.pictures, *sorted(tree.other_pictures)):
        path = tree.path(name)
        if (beside(tree, name) or "").lower().endswith(TEXTS) or name in tree.other_pictures:
            yield of_picture(tree, name, options)
            continue
        try:
            value = _made_by(texts_of(path).get("prompt", ""), path.name)
        except _Unknown as error:
            yield found(None, name, path.parent, str(error))
            continue
        yield found({"image": path.name, **value}, name, path.parent)


class _Unknown(Exception):
    """Why it is not known what a picture was made by, as the end of a sentence about it."""


def texts_of(path: Path) -> dict[str, str]:
    """The texts in a picture that ComfyUI puts there: ``prompt`` and ``workflow``; none where it is damaged.

    In PNGs they are chunks, `comf` ones in animations; WebPs, and the JPEGs of other nodes, have them in their EXIF.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_PNG)) == _PNG:
                return _of_chunks(file)
        return _of_exif(path)
    except (OSError, ValueError, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError):
        return {}


def _of_chunks(file: BinaryIO) -> dict[str, str]:
    texts: dict[str, str] = {}
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT" and texts:  # it writes them first
            break
        if kind in (b"tEXt", b"iTXt", b"zTXt", b"comf") and length <= LONGEST:
            word, _, rest = file.read(length).partition(b"\0")
            file.seek(4, 1)
            if word in (b"prompt", b"workflow"):
                texts[word.decode()] = _text(kind, rest)
        else:
            file.seek(length + 4, 1)
    return texts


def _of_exif(path: Path) -> dict[str, str]:
    """Each is a text of its own that begins with what it is: ``prompt:{...}``."""
    with Image.open(path) as image:
        values = [value for value in image.getexif().values() if isinstance(value, str)]
    said = (value.partition(":") for value in values if len(value) <= LONGEST)
    return {word.lower(): text for word, _, text in said if word.lower() in ("prompt", "workflow")}


def _text(kind: bytes, rest: bytes) -> str:
    if kind in (b"tEXt", b"comf"):
        return rest.decode("utf-8", "replace")
    if kind == b"zTXt":
        packed = True
        rest = rest[1:]
    else:
        packed = rest[:1] == b"\1"
        rest = rest[2:].split(b"\0", 2)[-1]
    if packed:
        unpacking = zlib.decompressobj()
        rest = unpacking.decompress(rest, LONGEST)
        if unpacking.unconsumed_tail:
            raise ValueError("a workflow that is too long")
    return rest.decode("utf-8", "replace")


def _made_by(text: str, name: str) -> dict[str, Any]:
    if not text:
        raise _Unknown("it has no workflow in it, so it is not known by which prompt it was made")
    try:
        graph = json.loads(text, parse_constant=lambda _: None)  # ComfyUI's is_changed may be NaN
    except (ValueError, RecursionError):
        raise _Unknown("the workflow in it cannot be read") from None
    if wrong := malformed(graph):
        raise _Unknown(f"the workflow in it is none: {wrong}")
    prompts = {prompt for shower in _showers(graph, name) if (prompt := shown_text(graph, shower))}
    if len(prompts) != 1:
        why = "it saves pictures of several prompts" if prompts else "no one text of it made the picture"
        raise _Unknown(f"its prompt is not known from its workflow: {why}")
    return {"caption": prompts.pop(), "comment": _comment(graph)}


def _showers(graph: dict[str, Any], name: str) -> list[str]:
    """The nodes that may have saved a picture: by the prefix of its name, where that tells."""
    savers = [
        key
        for key, node in graph.items()
        if "images" in node["inputs"] and ("Save" in node["class_type"] or "Preview" in node["class_type"])
    ]
    stem = _COUNTER.sub("", PurePosixPath(name).stem)
    mine = [
        key
        for key in savers
        if PurePosixPath(str(graph[key]["inputs"].get("filename_prefix", "")).replace("\\", "/")).name == stem
    ]
    return mine or savers


def _comment(graph: dict[str, Any]) -> str:
    """Seed and models, for a person to see."""
    seeds = [
        str(value)
        for node in graph.values()
        for name, value in node["inputs"].items()
        if name in ("seed", "noise_seed") and isinstance(value, int) and not isinstance(value, bool)
    ]
    models = [
        value
        for node in graph.values()
        for name, value in node["inputs"].items()
        if _MODELS.search(name) and isinstance(value, str)
    ]
    said = [f"seed {', '.join(dict.fromkeys(seeds))}"] if seeds else []
    said += [f"models {', '.join(dict.fromkeys(models))}"] if models else []
    return "; ".join(said)[:_LONGEST_COMMENT]


SOURCE = DataSource(
    "comfyui",
    "pictures that ComfyUI saved, each with the prompt, the seed and the models of the workflow inside",
    fits,
    read,
)
