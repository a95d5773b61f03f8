"""What samples begin with in common: in the row once, and nothing else is different."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from comfyloop.formats import Row, Turn
from comfyloop.train.data.batches import pack
from comfyloop.train.data.examples import Example, Pixels, Room
from comfyloop.train.data.prefix_sharing import in_segments
from comfyloop.train.recipes import sft
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.models import Loaded
from tests.families import make_family
from tests.unit.train.test_forward import ready

SYSTEM = Turn("system", "You write captions for a shop of quiet things, in few words.")
IMAGE = 7


def sample(ids: list[int], picture: bytes | None = None) -> Example:
    """A sample of text, or one whose tokens IMAGE stand for a picture."""
    tokens = torch.tensor(ids)
    seeing = (tokens == IMAGE).nonzero()[:, 0].tolist() if picture else []
    return Example(
        "s",
        1,
        tokens,
        torch.arange(len(ids)),
        torch.tensor([len(ids) - 1]),
        pixels=Pixels({}, picture, dict, Room(0)) if picture else None,
        image_tokens=len(seeing),
        image_span=(seeing[0], seeing[-1] + 1) if seeing else (0, 0),
    )


def tokens_of(path: list) -> list[int]:  # type: ignore[type-arg]
    return [int(i) for segment in path for i in segment.example.input_ids[segment.begin : segment.end]]


@st.composite
def alike(draw: st.DrawFn) -> list[Example]:
    """Samples that share a lot: each is some way along one of a few texts, with or without a picture."""
    texts = [[1] * 10 + [text] * 12 + [2] * 12 for text in (3, 4)]
    pictured = [[1] * 10 + [IMAGE] * 5 + [text] * 9 + [IMAGE] * 3 + [2] * 12 for text in (3, 4)]
    samples = []
    for _ in range(draw(st.integers(1, 6))):
        picture = draw(st.sampled_from([None, b"a", b"b"]))
        ids = draw(st.sampled_from(pictured if picture else texts))
        samples.append(
            sample(ids[: draw(st.integers(2, 40))] + draw(st.lists(st.integers(8, 9), max_size=12)), picture)
        )
    return samples


@given(alike())
def test_segments_are_the_samples(samples: list[Example]) -> None:
    segments, paths = in_segments(samples, share=True)
    for example, path in zip(samples, paths, strict=True):
        assert tokens_of(path) == example.input_ids.tolist()
        assert [s.before for s in path] == [None, *path[:-1]]
        showing = [s for s in path if s.has_images]
        assert len(showing) == (1 if example.image_tokens else 0)  # an image is whole, and in one segment
        if showing:
            assert showing[0].example.pixels.digest == example.pixels.digest  # type: ignore[union-attr]
    assert {id(s) for s in segments} == {id(s) for path in paths for s in path}
    assert all(segments.index(s.before) < n for n, s in enumerate(segments) if s.before is not None)


def test_what_is_alike_is_there_once() -> None:
    asked = list(range(10, 30))
    samples = [sample([1] * 9 + asked + [3, 4]), sample([1] * 9 + asked + [5]), sample([1] * 9 + [6] * 3)]
    segments, paths = in_segments([*samples, samples[0]], share=True)
    assert sorted(map(len, segments)) == [1, 2, 3, 9, 20]
    assert paths[0] == paths[3]
    assert [len(path) for path in paths] == [3, 3, 2, 3]
    apart, _ = in_segments(samples, share=False)
    assert [len(s) for s in apart] == [31, 30, 12]


def test_a_short_beginning_is_not_worth_a_segment() -> None:
    segments, _ = in_segments([sample([1] * 7 + [2] * 9), sample([1] * 7 + [3] * 9)], share=True)
    assert [len(s) for s in segments] == [16, 16]


def test_places_of_images_are_part_of_a_beginning() -> None:
    first = sample([1] * 20)
    moved = dataclasses.replace(first, positions=first.positions + 1)
    segments, _ = in_segments([first, moved], share=True)
    assert len(segments) == 2


def gradients(loaded: Loaded, total: Tensor) -> dict[str, Tensor]:
    loaded.module.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in loaded.trainable if p.grad is not None}


def rows(folder: Path, pictures: bool) -> list[Row]:
    """Two answers to one question, another question about the same picture, another picture; none."""
    found = []
    for n in range(2):
        Image.effect_noise((40, 30), 90 + n).convert("RGB").save(folder / f"{n}.png")
    for picture, asked, answer in [
        (0, "What does it sell, and to whom would it be given at New Year?", "Quiet, and to a friend."),
        (0, "What does it sell, and to whom would it be given at New Year?", "A mug!"),
        (0, "What does it sell, and to whom would it be given at New Year? Say more.", "A lamp."),
        (1, "What does it sell, and to whom would it be given at New Year?", "Quiet, and to a friend."),
        (None, "What does it sell?", "Tea."),
    ]:
        shown = pictures and picture is not None
        turns = (SYSTEM, Turn("user", "<image>" * shown + asked), Turn("assistant", answer))
        found.append(Row(len(found) + 1, "r", turns, (folder / f"{picture}.png",) if shown else ()))
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl", "qwen3_vl", "llava", "idefics3", "internvl"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_and_its_gradient_are_the_same(
    family: str, checkpointing: bool, tiny_llm: Path, tmp_path: Path
) -> None:
    model = tiny_llm if family == "llama" else make_family(family, tmp_path / "model")
    loaded, examples = ready(model, rows(tmp_path, family != "llama"), gradient_checkpointing=checkpointing)
    features = ImageFeatures(loaded)
    loaded.train()
    together = sft.answer_loss(loaded, features, examples)
    shared = gradients(loaded, together.total)
    assert pack(examples, loaded.device, share=True).input_ids.numel() < 0.8 * sum(map(len, examples))
    apart = [sft.answer_loss(loaded, features, [example]) for example in examples]
    own = gradients(loaded, torch.stack([outcome.total for outcome in apart]).sum())
    torch.testing.assert_close(
        together.total.detach(), sum(o.total.detach() for o in apart), rtol=1e-5, atol=1e-5
    )
    assert shared.keys() == own.keys()
    for name, gradient in own.items():
        assert (shared[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def test_noise_is_each_samples_own(tiny_llm: Path, tmp_path: Path) -> None:
    loaded, _ = ready(tiny_llm, rows(tmp_path, pictures=False), neftune_noise_alpha=5)
    assert not loaded.shares_prefixes
