"""What `comfyloop doctor` says of settings that do not go together."""

from __future__ import annotations

import re

import pytest

from comfyloop.doctor import examine
from comfyloop.settings import Settings


@pytest.mark.parametrize(
    ("learns", "serves", "said"),
    [
        ("bnb", "", 'Learns on four bits what is served on whole weights.*engine_quant_method = "bnb"'),
        ("", "bnb", 'Learns on whole weights what is served on four bits.*engine_quant_method = ""'),
        ("bnb", "bnb", "LoRA, QLoRA"),
        ("", "", "LoRA"),
    ],
)
def test_training_and_serving_on_unlike_weights_is_said(
    settings: Settings, learns: str, serves: str, said: str
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `quant`)")
    own = settings.model_copy(update={"quant_method": learns, "engine_quant_method": serves})
    (training,) = (check for check in examine(own) if check.name == "training")
    assert training.ok
    assert re.search(said, training.sentence)
