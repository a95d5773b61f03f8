"""Rows, pictures of every kind, buckets, and what is cached."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comfyloop.errors import DataError, InvalidInput, ModelError, NotFound
from comfyloop.formats import UnusableRow
from comfyloop.service import model_path
from comfyloop.settings import Settings
from comfyloop.train.image import buckets, checkpoint
from comfyloop.train.image.cache import Cache
from comfyloop.train.image.latents import Latents
from comfyloop.train.image.rows import decode, read_rows
from comfyloop.train.image.text import Captions
from comfyloop.train.image.vae import load_vae
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.specs.files import read_spec
from comfyloop.train.specs.image import ImageTrainSpec
from comfyloop.train.specs.options import make_spec

LIMIT = 64_000_000


def write(folder: Path, *rows: dict[str, Any] | str) -> Path:
    path = folder / "train.jsonl"
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8"
    )
    return path


def row(chosen: str | dict[str, str], prompt: Any = "a fox", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "chosen": chosen, **more}


def shown(folder: Path, name: str) -> tuple[int, int, int]:
    """The middle pixel of a picture as training sees it."""
    rows, bad = read_rows(write(folder, row(name)), pairs=False, max_image_pixels=LIMIT)
    assert not bad
    pixel = decode(rows[0].chosen).getpixel((8, 8))
    assert isinstance(pixel, tuple)
    return (int(pixel[0]), int(pixel[1]), int(pixel[2]))


def test_pictures_of_every_kind(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert shown(tmp_path, "clear.png") == (255, 255, 255)
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red, green, blue = shown(tmp_path, "cmyk.jpg")
    assert red > 240 and green < 20 and blue < 40
    deep = np.full((16, 16), 32768, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert shown(tmp_path, "deep.png") == (128, 128, 128)
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("lime", "blue")]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "moves.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert shown(tmp_path, "moves.gif") == shown(tmp_path, "moves.webp") == (0, 255, 0)
    Image.new("P", (16, 16), 3).save(tmp_path / "palette.png")
    Image.new("L", (16, 16), 77).save(tmp_path / "grey.png")
    assert shown(tmp_path, "grey.png") == (77, 77, 77)


def test_a_sideways_photo_is_turned_before_its_shape_is_told(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 16), "red").save(tmp_path / "p.jpg", exif=exif)
    rows, _ = read_rows(write(tmp_path, row("p.jpg")), pairs=False, max_image_pixels=LIMIT)
    assert (rows[0].chosen.width, rows[0].chosen.height) == (16, 64) == decode(rows[0].chosen).size


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    Image.new("RGB", (400, 4)).save(tmp_path / "line.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("I am no picture")
    path = write(
        tmp_path, row("a.png", rejected="b.png"), "{", "[]", row("none.png"), row("empty.png"), row("text.png"),
        row("line.png"), row("a.png", prompt=7), {"chosen": "a.png"}, row("a.png", rejected="a.png"), row("a.png"),
    )  # fmt: skip
    rows, bad = read_rows(path, pairs=True, max_image_pixels=LIMIT)
    assert not rows and [b.line for b in bad] == list(range(1, 12))
    for expected, found in zip(
        ("b.png does not exist", "not JSON", "a JSON list", "none.png does not exist", "empty", "not one of PNG",
         "a line, not a picture", "content of type int", "neither messages nor", "the same",
         "no picture under 'rejected'"),
        bad, strict=True,
    ):  # fmt: skip
        assert expected in found.reason, found
    rows, bad = read_rows(write(tmp_path, row("a.png")), pairs=False, max_image_pixels=100)
    assert "more than max_image_pixels" in bad[0].reason
    with pytest.raises(NotFound):
        read_rows(tmp_path / "none.jsonl", pairs=False, max_image_pixels=LIMIT)
    with pytest.raises(DataError):
        read_rows(write(tmp_path, ""), pairs=False, max_image_pixels=LIMIT)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (row("a\0.png"), "no file's name has: a\\x00.png"),
        (row("a\ud83d.png"), "no file's name has: a\\ud83d.png"),
        (row({"path": "images/" + "a" * 5000}), "cannot be read"),
        (row({"path": "."}), "cannot be read"),
        (row({"path": "pipe"}), "cannot be read"),
        (row("a.png/b.png"), "does not exist"),
        (row("a.png", prompt="a \ud83d fox"), "half a character"),
        (row("a.png", prompt="a \0 fox"), "NUL"),
        ('{"chosen": "a.png", "messages": ' + "9" * 5000 + "}", "too many digits"),
        ('{"chosen": "a.png", "messages": ' + "[" * 100_000, "too deep"),
        (
            '{"picked": ' + "[" * 400 + "]" * 400 + ', "messages": [{"role": "user", "content": "x"}]}',
            "no picture",
        ),
    ],
)
def test_what_no_file_can_be_called_is_named_and_the_rest_is_read(
    line: dict[str, Any] | str, reason: str, tmp_path: Path
) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe")
    rows, bad = read_rows(write(tmp_path, line, row("a.png")), pairs=False, max_image_pixels=LIMIT)
    assert len(rows) == 1 and len(bad) == 1 and reason in bad[0].reason, bad
    bad[0].reason.encode()


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5000, "[" * 100_000 + "]" * 100_000])
def test_options_of_any_length_are_told_in_a_sentence(value: str, tmp_path: Path) -> None:
    known = {"recipe": "image_sft", "model": "m.safetensors", "train": "t.jsonl"}
    with pytest.raises(InvalidInput):
        make_spec(known, [f"snr_gamma={value}x", f"seed={value}"])
    (tmp_path / "spec.json").write_text('{"recipe": "image_sft", "seed": ' + value)
    with pytest.raises(InvalidInput):
        read_spec(tmp_path)
    (tmp_path / "spec.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InvalidInput, match="UTF-8"):
        read_spec(tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "~nobody-here/x", "\udcff"])
def test_a_model_that_can_be_no_file_is_told_in_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises((ModelError, InvalidInput)):
        spec = make_spec({"recipe": "image_sft", "model": name, "train": "t.jsonl"}, [])
        assert model_path(Settings(home=tmp_path), name) == name
        checkpoint.load(RunDirectory(tmp_path).resolve(spec.model))
    with pytest.raises(ModelError):
        load_vae(tmp_path / name, "sd15")


def test_a_cut_off_picture_is_told_when_it_is_decoded(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    rows, bad = read_rows(write(tmp_path, row("a.png")), pairs=False, max_image_pixels=LIMIT)
    assert not bad
    with pytest.raises(UnusableRow, match=r"a\.png cannot be decoded"):
        decode(rows[0].chosen)


@given(
    width=st.integers(1, 4000), height=st.integers(1, 4000), resolution=st.sampled_from([64, 128, 512, 768, 1024]),
    step=st.sampled_from([8, 32, 64]),
)  # fmt: skip
def test_a_bucket_is_covered_and_of_the_allowed_size(
    width: int, height: int, resolution: int, step: int
) -> None:
    sizes = buckets.sizes(resolution, step)
    how = buckets.fit(width, height, sizes)
    assert how.size in sizes
    for w, h in sizes:
        assert w % step == 0 == h % step and w * h <= resolution**2 and max(w, h) <= 3 * min(w, h)
    for scaled, size, corner in zip(how.scaled, how.size, how.corner, strict=True):
        assert 0 <= corner <= scaled - size
    assert abs(how.scaled[0] / width - how.scaled[1] / height) * min(width, height) <= 1.5  # no stretching


def test_the_bucket_of_the_nearest_shape_and_the_largest_of_those() -> None:
    sizes = buckets.sizes(512, 64)
    assert buckets.fit(3000, 3000, sizes).size == (512, 512)
    assert buckets.fit(1920, 1080, sizes).size == (640, 384)
    assert buckets.fit(1080, 1920, sizes).size == (384, 640)


def test_changing_one_picture_encodes_one_again(tiny_sd15: Path, tmp_path: Path) -> None:
    model = checkpoint.load(tiny_sd15)
    for i in range(3):
        Image.new("RGB", (80, 64), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")

    def look() -> int:
        cache = Cache(tmp_path / "cache")
        latents, captions = Latents(model, cache, 64, 8), Captions(model, cache)
        rows, _ = read_rows(
            write(tmp_path, *(row(f"{i}.png", f"picture {i}") for i in range(3))),
            pairs=False,
            max_image_pixels=LIMIT,
        )
        for _ in range(2):
            for found in rows:
                assert latents.of(found.chosen).shape == (4, 7, 9)
                captions.of(found.caption)
        return cache.made

    assert look() == 6
    assert look() == 0
    Image.new("RGB", (80, 64), (1, 2, 3)).save(tmp_path / "1.png")
    assert look() == 1
    damaged = next((tmp_path / "cache").rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:20])
    assert look() == 1
    with torch.no_grad():
        next(model.vae.parameters()).add_(0.01)
    assert look() == 3  # another VAE: other latents, the same captions


def test_what_stands_over_is_cut_away_from_where_no_subject_is(tiny_sd15: Path, tmp_path: Path) -> None:
    picture = Image.new("RGB", (400, 100), "#dddddd")
    picture.paste("#c02020", (290, 20, 350, 80))
    picture.save(tmp_path / "wide.png")
    picture.crop((200, 0, 400, 100)).save(tmp_path / "other.png")
    path = write(tmp_path, row("wide.png", rejected="other.png"))
    (found,), _ = read_rows(path, pairs=True, max_image_pixels=LIMIT)
    model, cache = checkpoint.load(tiny_sd15), Cache(tmp_path / "cache")
    by_subject, by_middle = Latents(model, cache, 64, 8), Latents(model, cache, 64, 8, "middle")
    how, middle = by_subject.fit(found.chosen), by_middle.fit(found.chosen)
    assert how.size == middle.size == by_subject.size(found.chosen) and how.scaled == middle.scaled
    scale = how.scaled[0] / 400
    assert how.corner[0] <= 290 * scale and 350 * scale <= how.corner[0] + how.size[0]
    assert middle.corner[0] + middle.size[0] < 350 * scale
    assert not torch.equal(by_subject.of(found.chosen), by_middle.of(found.chosen))
    again = Latents(model, Cache(tmp_path / "cache"), 64, 8)
    (tmp_path / "wide.png").unlink()  # what was cached tells where it was cut
    assert again.fit(found.chosen) == how and torch.equal(again.of(found.chosen), by_subject.of(found.chosen))
    assert by_subject.of(found.rejected, like=found.chosen).shape == by_subject.of(found.chosen).shape


def test_a_persons_box_counts_before_what_stands_out(tiny_sd15: Path, tmp_path: Path) -> None:
    picture = Image.new("RGB", (400, 100), "#dddddd")
    picture.paste("#c02020", (290, 20, 350, 80))
    picture.paste("#2020c0", (20, 20, 80, 80))
    picture.save(tmp_path / "wide.png")
    boxed, by_hand = row("wide.png", crop=[0, 0, 100, 100]), row("cut.png")
    picture.crop((0, 0, 100, 100)).save(tmp_path / "cut.png")
    (one, other), bad = read_rows(write(tmp_path, boxed, by_hand), pairs=False, max_image_pixels=LIMIT)
    assert not bad and (one.chosen.width, one.chosen.height) == (100, 100)
    assert np.array_equal(np.asarray(decode(one.chosen)), np.asarray(decode(other.chosen)))
    latents = Latents(checkpoint.load(tiny_sd15), Cache(tmp_path / "cache"), 64, 8)
    assert torch.equal(latents.of(one.chosen), latents.of(other.chosen))


@pytest.mark.parametrize(
    "crop", [[0, 0, 401, 100], [5, 5, 5, 9], [-1, 0, 9, 9], [0, 0, 9], "all", [0, 0, 9.5, 9]]
)
def test_a_box_that_is_none_is_named(crop: Any, tmp_path: Path) -> None:
    Image.new("RGB", (400, 100)).save(tmp_path / "wide.png")
    rows, bad = read_rows(write(tmp_path, row("wide.png", crop=crop)), pairs=False, max_image_pixels=LIMIT)
    assert not rows and "400 x 100" in bad[0].reason


def test_a_spec_of_the_image_side_from_the_command_line() -> None:
    known = {"recipe": "image_sft", "model": "m.safetensors", "train": "t.jsonl", "skip_bad": None}
    spec = make_spec(known, ["adapter.r=4", "snr_gamma=0", "about.trigger_words=acme style"])
    assert isinstance(spec, ImageTrainSpec)
    assert (spec.adapter.r, spec.snr_gamma, spec.about.trigger_words) == (4, 0, "acme style")
    with pytest.raises(InvalidInput, match="no field 'train_on'"):
        make_spec(known, ["train_on=all"])
    with pytest.raises(InvalidInput, match="not both"):
        make_spec(known, ["prior=p.jsonl", "prior_images=3"])
