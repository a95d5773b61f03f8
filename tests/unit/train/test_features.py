"""Features of a frozen tower: computed once, kept across runs, never stale, never more than the limit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from comfyloop.errors import DataError
from comfyloop.formats import Row, Turn
from comfyloop.train.data import encode
from comfyloop.train.data.examples import Example
from comfyloop.train.recipes import sft
from comfyloop.train.specs.text import AdapterSpec, TrainSpec
from comfyloop.train.text.feature_cache import FeatureCache, tower_hash
from comfyloop.train.text.features import ImageFeatures, _flat, _record
from comfyloop.train.text.models import Loaded, describe, load
from tests.families import make_family

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family whose features are the least simple: several layers of them, one a picture."""
    return make_family("qwen3_vl", tmp_path_factory.mktemp("models") / "qwen3")


def spec_for(model: Path, **values: object) -> TrainSpec:
    return TrainSpec.model_validate({"model": str(model), "train": "t.jsonl", "dtype": "float32", **values})


def loaded(model: Path, **values: object) -> Loaded:
    made = load(spec_for(model, **values), describe(str(model)), None)
    made.eval()
    return made


def examples(model: Path, folder: Path, count: int = 3) -> list[Example]:
    encoder = describe(str(model)).encoder(spec_for(model))
    made = []
    for number in range(count):
        path = folder / f"{number}.png"
        if not path.exists():
            Image.effect_noise((40 + 8 * number, 40), 90).convert("RGB").save(path)
        turns = (Turn("user", "<image>What is this?"), Turn("assistant", "A mug."))
        made.append(encoder.encode(Row(number + 1, f"s{number}", turns, (path,))))
    return made


def cache_for(model: Loaded, folder: Path, limit: int = 1 << 30) -> FeatureCache:
    features = ImageFeatures(model)
    return FeatureCache(folder, tower_hash(features.parameters(), features.setting()), limit)


def steady(model: Loaded, cache: FeatureCache | None, **values: int) -> ImageFeatures:
    """With the cache whatever the time of it: these towers take a millisecond."""
    features = ImageFeatures(model, cache, **values)
    features._timed = True
    return features


def test_another_run_reads_what_the_first_computed(qwen3: Path, tmp_path: Path) -> None:
    seen = examples(qwen3, tmp_path)
    first = loaded(qwen3)
    one = steady(first, cache_for(first, tmp_path / "cache"))
    losses = [float(sft.answer_loss(first, one, [e]).total.detach()) for e in seen]
    assert (one.computed, one.read) == (3, 0)
    again = loaded(qwen3)
    two = steady(again, cache_for(again, tmp_path / "cache"))
    together = sft.answer_loss(again, two, seen).total.detach()
    assert (two.computed, two.read) == (0, 3)
    assert float(together) == pytest.approx(sum(losses), abs=1e-4)
    more = examples(qwen3, tmp_path, 4)
    three = steady(again, cache_for(again, tmp_path / "cache"))
    for example in more:
        three.of(example)
    assert (three.computed, three.read) == (1, 3)


def test_other_pixels_weights_or_precision_are_other_features(qwen3: Path, tmp_path: Path) -> None:
    [example, *_] = examples(qwen3, tmp_path)
    model = loaded(qwen3)
    steady(model, cache_for(model, tmp_path / "cache")).of(example)
    one_weight = dict(ImageFeatures(model).parameters())["model.visual.blocks.1.mlp.linear_fc2.weight"]
    with torch.no_grad():
        one_weight[3, 5] += 0.5
    changed = steady(model, cache_for(model, tmp_path / "cache"))
    changed.of(example)
    assert (changed.computed, changed.read) == (1, 0)
    half = loaded(qwen3, dtype="bfloat16")
    lean = steady(half, cache_for(half, tmp_path / "cache"))
    lean.of(example)
    assert (lean.computed, lean.read) == (1, 0)
    Image.effect_noise((40, 40), 30).convert("RGB").save(tmp_path / "0.png")
    turns = (Turn("user", "<image>What is this?"), Turn("assistant", "A mug."))
    encoder = describe(str(qwen3)).encoder(spec_for(qwen3))
    repainted = encoder.encode(Row(1, "s0", turns, (tmp_path / "0.png",)))
    anew = steady(half, cache_for(half, tmp_path / "cache"))
    anew.of(repainted)
    assert (anew.computed, anew.read) == (1, 0)


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "other"])
def test_a_damaged_file_is_computed_again(damage: str, qwen3: Path, tmp_path: Path) -> None:
    [example, *_] = examples(qwen3, tmp_path, 1)
    model = loaded(qwen3)
    whole = steady(model, cache_for(model, tmp_path / "cache")).of(example)
    [file] = (tmp_path / "cache").glob("??/*.safetensors")
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[-7] ^= 1
    file.write_bytes({"cut": data[:-9], "flipped": data, "emptied": b"", "other": b"{}" * 40}[damage])
    features = steady(model, cache_for(model, tmp_path / "cache"))
    found = features.of(example)
    assert (features.computed, features.read) == (1, 0)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    mended = steady(model, cache_for(model, tmp_path / "cache"))
    mended.of(example)
    assert mended.read == 1


