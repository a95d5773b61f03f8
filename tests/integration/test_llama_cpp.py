"""What is written as GGUF answers in llama.cpp as the adapter beside its base model does in transformers."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from comfyloop.registry import gguf_files
from comfyloop.registry.gguf_files import GgufMetadata
from tests.families import make_family
from tests.models import save_language_model
from tests.unit.registry.test_gguf import save_adapter as save_lora
from tests.unit.registry.test_gguf import save_sentencepiece, save_whole_model
from tests.unit.serve.embedded.conftest import save_adapter

llama = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")

ANSWER = 12  # tokens
QUESTION = [{"role": "user", "content": "What is the capital of France? Write 12 words."}]
TEXTS = (
    "What is the capital of France?", "12345 + 6.78 = 90", "  two  spaces\n\n\ttab ", "你好，世界！",
    "it's Anna's cat 🐈‍⬛", "<|im_start|>user\nhello<|im_end|>\n",
)  # fmt: skip


class Served:
    """A model in llama.cpp's own server."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def post(self, path: str, **told: Any) -> Any:
        request = urllib.request.Request(
            f"{self._server.listening_address}{path}",
            json.dumps(told).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def answer(self, prompt: list[int]) -> tuple[list[int], dict[int, list[float]]]:
        """The greedy answer's tokens, and the log-probabilities of the best three by place. Those of tokens that are
        no whole character are not told."""
        told = self.post(
            "/completion", prompt=prompt, n_predict=ANSWER, temperature=0, n_probs=3, cache_prompt=False,
            return_tokens=True,
        )  # fmt: skip
        tokens, place, tops = told["tokens"], 0, {}
        for one in told["completion_probabilities"]:
            place = tokens.index(one["id"], place) + 1
            tops[place - 1] = [top["logprob"] for top in one["top_logprobs"]]
        return tokens, tops


@contextmanager
def served(model: Path, lora: Path | None = None) -> Iterator[Served]:
    given = llama.CommonParams()
    given.model.path = str(model)
    given.n_ctx, given.n_gpu_layers, given.n_parallel, given.warmup = 512, 0, 1, False
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = 1
    given.cache_type_k = given.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    given.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if lora is not None:
        added = llama.CommonAdapterLoraInfo()
        added.path, added.scale = str(lora), 1.0
        given.lora_adapters = [added]
    server = llama.Server(given)
    try:
        yield Served(server)
    finally:
        del server


def answered(model: Any, prompt: list[int], eos: int) -> tuple[list[int], list[list[float]]]:
    """The same by transformers, step by step."""
    import torch

    tokens, tops = list(prompt), []
    with torch.no_grad():
        for _ in range(ANSWER):
            found = torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0, -1].float(), -1)
            tops.append(found.topk(3).values.tolist())
            tokens.append(int(found.argmax()))
            if tokens[-1] == eos:
                break
    return tokens[len(prompt) :], tops


def without_effect(adapter: Path, place: Path) -> Path:
    """An adapter that changes nothing: merged, it gives the base model's own GGUF file."""
    place.mkdir()
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: value * (".lora_A." in name) for name, value in tensors.items()},
        place / "adapter_model.safetensors",
    )
    (place / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    return place


def as_far(got: dict[int, list[float]], want: list[list[float]]) -> float:
    assert got
    return max(abs(a - b) for place, have in got.items() for a, b in zip(have, want[place], strict=True))


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen2_5_vl", "qwen3_vl", "llava", "internvl", "smolvlm"])
def test_every_family_answers_alike_merged_and_beside(name: str, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    base = make_family(name, tmp_path / "base")
    if (
        name == "qwen3_vl"
    ):  # llama.cpp leaves out frequencies beyond three times a section, which texts need none of
        config = json.loads((base / "config.json").read_text())
        config["text_config"]["rope_parameters"]["mrope_section"] = [3, 3, 2]
        (base / "config.json").write_text(json.dumps(config))
    loader = AutoModelForCausalLM if name in ("llama", "qwen3") else AutoModelForImageTextToText
    torch.manual_seed(1)
    language = r"^(?!.*(vision|visual|projector|connector|merger)).*\.(q|k|v|o|up|down|gate)_proj$"
    config = LoraConfig(r=4, lora_alpha=6, target_modules=language, init_lora_weights=False)
    get_peft_model(loader.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    ours = PeftModel.from_pretrained(loader.from_pretrained(base).float(), tmp_path / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    want, tops = answered(ours, prompt, tokenizer.eos_token_id)
    with ours.disable_adapter():
        assert answered(ours, prompt, tokenizer.eos_token_id)[0] != want, "the adapter changes nothing"

    gguf_files.write(tmp_path / "adapter", base, tmp_path / "gguf", GgufMetadata("v"), "f32")
    none = without_effect(tmp_path / "adapter", tmp_path / "none")
    gguf_files.write(none, base, tmp_path / "plain", GgufMetadata("v"), "f32")
    lora = tmp_path / "gguf" / "v-lora.gguf"
    for model, beside in (
        (tmp_path / "gguf" / "v-f32.gguf", None),
        (tmp_path / "plain" / "v-f32.gguf", lora),
    ):
        with served(model, beside) as there:
            got, found = there.answer(prompt)
            assert got == want and as_far(found, tops) < 1e-2  # random weights enlarge what is rounded
            assert [
                there.post("/tokenize", content=text, parse_special=True)["tokens"] for text in TEXTS
            ] == [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]


def test_sentencepiece_splits_alike(tmp_path: Path) -> None:
    base = save_whole_model(tmp_path / "base", "llama", rows=400)
    ours = save_sentencepiece(base)
    gguf_files.write(save_lora(base, tmp_path / "adapter"), base, tmp_path / "gguf", GgufMetadata("v"))
    with served(tmp_path / "gguf" / "v-f16.gguf") as there:
        for text in TEXTS[:-1]:
            assert (
                there.post("/tokenize", content=text)["tokens"]
                == ours.encode(text, add_special_tokens=False).ids
            )


@pytest.mark.slow
def test_the_starter_answers_alike_merged_beside_and_in_8_bits(starter: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_language_model(starter, tmp_path / "language")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "language").float()
    save_adapter(
        AutoModelForCausalLM.from_pretrained(tmp_path / "language").float(), tmp_path / "adapter", std=0.05
    )
    ours = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(starter)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    want, tops = answered(ours, prompt, tokenizer.eos_token_id)
    none = without_effect(tmp_path / "adapter", tmp_path / "none")
    for adapter, kind, tolerance in (
        ("adapter", "f16", 2e-2),
        ("none", "f16", 2e-2),
        ("adapter", "q8_0", 0.3),
    ):
        place = tmp_path / "gguf" / f"{adapter}-{kind}"
        gguf_files.write(
            none if adapter == "none" else tmp_path / adapter, starter, place, GgufMetadata("v"), kind
        )
        lora = tmp_path / "gguf" / "adapter-f16" / "v-lora.gguf" if adapter == "none" else None
        with served(place / f"v-{kind}.gguf", lora) as there:
            got, found = there.answer(prompt)
            assert got == want and as_far(found, tops) < tolerance, (adapter, kind)
            if kind == "f16":
                said = there.post("/apply-template", messages=QUESTION)["prompt"]
                assert there.post("/tokenize", content=said, parse_special=True)["tokens"] == prompt
                assert [
                    there.post("/tokenize", content=text, parse_special=True)["tokens"] for text in TEXTS
                ] == [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
