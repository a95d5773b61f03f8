"""A merged model gives the logits of the adapter beside its base model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from comfyloop.registry.merge import merge
from tests.unit.serve.embedded.conftest import save_adapter


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_merged_and_unmerged_logits_are_the_same_within_rounding(
    tiny_llm: Path, tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    from peft import PeftModel

    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=dtype)
    model.save_pretrained(base)
    save_adapter(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter")
    merge(tmp_path / "adapter", base, tmp_path / "merged")
    beside = PeftModel.from_pretrained(model, tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=dtype)
    tokens = torch.arange(4, 40)[None]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)(tokens).logits.float()
        want, have = beside(tokens).logits.float(), merged(tokens).logits.float()
    spread = (
        want.std()
    )  # all weights are random and large: bfloat16 rounds much off, with the adapter beside it too
    assert (have - want).std() < tolerance * spread
    assert (plain - want).std() > 5 * tolerance * spread, "the adapter changes nothing: this proves nothing"
