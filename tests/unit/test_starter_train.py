"""The data recipe: the held-out concepts stay held out; words and the fit are what they should be."""

from __future__ import annotations

import hashlib

import pytest
import torch

from tools.starter import data, photos, train


def concept(
    label: str, code: str = "1f600", tags: tuple[str, ...] = (), group: str = "objects"
) -> data.Concept:
    return data.Concept(code, label, tags, group, {"noto": "x.png"})


@pytest.mark.parametrize(
    ("split", "count", "start"),
    [("siblings", 198, "9f76458ba81d42e5"), ("families", 155, "6976d61e257e31e3")],
)
def test_held_out_lists_do_not_change(split: str, count: int, start: str) -> None:
    codes = data.held_out_codes(split)
    assert len(codes) == count
    assert hashlib.sha256("\n".join(sorted(codes)).encode()).hexdigest().startswith(start)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("man technologist", "woman technologist"),
        ("woman kneeling: facing right", "person kneeling"),
        ("waving hand: light skin tone", "waving hand"),
    ],
)
def test_siblings_stay_together(one: str, other: str) -> None:
    assert data.sibling_key(one) == data.sibling_key(other)


def test_split_keeps_every_concept_once() -> None:
    held = sorted(data.held_out_codes())[0]
    found = [concept("owl", code="1"), concept("cow", code=held)]
    assert [[c.code for c in part] for part in data.split(found)] == [["1"], [held]]


def test_vocabulary_holds_names_and_common_words_in_their_usual_form() -> None:
    owls = [concept("owl", tags=("wings", "odd")), concept("barn owl", tags=("wings", "night bird"))]
    words = train.vocabulary([*owls, concept("two moths", tags=("wing", "wings"))])
    assert words == {"owl": "owl", "wing": "wings"}


def test_ridge_finds_a_linear_map() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, 6, generator=generator)
    weight, bias = torch.randn(3, 6, generator=generator), torch.randn(3, generator=generator)
    found = train.ridge(features, features @ weight.T + bias, torch.ones(500), penalty=1e-3)
    torch.testing.assert_close(found, (weight, bias), atol=1e-3, rtol=1e-3)


def test_twenty_photographs_with_licence_and_words() -> None:
    assert len(photos.TEST) == 20 == len({photo.name for photo in photos.TEST})
    for photo in photos.TEST:
        assert photo.licence and photo.words
        assert not set(photo.words) & data.GENERIC - {"woman"}
