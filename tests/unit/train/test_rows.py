"""Every bad line is named with file, line and sample; nothing is replaced or repaired in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comfyloop.errors import DataError, NotFound
from comfyloop.pictures import fit, read_picture
from comfyloop.train.models import describe
from comfyloop.train.rows import Row, Turn, UnusableRow, read_rows, refuse_or_skip
from comfyloop.train.spec import TrainSpec

GOOD = {
    "id": "s1",
    "messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}],
}


def answered(answer: object, question: object = "Why?", **more: object) -> dict[str, object]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": "bad1", "messages": messages, **more}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"messages": [', "not JSON"),
        ("[1, 2]", "a JSON list, not an object"),
        (json.dumps({"id": "x"}), "no list of messages"),
        (json.dumps(answered("  ")), "its answer is empty"),
        (json.dumps({"messages": [{"role": "user", "content": "Hi"}]}), "the user's, so there is no answer"),
        (json.dumps(answered("It.", "<image>What?")), "1 <image> tag and it names 0 images"),
        (json.dumps(answered("It.", images=["a.png"])), "0 <image> tags and it names 1 image"),
        (json.dumps(answered("<image>", images=["a.png"])), "its answer contains an image"),
        (json.dumps(answered(7)), "content of type int"),
        (json.dumps(answered(["a", {"b": 1}])), "content of type list"),
        (json.dumps({"messages": [{"role": "tool", "content": "x"}]}), "the role 'tool'"),
        (json.dumps({"messages": ["hello"]}), "message 1 is a str"),
        (json.dumps(answered("It.", images="a.png")), "its images are a str"),
        (json.dumps(answered("It.", "<image>", images=[3])), "one of its images is a int"),
        (json.dumps(answered("It.", rejected_response=[1])), "rejected_response is not a text"),
        (json.dumps(answered("It.", label="yes")), "its label is 'yes'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    rows, bad = read_rows(path)
    assert [row.id for row in rows] == ["s1"]
    assert [b.line for b in bad] == [2]
    assert reason in bad[0].reason
    with pytest.raises(DataError, match=r"1 of 2 rows .*train\.jsonl:2") as error:
        refuse_or_skip(path, len(rows), bad, skip=False, max_share=0.5)
    assert "skip_bad" in error.value.mend


def test_bad_lines_may_be_skipped_up_to_a_share(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text((json.dumps(GOOD) + "\n") * 9 + "oops\n")
    rows, bad = read_rows(path)
    refuse_or_skip(path, len(rows), bad, skip=True, max_share=0.1)
    with pytest.raises(DataError, match="more than the share of 5%"):
        refuse_or_skip(path, len(rows), bad, skip=True, max_share=0.05)


def test_old_role_names_are_converted(tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    path.write_text(
        json.dumps({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]})
    )
    rows, bad = read_rows(path)
    assert not bad
    assert [(t.role, t.content) for t in rows[0].turns] == [("user", "Hi"), ("assistant", "Ho")]


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no data file"):
        read_rows(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="has no rows"):
        read_rows(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{}\n{"a": "\xe9"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl:2 is not UTF-8"):
        read_rows(tmp_path / "latin.jsonl")


@given(st.lists(st.text(max_size=40), max_size=6))
def test_reading_never_crashes_and_loses_no_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "any.jsonl"
    lines = [line.replace("\n", " ") for line in lines]
    path.write_bytes("\n".join([json.dumps(GOOD), *lines]).encode("utf-8", "replace"))
    rows, bad = read_rows(path)
    assert len(rows) + len(bad) == 1 + sum(
        1 for line in lines if line.encode("utf-8", "replace").decode().strip()
    )


def write_bomb(path: Path) -> None:
    """A PNG whose header claims 30,000 x 30,000 pixels, a few hundred bytes long."""
    Image.new("1", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.png", "does not exist"),
        ("empty.png", "is empty"),
        ("cut.png", "cannot be decoded"),
        ("page.png", "is not one of PNG"),
        ("bomb.png", "30000 x 30000 pixels, more than max_image_pixels"),
    ],
)
def test_a_bad_image_is_refused(tiny_vlm: Path, tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.png").write_text("<!doctype html><title>404</title>")
    noise = Image.effect_noise((90, 90), 60)
    noise.save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    write_bomb(tmp_path / "bomb.png")
    spec = TrainSpec(model=str(tiny_vlm), train="t", max_pixels=10_000)
    encoder = describe(str(tiny_vlm)).encoder(spec)
    turns = (Turn("user", "<image>"), Turn("assistant", "It."))
    with pytest.raises(UnusableRow, match=reason):
        encoder.encode(Row(1, "s", turns, (tmp_path / name,)))


def test_a_large_image_is_scaled_down_upright_and_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (400, 200), (0, 0, 0, 0))
    image.save(tmp_path / "clear.png")
    opened = read_picture((tmp_path / "clear.png").read_bytes(), 5_000, 1_000_000)
    assert opened.mode == "RGB"
    assert opened.size == (100, 50)
    assert opened.getpixel((5, 5)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (400, 200), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture((tmp_path / "turned.jpg").read_bytes(), 10**6, 10**6).size == (200, 400)


@given(st.integers(1, 40_000), st.integers(1, 40_000), st.integers(1, 10**7))
def test_fit_keeps_the_bound(width: int, height: int, most: int) -> None:
    w, h = fit(width, height, most)
    assert 1 <= w <= width
    assert 1 <= h <= height
    assert w * h <= most or 1 in (w, h)