def test_the_oldest_unused_go_first(tmp_path: Path) -> None:
    tensors = {"pooler_output": torch.zeros(2_500)}  # 10 kB
    cache = FeatureCache(tmp_path, b"tower", 100_000)
    for number in range(9):
        cache.put(bytes([number]), tensors)
        [file] = [f for f in tmp_path.glob("??/*.safetensors") if f.name == cache._path(bytes([number])).name]
        os.utime(file, (number, number))
    assert cache.get(bytes([0])) is not None  # used now, so no longer the oldest
    cache.put(b"more", tensors)
    left = [number for number in range(9) if cache.get(bytes([number])) is not None]
    assert 0 in left
    assert left[1:] == list(range(9 - len(left) + 1, 9))
    assert sum(f.stat().st_size for f in tmp_path.glob("??/*")) <= 100_000
    cache.put(b"huge", {"pooler_output": torch.zeros(60_000)})
    assert sum(f.stat().st_size for f in tmp_path.glob("??/*")) <= 100_000


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    """Each writes and reads the same forty entries under a limit that makes both evict."""
    script = """
import sys, torch
from pathlib import Path
from comfyloop.train.text.feature_cache import FeatureCache
cache = FeatureCache(Path(sys.argv[1]), b"tower", 120_000)
hits = 0
for turn in range(6):
    for number in range(40):
        found = cache.get(bytes([number]))
        if found is None:
            cache.put(bytes([number]), {"pooler_output": torch.full((1000,), float(number))})
        else:
            hits += 1
            assert bool((found["pooler_output"] == number).all())
print(hits)
"""
    both = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert int(out) >= 0
    assert not list(tmp_path.glob("??/.*"))
    assert sum(f.stat().st_size for f in tmp_path.glob("??/*")) <= 2 * 120_000


def test_a_disk_that_refuses_costs_only_the_saving(qwen3: Path, tmp_path: Path) -> None:
    [example, *_] = examples(qwen3, tmp_path, 1)
    (tmp_path / "cache").write_text("a file where the folder should be")
    model = loaded(qwen3)
    features = steady(model, cache_for(model, tmp_path / "cache"))
    assert features.of(example)
    assert features.computed == 1


def test_the_cache_is_given_up_where_the_tower_is_faster(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = loaded(qwen3), examples(qwen3, tmp_path, 3)
    get = FeatureCache.get

    def slow(self: FeatureCache, pixels: bytes) -> dict[str, Tensor] | None:
        time.sleep(0.2)
        return get(self, pixels)

    monkeypatch.setattr(FeatureCache, "get", slow)
    features = ImageFeatures(model, cache_for(model, tmp_path / "cache"))
    for example in seen:
        features.of(example)
    assert features.cache is None
    assert features.computed == 3


def test_a_tower_that_is_trained_is_run_every_time(qwen3: Path, tmp_path: Path) -> None:
    """A LoRA inside the tower: kept features would leave it without a gradient, and stale."""
    tower = AdapterSpec(target_modules=r".*visual\.blocks\.\d+\.attn\.(qkv|proj)")
    model, [example, *_] = loaded(qwen3, adapter=tower), examples(qwen3, tmp_path, 1)
    features = ImageFeatures(model, cache_for(model, tmp_path / "cache"))
    assert not features.frozen
    model.train()
    sft.answer_loss(model, features, [example]).total.backward()  # type: ignore[no-untyped-call]
    assert any(p.grad is not None and bool(p.grad.any()) for _, p in model.trainable)
    features.of(example)
    assert features.computed == 2
    assert not (tmp_path / "cache").exists()


def test_memory_is_bounded(qwen3: Path, tmp_path: Path) -> None:
    model, seen = loaded(qwen3), examples(qwen3, tmp_path, 3)
    size = sum(v.nbytes for v in steady(model, None).of(seen[0]).values())
    features = steady(model, None, memory=2 * size)
    for example in (*seen, *seen):
        features.of(example)
    assert features.computed == 6
    assert sum(v.nbytes for tensors in features._in_memory.values() for v in tensors.values()) <= 2 * size


def test_pixels_beyond_the_room_are_made_again(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = examples(qwen3, tmp_path)
    monkeypatch.setattr(encode, "PIXELS_KEPT", 1)
    made_again = examples(qwen3, tmp_path)
    for a, b in zip(kept, made_again, strict=True):
        assert b.pixels is not None
        assert b.pixels._fields is None
        assert all(torch.equal(a.seen()[name], b.seen()[name]) for name in a.seen())
    Image.effect_noise((40, 40), 20).convert("RGB").save(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"line 1 \(sample s0\) is no longer what it was"):
        made_again[0].seen()


@given(
    st.recursive(
        st.integers(1, 3).map(lambda n: torch.arange(float(n * 2)).view(n, 2)),
        lambda part: st.lists(part, min_size=1, max_size=12),
        max_leaves=14,
    )
)
def test_records_survive_being_flat(value: object) -> None:
    def plain(part: object) -> object:
        return part.tolist() if isinstance(part, Tensor) else [plain(p) for p in part]  # type: ignore[attr-defined]

    depth = 0
    part = value
    while isinstance(part, list):
        depth, part = depth + 1, part[0]
    flat = _flat({"pooler_output": value})
    if len({path.count("/") for path, _ in flat}) == 1 and depth <= 2:  # as deep as any model's are
        assert plain(_record(dict(flat))["pooler_output"]) == plain(value)
