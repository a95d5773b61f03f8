"""The loss without logits of all positions equals the loss with them; packed rows equal samples alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from comfyloop.formats import Row, Turn, UnusableRow
from comfyloop.train.data.batches import in_groups, pack
from comfyloop.train.kernels.losses import Head, Targets, answer_log_probs
from comfyloop.train.recipes.sft import answer_loss
from comfyloop.train.run.plan import Plan
from comfyloop.train.run.schedule import learning_rate
from comfyloop.train.specs.text import AdapterSpec, TrainSpec
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.models import Loaded, describe, load


def row(question: str, answer: str, number: int = 1) -> Row:
    return Row(number, f"s{number}", (Turn("user", question), Turn("assistant", answer)))


def spec_for(model: Path, **values: object) -> TrainSpec:
    return TrainSpec.model_validate({"model": str(model), "train": "t.jsonl", "dtype": "float32", **values})


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_chunked_cross_entropy_is_cross_entropy(chunk: int, bias: bool) -> None:
    torch.manual_seed(0)
    head = nn.Linear(16, 50, bias=bias)
    hidden = torch.randn(7, 16, requires_grad=True)
    labels = torch.randint(0, 50, (7,))
    weights = torch.randn(7)  # each token's own, as preference losses have them
    log_probs, right = answer_log_probs(hidden, Head(head.weight, head.bias), labels, chunk)
    (log_probs * weights).sum().backward()
    got = hidden.grad.clone(), head.weight.grad.clone(), head.bias.grad.clone() if bias else None
    hidden.grad = None
    head.zero_grad()
    logits = head(hidden)
    expected = -nn.functional.cross_entropy(logits, labels, reduction="none")
    (expected * weights).sum().backward()
    torch.testing.assert_close(log_probs, expected)
    assert right.tolist() == (logits.argmax(-1) == labels).tolist()
    torch.testing.assert_close(got[0], hidden.grad)
    torch.testing.assert_close(got[1], head.weight.grad)
    if bias:
        torch.testing.assert_close(got[2], head.bias.grad)


def with_a_say(directory: Path) -> Loaded:
    """A model with a LoRA as after some steps, so that it has a say."""
    torch.manual_seed(1)
    model = load(spec_for(directory), describe(str(directory)), None)
    for name, parameter in model.trainable:
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def loaded(tiny_llm: Path) -> Loaded:
    return with_a_say(tiny_llm)


def test_packed_samples_do_not_see_each_other(tiny_llm: Path, loaded: Loaded) -> None:
    encoder = describe(str(tiny_llm)).encoder(spec_for(tiny_llm))
    examples = [
        encoder.encode(row("What is the capital of France?", "Paris, of course.")),
        encoder.encode(row("Why?", "Because the quick brown fox jumps over the lazy dog.")),
        encoder.encode(row("Write a caption for a red mug, with warm hands in it.", "Meet the mug.")),
    ]
    features = ImageFeatures(loaded)
    loaded.eval()
    alone = [answer_loss(loaded, features, [example]).total.detach() for example in examples]
    together = answer_loss(loaded, features, examples).total.detach()
    torch.testing.assert_close(together, torch.stack(alone).sum(), rtol=1e-5, atol=1e-4)


def test_loss_is_that_of_plain_transformers(tiny_llm: Path, loaded: Loaded) -> None:
    """Same labels through the model's own forward and loss, with a padded batch."""
    encoder = describe(str(tiny_llm)).encoder(spec_for(tiny_llm))
    examples = [
        encoder.encode(row("What is the capital of France?", "Paris, of course.")),
        encoder.encode(row("Why?", "Because.")),
    ]
    loaded.eval()
    ours = answer_loss(loaded, ImageFeatures(loaded), examples)
    length = max(map(len, examples))
    ids = torch.zeros(2, length, dtype=torch.int64)
    labels = torch.full((2, length), -100)
    mask = torch.zeros(2, length, dtype=torch.int64)
    for i, example in enumerate(examples):
        ids[i, : len(example)] = example.input_ids
        mask[i, : len(example)] = 1
        labels[i, example.answer] = example.input_ids[example.answer]
    loaded.whole.set_attn_implementation("sdpa")
    plain = loaded.whole(input_ids=ids, attention_mask=mask, labels=labels).loss
    loaded.whole.set_attn_implementation("comfyloop_packed")
    tokens = sum(example.answer.numel() for example in examples)
    torch.testing.assert_close((ours.total / tokens).detach(), plain.detach(), rtol=1e-5, atol=1e-5)


def test_answer_is_found_from_the_template(tiny_llm: Path) -> None:
    description = describe(str(tiny_llm))
    turns = (
        Turn("system", "Be brief."), Turn("user", "One?"), Turn("assistant", "One."),
        Turn("user", "Two?"), Turn("assistant", "Two!"),
    )  # fmt: skip
    last = description.encoder(spec_for(tiny_llm)).encode(Row(1, "s", turns))
    both = description.encoder(spec_for(tiny_llm, train_on="all")).encode(Row(1, "s", turns))
    decode = description.processor.decode
    assert decode(last.input_ids[last.answer]) == "Two!<|im_end|>"
    assert decode(both.input_ids[both.answer]) == "One.<|im_end|>Two!<|im_end|>"
    assert torch.equal(last.input_ids, both.input_ids)


