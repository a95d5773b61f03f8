"""The fast decode step gives the logits of the model's own forward."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from comfyloop.serve.embedded.continuations import Scoring
from comfyloop.serve.embedded.decoders import make_decoder
from comfyloop.serve.embedded.llama import narrowed
from comfyloop.serve.embedded.loading import LoadedModel
from comfyloop.serve.embedded.lora import LoraRows, read_adapter
from comfyloop.serve.embedded.prompts import Prompt
from comfyloop.serve.embedded.sequence import DecodeSequence
from tests.unit.serve.embedded.conftest import save_adapter

pytestmark = pytest.mark.slow

SHAPE = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}


def llama(**more: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | more)).eval()


def qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(tensor, std=0.5)
    return model


MODELS = {
    "llama": llama,
    "untied, biases": lambda: llama(tie_word_embeddings=False, attention_bias=True),
    "stretched positions": lambda: llama(
        rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
    ),
    "one head a key": lambda: llama(num_key_value_heads=6),
    "wide heads": lambda: llama(head_dim=16),
    "qwen2": qwen2,
}


def rows_of(decoder: Any, adapters: list[Any]) -> list[DecodeSequence]:
    rows = []
    for number, adapter in enumerate(adapters):
        row = DecodeSequence(
            Prompt([3 + (7 * number + i) % 200 for i in range(5 + 31 * number)]), adapter, 999
        )
        decoder.admit(row)
        while not row.ready:
            decoder.prefill(row)
        row.answer.append(9 + number)
        rows.append(row)
    return rows


def with_an_adapter(make: Any, path: Path, **config: Any) -> tuple[Any, Any]:
    """A decoder of a model that `make` makes, and an adapter of it that is attached."""
    with torch.inference_mode(False):
        save_adapter(make(), path, seed=1, **config)
    model = make()
    lora = LoraRows(model)
    decoder = make_decoder(LoadedModel(model, None, None, 512, frozenset()), lora, 0, 0)
    adapter = read_adapter("a", path, model)
    decoder.prepare(adapter)
    lora.attach(adapter)
    return decoder, adapter


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
@torch.inference_mode()
def test_the_logits_of_the_own_forward(make: Any, tmp_path: Path) -> None:
    with torch.inference_mode(False):
        for number, targets in enumerate((["q_proj", "v_proj", "o_proj"], "all-linear")):
            save_adapter(make(), tmp_path / str(number), seed=number, target_modules=targets)
    model = make()
    lora = LoraRows(model)
    decoder: Any = make_decoder(LoadedModel(model, None, None, 512, frozenset()), lora, 1 << 20, 0)
    adapters = [None, *(read_adapter(str(n), tmp_path / str(n), model) for n in range(2))]
    for adapter in adapters[1:]:
        decoder.prepare(adapter)
        lora.attach(adapter)
    fast = decoder.fast
    assert fast is not None
    assert all(map(fast.knows, adapters))
    for case in ([None], [adapters[1]], [None] * 3, [*adapters, None, *adapters]):
        rows = rows_of(decoder, case)
        for _ in range(4):
            decoder.fast = None
            own = decoder.step(rows)
            for row in rows:
                row.filled -= 1
            decoder.fast = fast
            quick = decoder.step(rows)
            assert (own - quick).abs().max() < 1e-3 * min(1.0, float(own.abs().max()))
            for row, logits in zip(rows, quick, strict=True):
                row.answer.append(int(logits.argmax()))
        for row in reversed(rows):
            decoder.release(row)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("all_logits", [False, True])
@torch.inference_mode()
def test_a_prompt_filled_as_by_the_own_forward(make: Any, all_logits: bool, tmp_path: Path) -> None:
    decoder, adapter = with_an_adapter(make, tmp_path, target_modules="all-linear")
    fast = decoder.fast
    said: dict[bool, list[torch.Tensor]] = {}
    for quick in (False, True):
        decoder.fast = fast if quick else None
        said[quick] = []
        for wanted in (adapter, None):  # a chunk and a half, so that the second piece sees the first
            row = DecodeSequence(Prompt([3 + (7 * i) % 200 for i in range(96)]), wanted, 999, all_logits)
            decoder.admit(row)
            while not row.ready:
                said[quick].append(decoder.prefill(row))
            decoder.release(row)
    assert len(said[True]) == 4
    assert not torch.equal(said[True][1], said[True][3])  # the adapter is in it
    for own, ours in zip(said[False], said[True], strict=True):
        assert own.shape == ours.shape
        assert (own - ours).abs().max() < 1e-3 * min(1.0, float(own.abs().max()))


def test_fusing_leaves_the_model_as_it_was() -> None:
    model, same = llama(attention_bias=True), llama(attention_bias=True)
    make_decoder(LoadedModel(model, None, None, 512, frozenset()), LoraRows(model), 0, 0)
    state, expected = model.state_dict(), same.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], expected[k]) for k in state)
    layer = model.model.layers[0].self_attn
    assert (
        layer.q_proj.weight.untyped_storage().data_ptr() == layer.v_proj.weight.untyped_storage().data_ptr()
    )


@torch.inference_mode()
def test_what_it_does_not_know_goes_through_the_own_forward(tmp_path: Path) -> None:
    decoder, adapter = with_an_adapter(llama, tmp_path, use_dora=True)
    assert not decoder.fast.knows(adapter)
    rows = rows_of(decoder, [adapter, None])
    mixed = decoder.step(rows)
    decoder.release(rows[0])
    rows[1].filled -= 1
    assert (decoder.step(rows[1:])[0] - mixed[1]).abs().max() < 1e-3


def test_other_decoders_are_left_alone() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2)).eval()
    decoder: Any = make_decoder(LoadedModel(model, None, None, 512, frozenset()), LoraRows(model), 0, 0)
    assert decoder.fast is None
    assert type(llama(hidden_act="gelu").model.layers[0].mlp.act_fn).__name__ != "SiLU"
    gelu: Any = make_decoder(
        LoadedModel(m := llama(hidden_act="gelu"), None, None, 512, frozenset()), LoraRows(m), 0, 0
    )
    assert gelu.fast is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_row_that_is_to_be_as_alone_has_the_same_bits_in_any_company(dtype: Any, tmp_path: Path) -> None:
    """Whatever rows, of whatever adapters and lengths, are decoded beside it, and with one thread or two."""
    with torch.inference_mode(False):
        for number, targets in enumerate((["q_proj", "down_proj"], "all-linear")):
            save_adapter(llama(), tmp_path / str(number), seed=number, target_modules=targets)
    model = llama().to(dtype)
    lora = LoraRows(model)
    decoder: Any = make_decoder(LoadedModel(model, None, None, 512, frozenset()), lora, 0, 0)
    adapters = [None, *(read_adapter(str(n), tmp_path / str(n), model) for n in range(2))]
    for adapter in adapters[1:]:
        decoder.prepare(adapter)
        lora.attach(adapter)

    def said(company: list[tuple[int, int, bool]], threads: int) -> dict[tuple[int, int], Any]:
        """The logits of three steps of those that are to be as alone, by (adapter, tokens of the prompt)."""
        rows = []
        for which, tokens, alone in company:
            prompt = Prompt([3 + (7 * tokens + i) % 200 for i in range(tokens)])
            row = DecodeSequence(prompt, adapters[which], 999, alone=alone)
            decoder.admit(row)
            while not row.ready:
                decoder.prefill(row)
            rows.append(row)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found: dict[tuple[int, int], list[Any]] = {}
        for step in range(3):
            for row in rows:
                row.answer.append(9 + step)
            for (which, tokens, alone), logits in zip(company, decoder.step(rows), strict=True):
                if alone:
                    found.setdefault((which, tokens), []).append(logits.clone())
        torch.set_num_threads(before)
        for row in rows:
            decoder.release(row)
        return {key: torch.stack(steps) for key, steps in found.items()}

    draw = random.Random(3)
    every = [(which, tokens) for which in range(3) for tokens in (5, 33, 70, 100)]
    expected = {one: said([(*one, True)], 1)[one] for one in every}
    for _ in range(12):
        company = [(*one, draw.random() < 0.8) for one in draw.sample(every, draw.randint(2, len(every)))]
        for one, steps in said(company, draw.choice((1, 2))).items():
            assert torch.equal(steps, expected[one]), (one, company)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_what_is_read_whole_has_the_same_bits_in_any_company(dtype: Any, tmp_path: Path) -> None:
    with torch.inference_mode(False):
        save_adapter(llama(), tmp_path / "a", target_modules="all-linear")
    model = llama().to(dtype)
    lora = LoraRows(model)
    decoder: Any = make_decoder(LoadedModel(model, None, None, 512, frozenset()), lora, 0, 0)
    adapters = [None, read_adapter("a", tmp_path / "a", model)]
    decoder.prepare(adapters[1])
    lora.attach(adapters[1])
    draw = random.Random(7)
    questions = []
    for number in range(14):
        prompt = Prompt([3 + (11 * number + i) % 200 for i in range(draw.choice((1, 9, 31, 60)))])
        continuations = [draw.choices(range(3, 200), k=draw.choice((1, 2, 7))) for _ in range(3)]
        row = DecodeSequence(prompt, adapters[number % 2], 999, only_scored=True)
        questions.append((row, Scoring(continuations, 64).whole))

    def read(which: list[int], threads: int) -> list[torch.Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found = decoder.read_whole([questions[i] for i in which])
        torch.set_num_threads(before)
        return found  # type: ignore[no-any-return]

    alone = [read([i], 1)[0] for i in range(len(questions))]
    for _ in range(15):
        company = draw.sample(range(len(questions)), 3)
        if (
            sum(len(row.prompt.ids) + len(further.tokens) for row, further in (questions[i] for i in company))
            > 256
        ):
            continue
        for i, logits in zip(company, read(company, draw.choice((1, 2))), strict=True):
            assert torch.equal(logits, alone[i]), (i, company)


def test_a_row_has_the_same_bits_with_any_number_of_threads() -> None:
    """A step takes one thread or all, whatever is faster just then: measured, an answer changed after 32 tokens."""
    draw = torch.Generator().manual_seed(0)
    before = torch.get_num_threads()
    try:
        shapes = [(1, 576, 8), (1, 576, 24), (1, 1536, 8), (1, 4096, 16)]
        shapes += [(8, 576, 24), (8, 1536, 32), (8, 4096, 16), (8, 896, 48)]
        for rows, width, rank in shapes:
            x, a = (torch.randn(shape, generator=draw) for shape in ((rows, width), (width, rank)))
            made = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                made.append(narrowed(x.bfloat16(), a))
            assert torch.equal(*made), (rows, width, rank)
    finally:
        torch.set_num_threads(before)
