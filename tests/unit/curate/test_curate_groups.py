"""Near copies of one question or one picture are one group, and other questions and pictures are not."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comfyloop.curate.groups import BITS_APART, COLOURS_APART, PictureGroups, group_of
from comfyloop.curate.samples import Source, make
from comfyloop.curate.seen import Look, look_at
from comfyloop.records import Message, Sample

LEAKS = Path(__file__).parents[2] / "cases" / "17-holdout-leak"
SOURCE = Source("acme", ("fb_1",), "sample_uploaded", "ada")


def asked(*texts: str) -> str:
    turns = [Message.of("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]
    return group_of(turns)


@pytest.mark.parametrize("name", ["leak16b56b.jsonl", "leakea343d.jsonl"])
def test_a_greeting_before_and_a_question_mark_make_no_other_question(name: str) -> None:
    groups: dict[str, set[int]] = {}
    for number, line in enumerate((LEAKS / name).read_text().split("\n")):
        if line:
            turns = [Message.of(m["role"], m["content"]) for m in json.loads(line)["messages"]]
            groups.setdefault(group_of(turns[:-1]), set()).add(number)
    assert sorted(map(sorted, groups.values())) == [[n, n + 1] for n in range(0, 80, 2)]


@given(st.text(st.characters(max_codepoint=127)))
def test_a_text_of_plain_letters_is_read_as_any_other(text: str) -> None:
    """It takes a shorter way; with a character of no width in it, it takes the long one."""
    assert asked(text) == asked("\u200b" + text)


ALIKE: list[list[tuple[str, ...]]] = [
    [("Café?",), (unicodedata.normalize("NFD", "Café?"),), ("  CAFÉ ",), ("café。",), ("Hello, café?",)],
    [("猫在哪里？",), ("猫在哪里",), ("你好，猫在哪里?",), ("您好", "你好！", "猫在哪里？")],
    [
        ("Where is it?",),
        ("Good morning!", "Hi.", "Where is it"),
        ("Where\u200b is\u00a0it?",),
        ("Ｗhere is it",),
    ],
    [("What is 1-1?",)],
    [("What is 11?",)],
    [("Hello",), ("hello!",)],
    [("你好吗",)],
    [("Hijack the plane",)],
    [("?",)],
    [("!",)],
]


def test_what_is_alike_is_one_group_and_nothing_else_is() -> None:
    groups = [{asked(*texts) for texts in alike} for alike in ALIKE]
    assert [len(group) for group in groups] == [1] * len(ALIKE)
    assert len(set.union(*groups)) == len(ALIKE)


@given(
    st.text(max_size=40), st.sampled_from(["", "?", " ?", "!", "。"]), st.sampled_from(["NFC", "NFD", "NFKC"])
)
def test_marks_at_the_end_and_unicode_forms_do_not_count(text: str, end: str, form: str) -> None:
    body = f"a {text} b"
    assert asked(unicodedata.normalize(form, body).upper() + end) == asked(body.upper())


@pytest.fixture
def shelf(tmp_path: Path) -> Callable[..., str]:
    kept: dict[str, bytes] = {}

    def keep(data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        kept[sha] = data
        return sha

    keep.look = lambda sha: look_at(kept[sha])  # type: ignore[attr-defined]
    return keep


def about(sha: str, *more: str, text: str = "What is it?", n: int = 0) -> Sample:
    turns = [Message.of("user", text, [sha, *more]), Message.of("assistant", f"A thing {n}.")]
    return make("sft", turns, Source("acme", (f"fb_{n}",), "sample_uploaded", "ada"))


def test_one_picture_however_it_is_saved_is_one_group(shelf: Callable[..., str]) -> None:
    """PNG and JPEG, with other metadata, scaled; and no two different pictures are one."""
    files = sorted(LEAKS.glob("*.png")) + sorted(LEAKS.glob("*.jpg"))
    samples = [about(shelf(f.read_bytes()), text=f"What of {n}?", n=n) for n, f in enumerate(files)]
    grouped = PictureGroups(shelf.look).regroup(samples)  # type: ignore[attr-defined]
    of = {file.name: sample.group for file, sample in zip(files, grouped, strict=True)}
    for one, other in itertools.combinations(of, 2):
        same = one.split(".")[0].rstrip("ms") == other.split(".")[0].rstrip("ms")
        assert (of[one] == of[other]) == same, (one, other)


def saved(image: Image.Image, kind: str, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def test_photos_and_flat_pictures_are_told_apart(shelf: Callable[..., str]) -> None:
    photo = Image.open(Path(__file__).parents[2] / "integration" / "chelsea.jpg").convert("RGB")
    alike = [
        saved(photo, "PNG"), saved(photo, "JPEG", quality=60), saved(photo, "WEBP", quality=50),
        saved(photo.resize((200, 133)), "PNG"), saved(photo.convert("RGBA"), "PNG"),
    ]  # fmt: skip
    others = [
        saved(Image.new("RGB", (64, 64), colour), "PNG") for colour in ("red", "blue", "white", "#008000")
    ]
    others.append(saved(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG"))
    others.append(b"no picture")
    pictures = PictureGroups(shelf.look)  # type: ignore[attr-defined]
    assert len({pictures.same(shelf(data)) for data in alike}) == 1
    assert len({pictures.same(shelf(data)) for data in (*alike, *others)}) == 1 + len(others)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 2**64 - 1, 0x5DA3_19F0_7C24_E68B]), st.sets(st.integers(0, 63), max_size=8)
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 2**32),
)
def test_near_hashes_are_found_as_if_all_were_compared(made: list[tuple[int, set[int]]], seed: int) -> None:
    drawn = np.random.default_rng(seed)
    looks = [
        Look(
            bits ^ sum(1 << bit for bit in flipped),
            drawn.integers(0, 2) * 20 + np.zeros((8, 8, 3), np.float32),
        )
        for bits, flipped in made
    ]
    pictures = PictureGroups(lambda sha: looks[int(sha)])
    firsts: list[int] = []
    for number, seen in enumerate(looks):
        same = [
            first
            for first in firsts
            if (looks[first].bits ^ seen.bits).bit_count() <= BITS_APART
            and abs(looks[first].colours - seen.colours).mean() <= COLOURS_APART
        ]
        assert pictures.same(str(number)) == str(same[0] if same else number)
        firsts += [] if same else [number]


def drawn(text: str, picked: str, over: str | None = None, n: int = 0) -> Sample:
    source = Source("acme", (f"fb_{n}",), "image_picked", "ada")
    told = [Message.of("user", text)]
    return make("image_pair" if over else "captioned_image", told, source, picked=picked, over=over)


def test_one_drawing_of_several_prompts_is_on_one_side(shelf: Callable[..., str]) -> None:
    """A caption that was corrected and sent again, or several for one picture: none judges what another taught."""
    photo = Image.open(Path(__file__).parents[2] / "integration" / "chelsea.jpg").convert("RGB")
    cat, again = shelf(saved(photo, "PNG")), shelf(saved(photo, "JPEG", quality=80))
    red, blue, green = (
        shelf(saved(Image.new("RGB", (64, 64), colour), "PNG")) for colour in ("red", "blue", "#008000")
    )
    samples = [
        drawn("a cat", cat, n=1),
        drawn("a tabby", again, n=2),
        drawn("a tabby", red, over=green, n=3),
        drawn("a blue square", blue, n=4),
        about(cat, text="What is it?", n=5),  # the language model's: another model's lesson
        drawn("a blue square", cat, n=6),
    ]
    pictures = PictureGroups(shelf.look)  # type: ignore[attr-defined]
    grouped = pictures.regroup(samples)
    groups = [sample.group for sample in grouped]
    assert groups[0] == groups[1] == groups[2] == samples[0].group
    assert groups[3] == groups[5] == samples[3].group and len(set(groups)) == 3
    held = [sample for sample in grouped if sample.group == groups[3]]
    train, holdout, dropped = pictures.apart([s for s in grouped if s not in held], held, grouped)
    assert (len(train), len(holdout)) == (4, 1)
    assert [(d.feedback, d.reason) for d in dropped] == [("fb_6", "shared_picture")]


def test_what_shows_pictures_of_both_sides_is_on_neither(shelf: Callable[..., str]) -> None:
    red, blue = (shelf(saved(Image.new("RGB", (64, 64), colour), "PNG")) for colour in ("red", "blue"))
    trained, held, both, later = about(red, n=1), about(blue, n=2), about(red, blue, n=3), about(red, n=4)
    arrived = [trained, held, both, later]
    pictures = PictureGroups(shelf.look)  # type: ignore[attr-defined]
    train, holdout, dropped = pictures.apart([trained, both, later], [held], arrived)
    assert (train, holdout) == ((trained, later), (held,))
    assert [(d.feedback, d.reason) for d in dropped] == [("fb_3", "shared_picture")]