def test_a_template_that_hides_the_answer_is_an_error(tiny_llm: Path) -> None:
    description = describe(str(tiny_llm))
    encoder = description.encoder(spec_for(tiny_llm))
    encoder.processor.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(UnusableRow, match="no token of its answer"):
        encoder.encode(row("Hello?", "Hello."))
    encoder.processor.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(UnusableRow, match="differently once the answer is there"):
        encoder.encode(row("Hello?", "Hello."))


def test_too_long_and_unseeing(tiny_llm: Path, tmp_path: Path) -> None:
    encoder = describe(str(tiny_llm)).encoder(spec_for(tiny_llm, max_length=20))
    with pytest.raises(UnusableRow, match=r"more than the 20"):
        encoder.encode(row("word " * 30, "Yes."))
    with pytest.raises(UnusableRow, match="takes text only"):
        encoder.encode(
            Row(1, "s", (Turn("user", "<image>"), Turn("assistant", "It.")), (tmp_path / "a.png",))
        )


def test_lora_is_on_the_language_model_only(tiny_vlm: Path) -> None:
    model = load(spec_for(tiny_vlm), describe(str(tiny_vlm)), None)
    names = [name for name, _ in model.trainable]
    assert len(names) == 2 * 7 * 2  # layers x q,k,v,o,gate,up,down x A,B
    assert all("language_model" in name for name in names)
    attention = AdapterSpec(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    some = load(spec_for(tiny_vlm, adapter=attention), describe(str(tiny_vlm)), None)
    assert len(some.trainable) == 2 * 4 * 2
    assert all("language_model" in name for name, _ in some.trainable)


def test_order_depends_on_the_step_alone() -> None:
    plan = Plan(samples=10, batch_size=2, accumulation=2, epochs=2.5, max_steps=0, seed=3)
    assert plan.steps_per_epoch == 3
    assert plan.total_steps == 8
    epoch = [i for step in range(3) for batch in plan.micro_batches(step) for i in batch]
    assert sorted(epoch) == list(range(10))
    again = [i for step in range(3, 6) for batch in plan.micro_batches(step) for i in batch]
    assert sorted(again) == list(range(10))
    assert again != epoch
    assert plan.micro_batches(4) == Plan(10, 2, 2, 99.0, 0, 3).micro_batches(4)


def test_groups_for_the_holdout_hold_everything_once(tiny_llm: Path) -> None:
    encoder = describe(str(tiny_llm)).encoder(spec_for(tiny_llm))
    examples = [encoder.encode(row("word " * n, "Yes.")) for n in (1, 30, 2, 3, 60)]
    groups = in_groups(examples, 100)
    assert sorted(i for group in groups for i in group) == [0, 1, 2, 3, 4]
    assert all(len(g) == 1 or sum(len(examples[i]) for i in g) <= 100 for g in groups)


def test_a_row_knows_where_its_answers_are(tiny_llm: Path) -> None:
    encoder = describe(str(tiny_llm)).encoder(spec_for(tiny_llm))
    examples = [encoder.encode(row("word " * n, "Yes.")) for n in (1, 30)]
    packed = pack(examples, torch.device("cpu"), share=False)
    assert torch.equal(packed.input_ids[0, packed.predicting + 1], packed.labels)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_schedules(kind: str, tiny_llm: Path) -> None:
    spec = spec_for(tiny_llm, lr_scheduler_type=kind, warmup_ratio=0.2, learning_rate=1.0)
    rates = [learning_rate(step, 20, spec) for step in range(20)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert max(rates) == rates[4] == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == (1.0 if kind == "constant" else pytest.approx(rates[-1]))
    assert rates[-1] < 0.1 or kind == "constant"


@pytest.mark.parametrize("chunk", [2, 100])
def test_several_targets_in_shares_are_a_cross_entropy_with_soft_labels(chunk: int) -> None:
    torch.manual_seed(0)
    head = nn.Linear(16, 50)
    hidden = torch.randn(7, 16, requires_grad=True)
    ids = torch.stack([torch.randperm(50)[:3] for _ in range(7)])
    shares = torch.softmax(torch.randn(7, 3), -1)
    log_probs, _ = answer_log_probs(hidden, Head(head.weight, head.bias), Targets(ids, shares), chunk)
    log_probs.sum().backward()
    got = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = None
    head.zero_grad()
    dense = torch.zeros(7, 50).scatter_(1, ids, shares)
    expected = -nn.functional.cross_entropy(head(hidden), dense, reduction="none")
    expected.sum().backward()
    torch.testing.assert_close(log_probs, expected)
    torch.testing.assert_close(got[0], hidden.grad)
    torch.testing.assert_close(got[1], head.weight.grad)
