"""The data recipe: the held-out concepts stay held out, and what is said about pictures is well formed."""

from __future__ import annotations

import hashlib
import random

import pytest

from comfyloop.starter.train import data, imagenet, photos, texts


def concept(
    label: str, code: str = "1f600", tags: tuple[str, ...] = (), group: str = "objects"
) -> data.Concept:
    return data.Concept(code, label, tags, group, {"noto": "x.png"})


def test_held_out_list_does_not_change() -> None:
    codes = data.held_out_codes()
    assert len(codes) == 155
    digest = hashlib.sha256("\n".join(sorted(codes)).encode()).hexdigest()
    assert digest.startswith("6976d61e257e31e3")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("man technologist", "woman technologist"),
        ("cow", "cow face"),
        ("red apple", "green apple"),
        ("woman kneeling: facing right", "person kneeling"),
        ("grinning cat", "black cat"),
        ("one o’clock", "four-thirty"),
    ],
)
def test_siblings_share_a_family(one: str, other: str) -> None:
    assert data.family(one) == data.family(other) or {"clock"} >= {data.family(one), data.family(other)}


def test_different_subjects_have_different_families() -> None:
    labels = ["cow", "guitar", "red apple", "grinning face", "confused face", "castle", "owl"]
    assert len({data.family(label) for label in labels}) == len(labels)


def test_split_keeps_every_concept_once_and_families_whole() -> None:
    held = sorted(data.held_out_codes())[0]
    names = "abcdefghijklmnopqrst"
    found = [concept(f"{a}{b}{b}", code=f"{a}{b}") for a in names for b in names]
    found.append(concept("owl", code=held))
    training, validation, test = data.split(found)
    assert [c.code for c in test] == [held]
    assert len(training) + len(validation) + len(test) == len(found)
    assert 10 < len(validation) < 45
    assert not {data.family(c.label) for c in training} & {data.family(c.label) for c in validation}
    assert [c.code for c in data.split(found)[1]] == [c.code for c in validation]


def test_answers_name_the_subject() -> None:
    rng = random.Random(0)
    fox = texts.emoji_subject(concept("fox", tags=("animal", "face"), group="animals-nature"))
    cat = texts.photo_subject(imagenet.Kind("cat", "tabby", ("animal", "pet")))
    for subject in (fox, cat):
        for _ in range(200):
            question, answer = texts.pair(subject, rng)
            assert subject.name in answer
            assert question.endswith(("?", ".")) and answer.endswith(".")
            assert "face" not in answer.split("Keywords")[-1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fox", "a fox"),
        ("owl", "an owl"),
        ("scissors", "scissors"),
        ("compass", "a compass"),
        ("people hugging", "people hugging"),
    ],
)
def test_articles(name: str, said: str) -> None:
    assert texts.with_article(name) == said


def test_twenty_photographs_with_licence_and_words() -> None:
    assert len(photos.TEST) == 20 == len({photo.name for photo in photos.TEST})
    for photo in photos.TEST:
        assert photo.licence and photo.words
        assert not set(photo.words) & texts.GENERIC - {"woman"}
