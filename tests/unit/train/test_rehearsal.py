"""A step that is taken on paper takes what it would take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from comfyloop.memory.__main__ import look
from comfyloop.models.counting import count
from comfyloop.train.kernels import last_layer, packing
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.models import describe
from comfyloop.train.text.rehearsal import META, _Alive, footprint

pytestmark = pytest.mark.slow


def test_counts_what_is_alive_at_the_same_time() -> None:
    with _Alive(torch.nn.Linear(1, 1)) as alive:
        first = torch.empty(1000, device=META)
        second = first + first
        del first
        third = second * 2
        del second
    assert alive.most == 8000 and alive.now == 4000 and third.device == META
    del third
    assert alive.now == 0


def test_counts_what_a_model_is_made_of(tiny_llm: Path) -> None:
    description = describe(str(tiny_llm))
    real = description.auto.from_pretrained(tiny_llm)
    figures = count(description.config, description.auto)
    assert figures.weights(4) == 4 * sum(p.numel() for p in real.parameters())
    # two layers of: q and o of 64 x 64, k and v of 64 x 32, gate, up and down of 64 x 128
    assert (
        figures.linear == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) and figures.cached == 2 * 2 * 2 * 16
    )


def test_our_passes_keep_less_and_checkpointing_least(tiny_llm: Path) -> None:
    description, spec = describe(str(tiny_llm)), TrainSpec(model="", train="")
    again = spec.model_copy(update={"gradient_checkpointing": True})
    plain, fused = (footprint(description, spec, torch.bfloat16, "cuda", fused=on) for on in (False, True))
    checkpointed = footprint(description, again, torch.bfloat16, "cuda", fused=True)
    assert plain.token > fused.token > checkpointed.token > 64 * 2
    assert fused.pair == 0 and footprint(description, spec, torch.bfloat16, "cpu", fused=True).pair > 0


def test_kept_for_backward_is_what_a_real_step_keeps(tiny_llm: Path) -> None:
    """Against autograd's own record of a real forward pass, in float32 and without our passes, long enough for torch's
    attention."""
    from comfyloop.train.text.trainable import make_trainable

    description, spec = describe(str(tiny_llm)), TrainSpec(model="", train="")
    real = description.auto.from_pretrained(tiny_llm, attn_implementation=packing.NAME)
    make_trainable(real, spec, None)
    last_layer.keep_answers_only(real)
    weights = {t.untyped_storage().data_ptr() for t in (*real.parameters(), *real.buffers())}

    def kept(tokens: int) -> int:
        storages: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            place = tensor.untyped_storage().data_ptr()
            if place not in weights:
                storages.setdefault(place, tensor)
            return tensor

        ids = torch.randint(5, 50, (1, tokens))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = real.get_decoder()(
                input_ids=ids, use_cache=False, predicting=torch.arange(64)
            ).last_hidden_state
        del out
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    found = footprint(description, spec, torch.float32, "cuda", fused=False)
    real_token = (kept(1536) - kept(1280)) / 256
    # its peak is in the backward pass, where at most another layer's worth, of two, lives beside what is kept
    assert real_token <= found.token <= 1.5 * real_token


def test_a_model_that_sees_is_looked_at_whole(tiny_vlm: Path) -> None:
    found = look({"model": str(tiny_vlm), "gpu": 24 * 2**30, "pixels": [784], "trains": True, "spec": {}})
    assert found["trained"]["image_tokens"] == {784: 4} and found["trained"]["tower"] > 0
    assert found["machine"]["kind"] == "cuda" and found["machine"]["speed"] == 0


def test_the_engine_loads_no_model_that_has_no_room(tiny_llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyloop.errors import ModelError
    from comfyloop.models import devices
    from comfyloop.serve.embedded import loading

    monkeypatch.setattr(devices, "memory", lambda _: devices.Memory(total=2**20, free=2**20))
    monkeypatch.setattr(loading, "_weights", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ModelError, match="It was not loaded"):
        loading.load(str(tiny_llm), device="cpu")
