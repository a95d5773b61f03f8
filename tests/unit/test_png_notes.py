"""PNGs with long profiles and texts are read at every door, as ComfyUI reads them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comfyloop.capture.images import intake
from comfyloop.media.decoding import opened, read_picture, without_notes
from comfyloop.settings import Settings
from comfyloop.train.image.rows import decode, picture_at

LONG = 2 * 2**20
LIMIT = 64_000_000
PICTURE = Image.effect_noise((40, 20), 80).convert("RGB")
PIXELS = np.asarray(PICTURE)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, after: bytes = b"") -> bytes:
    """A picture wider than high with chunks before its pixels and after them."""
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    data = file.getvalue()
    head, end = data[:33], data[-12:]
    return head + b"".join(chunks) + data[33:-12] + after + end


NOTES = {
    "a profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(LONG))),
    "a profile of a strange kind": chunk(b"iCCP", b"icc\0\7" + b"x" * 20),
    "a packed text": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"a" * LONG)),
    "a text packed otherwise": chunk(b"zTXt", b"workflow\0\7abc"),
    "a packed Unicode text": chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(b"a" * LONG)),
    "a text that unpacks to 200 MB": chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(200 * 2**20), 9)),
    "a picture's history": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b" " * LONG)),
    "a plain text": chunk(b"tEXt", b"workflow\0" + b"a" * LONG),
}


def seen(data: bytes, tmp_path: Path, settings: Settings) -> list[np.ndarray]:
    """The picture as each door sees it."""
    (tmp_path / "a.png").write_bytes(data)
    info = intake(data, settings)
    row = picture_at(tmp_path / "a.png")
    assert (info.width, info.height) == opened(data).size and (row.width, row.height) == decode(row).size
    return [np.asarray(read_picture(data, 10**6, LIMIT)), np.asarray(decode(row))]


@pytest.mark.parametrize("name", NOTES)
@pytest.mark.parametrize("after", [False, True])
def test_a_long_note_does_not_hide_the_picture(
    name: str, after: bool, tmp_path: Path, settings: Settings
) -> None:
    data = png(after=NOTES[name]) if after else png(NOTES[name])
    assert all(np.array_equal(picture, PIXELS) for picture in seen(data, tmp_path, settings))


def test_many_long_texts_do_not_either(tmp_path: Path, settings: Settings) -> None:
    texts = [chunk(b"zTXt", b"x%d\0\0" % n + zlib.compress(b"a" * 2**20)) for n in range(80)]
    assert all(np.array_equal(picture, PIXELS) for picture in seen(png(*texts), tmp_path, settings))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    "note",
    [
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
    ],
)
def test_what_says_how_a_picture_is_turned_is_kept(note: bytes, tmp_path: Path, settings: Settings) -> None:
    for picture in seen(png(NOTES["a profile"], note), tmp_path, settings):
        assert picture.shape == (40, 20, 3)


def test_what_is_broken_off_stays_as_it_is() -> None:
    whole = png(NOTES["a profile"])
    for end in (0, 4, 8, 20, 33, 40, len(whole) - 5):
        cut = whole[:end]
        assert without_notes(cut) == cut or len(without_notes(cut)) < len(cut)
    assert without_notes(b"GIF89a") == b"GIF89a"
    huge = struct.pack(">I", 2**31) + b"iCCP"
    assert without_notes(whole[:8] + huge) == whole[:8] + huge
