"""LoRA layers, norms, MLPs and attention in fewer passes: values and gradients are PEFT's and transformers' own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from comfyloop.train.kernels import attention, last_layer, lora, mlp, packing, rms_norm
from tests.families import text_fields, text_tokenizer


def with_lora(tiny_llm: Path, dtype: torch.dtype, **config: object):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=dtype)
    config.setdefault("target_modules", ["q_proj", "v_proj", "o_proj"])
    peft = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, **config))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return peft


def loss_and_gradients(model):  # type: ignore[no-untyped-def]
    ids = torch.arange(40).view(2, 20) + 5
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize(
    ("layers", "loras", "mlps"),
    [
        (["q_proj", "v_proj", "o_proj"], 3, 1),
        ("all-linear", 7, 1),
        (["up_proj"], 1, 0),  # neither frozen nor all three of them with a LoRA: as transformers does
    ],
)
def test_the_same_loss_and_gradients(
    tiny_llm: Path, dtype: torch.dtype, bound: float, layers: str | list[str], loras: int, mlps: int
) -> None:
    own = with_lora(tiny_llm, dtype, target_modules=layers)
    ours = copy.deepcopy(own)
    assert lora.fuse_lora(ours) == 2 * loras
    assert rms_norm.fuse_rms_norm(ours) == 5
    assert mlp.fuse_mlp(ours) == 2 * mlps
    expected, gradients = loss_and_gradients(own)
    loss, found = loss_and_gradients(ours)
    assert loss == pytest.approx(expected, rel=bound)
    for name, gradient in gradients.items():
        apart = (found[name] - gradient).norm() / gradient.norm()
        assert apart < bound, (name, float(apart))


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_attention_of_a_packed_row_has_the_same_gradients(
    name: str, dtype: torch.dtype, bound: float
) -> None:
    """Biases in Qwen2, norms of heads in Qwen3, a window in Mistral; the third span goes on from the first."""
    fields = text_fields(text_tokenizer()) | ({"sliding_window": 7} if name == "Mistral" else {})
    torch.manual_seed(0)
    base = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**fields))
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    own = get_peft_model(base.to(dtype), config)
    for parameter_name, parameter in own.named_parameters():
        if "lora_B" in parameter_name or "bias" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    ours = copy.deepcopy(own)
    assert attention.fuse_attention(ours) == base.config.num_hidden_layers
    spans = (packing.Span(9), packing.Span(12), packing.Span(19, (0,)))
    places = torch.cat([torch.arange(9), torch.arange(12), torch.arange(9, 28)])[None]
    ids = (torch.arange(40)[None] * 7) % base.config.vocab_size
    probe = torch.randn(1, 40, base.config.hidden_size)

    def gradients(model):  # type: ignore[no-untyped-def]
        model.base_model.model.set_attn_implementation(packing.NAME)
        states = model.base_model.model.model(
            input_ids=ids, position_ids=places, spans=spans, use_cache=False
        ).last_hidden_state
        (states.float() * probe).mean().backward()
        return states, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    expected, by_own = gradients(own)
    found, by_ours = gradients(ours)
    assert (found - expected).float().norm() < bound * expected.float().norm()
    for n, gradient in by_own.items():
        assert (by_ours[n] - gradient).norm() < bound * gradient.norm(), n


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3"])
def test_the_last_layer_goes_on_with_the_places_that_predict_answers_alone(
    name: str, checkpointing: bool
) -> None:
    """One place predicts two answers here, as where two samples begin alike."""
    torch.manual_seed(0)
    fields = text_fields(text_tokenizer())
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**fields))
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    ids = (torch.arange(40)[None] * 7) % model.config.vocab_size
    predicting = torch.tensor([3, 30, 12, 3])
    probe = torch.randn(4, model.config.hidden_size)
    seen: list[tuple[int, ...]] = []
    model.model.layers[-1].mlp.register_forward_hook(lambda _, inputs, out: seen.append(tuple(out.shape)))

    def gradients(states: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        (states * probe).sum().backward()
        return states, [p.grad.clone() for p in model.model.parameters() if p.grad is not None]

    whole, of_whole = gradients(model.model(ids, use_cache=False).last_hidden_state[0, predicting])
    assert last_layer.keep_answers_only(model)
    assert model.model(ids, use_cache=False).last_hidden_state.shape[1] == 40  # as before, where not asked
    seen.clear()
    narrow, of_narrow = gradients(
        model.model(ids, use_cache=False, predicting=predicting).last_hidden_state[0]
    )
    assert {shape[1] for shape in seen} == {4}
    torch.testing.assert_close(narrow, whole, rtol=1e-5, atol=1e-5)
    assert len(of_whole) == len(of_narrow) == len(list(model.model.parameters()))
    for expected, found in zip(of_whole, of_narrow, strict=True):
        assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_float32_sums_come_closer_to_the_truth_than_half_precision_ones(tiny_llm: Path) -> None:
    """In bfloat16 the input's gradient is added up in float32 here, and in bfloat16 by autograd."""
    truth = loss_and_gradients(with_lora(tiny_llm, torch.float32))[1]
    own = with_lora(tiny_llm, torch.bfloat16)
    ours = copy.deepcopy(own)
    lora.fuse_lora(ours)
    rms_norm.fuse_rms_norm(ours)
    mlp.fuse_mlp(ours)

    def error(model) -> float:  # type: ignore[no-untyped-def]
        found = loss_and_gradients(model)[1]
        return float(torch.stack([(found[n] - g).norm() / g.norm() for n, g in truth.items()]).mean())

    assert error(ours) < 1.1 * error(own)


def test_the_adapter_can_still_be_switched_off_and_merged(tiny_llm: Path) -> None:
    peft = with_lora(tiny_llm, torch.float32, target_modules="all-linear")
    ids = torch.arange(12)[None] + 5
    with torch.no_grad():
        with peft.disable_adapter():
            off = peft(input_ids=ids).logits
        on = peft(input_ids=ids).logits
        lora.fuse_lora(peft)
        mlp.fuse_mlp(peft)
        with peft.disable_adapter():
            assert torch.equal(peft(input_ids=ids).logits, off)
        torch.testing.assert_close(peft(input_ids=ids).logits, on)
        peft.merge_adapter()
        torch.testing.assert_close(peft(input_ids=ids).logits, on, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(on, off)


@pytest.mark.parametrize("config", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}])
def test_layers_that_are_not_plain_are_left_to_peft(tiny_llm: Path, config: dict[str, object]) -> None:
    assert lora.fuse_lora(with_lora(tiny_llm, torch.float32, **config)) == 0
