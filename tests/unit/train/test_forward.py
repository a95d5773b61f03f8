"""Models that a packed row does not suit, and models that do something to their logits: right, or refused.

Each is compared with what its own class in transformers gives each sample alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from comfyloop.errors import ModelError
from comfyloop.formats import Row, Turn, UnusableRow
from comfyloop.train.data.examples import Example
from comfyloop.train.kernels import packing
from comfyloop.train.kernels.losses import Head, answer_log_probs
from comfyloop.train.recipes import sft
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.answers import read_answers
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.forward import PACKED_AGREEMENT, own_code_only, prove
from comfyloop.train.text.models import Loaded, describe, load
from tests.families import make_family, text_fields, text_tokenizer

TEXTS = [
    ("What is the capital of France?", "Paris, of course."),
    ("Why?", "Because."),
    ("0 1 2 3 4 5 6", "7 8 9"),
]


def spec_for(model: Path, **values: object) -> TrainSpec:
    return TrainSpec.model_validate({"model": str(model), "train": "t.jsonl", "dtype": "float32", **values})


def ready(path: Path, rows: list[Row], **values: object) -> tuple[Loaded, list[Example]]:
    spec = spec_for(path, **values)
    description = describe(spec.model, spec.rope_scaling)
    encoder = description.encoder(spec)
    torch.manual_seed(1)
    loaded = load(spec, description, None)
    for name, parameter in loaded.trainable:
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    loaded.eval()
    return loaded, [encoder.encode(row) for row in rows]


def own_total(loaded: Loaded, examples: list[Example]) -> float:
    loaded.go_alone("asked")
    total = 0.0
    with torch.no_grad():
        for example in examples:
            labels = torch.full_like(example.input_ids, -100)
            labels[example.answer] = example.input_ids[example.answer]
            kinds = {name: value[None] for name, value in example.token_kinds.items()}
            inputs = {"input_ids": example.input_ids[None], **kinds, **example.seen()}
            total += float(loaded.whole(**inputs, labels=labels[None]).loss) * example.answer.numel()
    loaded.go_alone("")
    return total


def texts() -> list[Row]:
    return [Row(i, f"s{i}", (Turn("user", q), Turn("assistant", a))) for i, (q, a) in enumerate(TEXTS, 1)]


WINDOWED = {"sliding_window": 9}
HYBRID = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "num_experts": 2,
    "num_experts_per_tok": 1, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "head_dim": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "more", "alone"),
    [
        ("Mistral", WINDOWED, ""),
        ("Qwen2", WINDOWED | {"use_sliding_window": True, "max_window_layers": 1}, ""),
        (
            "Gemma2",
            WINDOWED | {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0, "head_dim": 16},
            "",
        ),
        ("Granite", {"logits_scaling": 4.0, "embedding_multiplier": 2.0}, ""),
        ("Cohere", {"logit_scale": 0.25}, ""),
        ("Phi3", WINDOWED, ""),
        ("Qwen3Next", HYBRID, "layers of linear attention"),
    ],
)
def test_text_models_are_trained_as_their_own_code_has_them(
    name: str, more: dict[str, Any], alone: str, tmp_path: Path
) -> None:
    tokenizer = text_tokenizer()
    config = getattr(transformers, f"{name}Config")(**text_fields(tokenizer) | more)
    torch.manual_seed(0)
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, examples = ready(tmp_path, texts())
    expected = own_total(loaded, examples)
    prove(loaded, ImageFeatures(loaded), examples)
    assert alone in loaded.alone
    assert bool(loaded.alone) == bool(alone)
    outcome = sft.answer_loss(loaded, ImageFeatures(loaded), examples)
    assert float(outcome.total.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-4)
    outcome.total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for _, p in loaded.trainable)


def test_image_tokens_that_see_ahead_go_alone(tmp_path: Path) -> None:
    model = make_family("gemma3", tmp_path / "model")
    Image.effect_noise((30, 40), 90).convert("RGB").save(tmp_path / "a.png")
    turns = (Turn("user", "<image>What is this?"), Turn("assistant", "A red mug."))
    rows = [Row(1, "a", turns, (tmp_path / "a.png",)), Row(2, "b", turns, (tmp_path / "a.png",))]
    loaded, examples = ready(model, rows)
    expected = own_total(loaded, examples)
    prove(loaded, ImageFeatures(loaded), examples)
    assert loaded.alone == "its image tokens see ahead"
    total = sft.answer_loss(loaded, ImageFeatures(loaded), examples).total.detach()
    assert float(total) == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_a_processor_that_rewrites_the_text_is_refused(tmp_path: Path) -> None:
    """PaliGemma's puts a BOS token and a newline where it thinks that they belong."""
    model = make_family("paligemma", tmp_path / "model")
    Image.effect_noise((30, 40), 90).convert("RGB").save(tmp_path / "a.png")
    turns = (Turn("user", "<image>What is this?"), Turn("assistant", "A red mug."))
    encoder = describe(str(model)).encoder(spec_for(model))
    with pytest.raises(UnusableRow, match="changes its text beyond putting in image tokens"):
        encoder.encode(Row(1, "a", turns, (tmp_path / "a.png",)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_leak_between_samples_is_noticed_and_mended(
    dtype: str, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an unknown model might do: look past the beginning of its sample."""
    loaded, examples = ready(tiny_llm, texts(), dtype=dtype)
    honest = sft.answer_loss(loaded, ImageFeatures(loaded), examples).total.detach()
    attention = transformers.AttentionInterface()[packing.NAME]
    monkeypatch.setitem(
        transformers.AttentionInterface._global_mapping,
        packing.NAME,
        lambda *a, spans=None, **k: attention(*a, **k),
    )
    leaky = sft.answer_loss(loaded, ImageFeatures(loaded), examples).total.detach()
    assert abs(float(leaky - honest)) > 1
    prove(loaded, ImageFeatures(loaded), examples)
    assert "in a packed row" in loaded.alone
    mended = sft.answer_loss(loaded, ImageFeatures(loaded), examples).total.detach()
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype == "float32" else {"rtol": 0.01, "atol": 0.0}
    torch.testing.assert_close(mended, honest, **close)


@pytest.mark.parametrize("leaks", [False, True])
def test_rounding_that_depends_on_shapes_is_no_leak(
    leaks: bool, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on processors whose products of other shapes add up in another order, only more of it."""
    loaded, examples = ready(tiny_llm, texts(), dtype="bfloat16")
    attention = transformers.AttentionInterface()[packing.NAME]

    def rough(*inputs: Any, spans: Any = None, **more: Any) -> Any:
        out, _ = attention(*inputs, spans=None if leaks else spans, **more)
        noise = torch.randn(out.shape, generator=torch.Generator().manual_seed(out.shape[1]))
        return out * (1 + 0.1 * noise).to(out.dtype), None

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, packing.NAME, rough)
    together = read_answers(loaded, ImageFeatures(loaded), examples).log_probs.detach()
    alone = [read_answers(loaded, ImageFeatures(loaded), [e]).log_probs.detach() for e in examples]
    assert float((together - torch.cat(alone)).abs().mean()) > PACKED_AGREEMENT
    prove(loaded, ImageFeatures(loaded), examples)
    assert bool(loaded.alone) == leaks


def test_unknown_logits_are_refused(tiny_llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, examples = ready(tiny_llm, texts())
    head = loaded.whole.lm_head
    head.register_forward_hook(lambda module, inputs, output: output.sign() * output.abs().sqrt())
    with pytest.raises(ModelError, match="not what LlamaForCausalLM itself gives"):
        prove(loaded, ImageFeatures(loaded), examples)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_row_go_alone(kind: str, tiny_llm: Path) -> None:
    loaded, _ = ready(tiny_llm, [])
    loaded.whole.config.rope_parameters = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    assert "longest sample" in own_code_only(loaded.whole)


@st.composite
def trees(draw: st.DrawFn) -> list[packing.Span]:
    """Spans that go on from nothing or from any earlier one."""
    spans: list[packing.Span] = []
    for number in range(draw(st.integers(1, 5))):
        parent = draw(st.integers(-1, number - 1))
        before = () if parent < 0 else (*spans[parent].before, parent)
        spans.append(packing.Span(draw(st.integers(1, 9)), before))
    return spans


@given(spans=trees(), window=st.one_of(st.none(), st.integers(1, 14)), softcap=st.sampled_from([None, 2.0]))
@pytest.mark.parametrize("written_out", [True, False])
def test_packed_attention_is_that_of_each_sample(
    written_out: bool, spans: list[packing.Span], window: int | None, softcap: float | None
) -> None:
    torch.manual_seed(len(spans))
    total = sum(span.length for span in spans)
    q, k, v = torch.randn(1, 4, total, 8), *torch.randn(2, 1, 2, total, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WRITTEN_OUT", packing.WRITTEN_OUT if written_out else 0)
        together, _ = packing.packed_attention(
            nn.Module(), q, k, v, None, sliding_window=window, softcap=softcap, spans=spans
        )
    parts = torch.arange(total).split([span.length for span in spans])
    for number, span in enumerate(spans):
        sample = torch.cat([parts[i] for i in (*span.before, number)])  # where the row has its tokens
        scores = q[0, :, sample] @ k[0, :, sample].repeat_interleave(2, 0).transpose(1, 2) / 8**0.5
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        ahead = torch.arange(len(sample))[:, None] - torch.arange(len(sample))[None]
        scores = scores.masked_fill((ahead < 0) | (ahead >= (window or len(sample))), -torch.inf)
        expected = (scores.softmax(-1) @ v[0, :, sample].repeat_interleave(2, 0)).transpose(0, 1)
        torch.testing.assert_close(together[0, parts[number]], expected[-span.length :], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("trained", [False, True])
def test_scaled_and_capped_heads_have_the_gradients_of_autograd(softcap: float, trained: bool) -> None:
    torch.manual_seed(0)
    head = Head(
        torch.randn(50, 16, requires_grad=trained), torch.randn(50, requires_grad=trained), 0.3, softcap
    )
    hidden = torch.randn(7, 16, requires_grad=True)
    labels = torch.randint(0, 50, (7,))
    wanted = [hidden, head.weight, head.bias] if trained else [hidden]
    ours, _ = answer_log_probs(hidden, head, labels, 3)
    got = torch.autograd.grad(ours.sum(), wanted)
    plain = head.logits(hidden).log_softmax(-1).gather(-1, labels[:, None]).sum()
    torch.testing.assert_close(ours.sum(), plain)
    for a, b in zip(got, torch.autograd.grad(plain, wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
