"""A base in four bits: adapters answer on it as PEFT has them answer on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from comfyloop.models.quantization import four_bit_layers, in_four_bits, keep_unpacked
from tests.unit.serve.embedded.conftest import save_adapter

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `quant`)")

QUESTION = "What is red and runs?"


def in_transformers(model: Path) -> Any:
    config = AutoConfig.from_pretrained(model)
    told = in_four_bits(AutoModelForCausalLM, config, torch.float32, torch.device("cpu"))
    made = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **told)
    keep_unpacked(made)
    return made.eval()


def greedy(model: Any, model_path: Path, tokens: int) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    with torch.inference_mode():
        made = model.generate(ids, max_new_tokens=tokens, do_sample=False)
    answer: list[int] = made[0, ids.shape[1] :].tolist()
    return answer


@pytest.mark.parametrize(
    "config", [{"target_modules": "all-linear"}, {"use_dora": True}], ids=["lora", "dora"]
)
def test_answers_are_those_of_peft_on_the_same_four_bits(
    start_engine: Callable[..., Any], tiny_llm: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    client = start_engine(tiny_llm, quant_method="bnb")
    assert len(four_bit_layers(client.engine.loaded.model)) == 2 * 7
    base = in_transformers(tiny_llm)
    expected = greedy(base, tiny_llm, 12)
    assert client.tokens(QUESTION, max_tokens=12)[: len(expected)] == expected
    with_adapter = greedy(save_adapter(base, tmp_path, **config), tiny_llm, 12)
    client.load("a", tmp_path)
    assert client.tokens(QUESTION, "a", max_tokens=12)[: len(with_adapter)] == with_adapter
    assert with_adapter != expected
    at_once = [client.send(QUESTION, name, max_tokens=12) for name in ("a", "base", "a")]
    found = [asked.result()[0][:12] for asked in at_once]
    assert found[0] == found[2] and found[0][: len(with_adapter)] == with_adapter
    assert found[1][: len(expected)] == expected


def test_a_picture_is_seen_beside_four_bits(start_engine: Callable[..., Any], tiny_vlm: Path) -> None:
    """The tower and the projector stay whole."""
    client = start_engine(tiny_vlm, quant_method="bnb")
    layers = {id(layer) for layer in four_bit_layers(client.engine.loaded.model)}
    whole = [name for name, m in client.engine.loaded.model.named_modules() if id(m) in layers]
    assert whole and all("language_model" in name for name in whole)
    assert client.ask(QUESTION, max_tokens=4) is not None
