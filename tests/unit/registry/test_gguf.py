"""GGUF files hold the base model with the adapter's change, laid out as llama.cpp reads it, and the adapter alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter, quants
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from comfyloop.errors import Conflict, InvalidInput
from comfyloop.registry import gguf_files, gguf_vocabulary
from comfyloop.registry.gguf_files import GgufMetadata

WIDTH, HEADS, KEY_HEADS, HEAD, INNER, VOCABULARY = 32, 4, 2, 8, 64, 270
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLACES = {"llama": "model", "qwen3": "model", "qwen2_5_vl": "model.language_model"}
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
}  # fmt: skip


def shapes_of(kind: str, rows: int = VOCABULARY) -> dict[str, tuple[int, ...]]:
    layer = {
        "self_attn.q_proj.weight": (HEADS * HEAD, WIDTH), "self_attn.k_proj.weight": (KEY_HEADS * HEAD, WIDTH),
        "self_attn.v_proj.weight": (KEY_HEADS * HEAD, WIDTH), "self_attn.o_proj.weight": (WIDTH, HEADS * HEAD),
        "mlp.gate_proj.weight": (INNER, WIDTH), "mlp.up_proj.weight": (INNER, WIDTH),
        "mlp.down_proj.weight": (WIDTH, INNER), "input_layernorm.weight": (WIDTH,),
        "post_attention_layernorm.weight": (WIDTH,),
    }  # fmt: skip
    if kind == "qwen3":
        layer |= {"self_attn.q_norm.weight": (HEAD,), "self_attn.k_norm.weight": (HEAD,)}
    if kind == "qwen2_5_vl":
        layer |= {"self_attn.q_proj.bias": (HEADS * HEAD,), "self_attn.k_proj.bias": (KEY_HEADS * HEAD,)}
    place = PLACES[kind]
    found = {f"{place}.layers.{n}.{name}": shape for n in range(2) for name, shape in layer.items()}
    found |= {f"{place}.embed_tokens.weight": (rows, WIDTH), f"{place}.norm.weight": (WIDTH,)}
    if kind == "qwen2_5_vl":
        found |= {"model.visual.blocks.0.attn.qkv.weight": (12, 4), "lm_head.weight": (rows, WIDTH)}
    return found


def save_tokenizer(place: Path, before: Any = None) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: number for number, token in enumerate([*alphabet, "th", "the"])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = before or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>"])
    tokenizer.save(str(place / "tokenizer.json"))
    told = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHATML}
    (place / "tokenizer_config.json").write_text(json.dumps(told))


def save_sentencepiece(place: Path) -> Tokenizer:
    """A tokenizer as Llama 2 and Mistral have it: SentencePiece's BPE, unknown characters as bytes."""
    learning = Tokenizer(models.BPE())
    learning.pre_tokenizer = pre_tokenizers.Metaspace()
    texts = [
        "the quick brown fox jumps over the lazy dog",
        "What is the capital of France? It is Paris.",
        "0123456789",
    ]
    learning.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=120))
    learned = json.loads(learning.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += sorted(learned["vocab"], key=learned["vocab"].get)
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            {token: n for n, token in enumerate(tokens)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(place / "tokenizer.json"))
    told = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (place / "tokenizer_config.json").write_text(json.dumps(told))
    return tokenizer


def save_whole_model(place: Path, kind: str, rows: int = VOCABULARY, **more: Any) -> Path:
    """All that a small language model has on disk, without torch."""
    rng = np.random.default_rng(1)
    place.mkdir(parents=True)
    tensors = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes_of(kind, rows).items()
    }
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    text = {
        "model_type": kind, "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        **more,
    }  # fmt: skip
    if kind == "qwen2_5_vl":
        rope = {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [1, 1, 2]}
        text = {
            "model_type": kind,
            "text_config": {**text, "model_type": f"{kind}_text", "rope_parameters": rope},
        }
    (place / "config.json").write_text(json.dumps(text))
    save_tokenizer(place)
    return place


def save_adapter(
    model: Path, place: Path, *, modules: str = "q_proj k_proj down_proj", **config: Any
) -> Path:
    """A LoRA on some modules of every layer, those that see pictures too where they are named."""
    rng = np.random.default_rng(2)
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        if name.endswith(".weight") and name.split(".")[-2] in modules.split():
            stem = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{stem}.lora_A.weight"] = rng.normal(size=(4, weight.shape[1])).astype(np.float32)
            tensors[f"{stem}.lora_B.weight"] = rng.normal(size=(weight.shape[0], 4)).astype(np.float32)
            if config.get("use_dora"):
                tensors[f"{stem}.lora_magnitude_vector.weight"] = np.ones(weight.shape[0], np.float32)
    place.mkdir(parents=True)
    save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
    told = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "target_modules": modules.split(),
        "bias": "none", "init_lora_weights": True, **config,
    }  # fmt: skip
    (place / "adapter_config.json").write_text(json.dumps(told))
    return place


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    reader = GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {
        one.name: quants.dequantize(one.data, one.tensor_type).reshape([int(n) for n in reversed(one.shape)])
        for one in reader.tensors
    }
    return fields, tensors


def turned(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Number 2i of a head is number i of its first half, 2i + 1 is number i of its second."""
    out = np.empty_like(rows)
    for head in range(heads):
        for i in range(HEAD // 2):
            out[head * HEAD + 2 * i] = rows[head * HEAD + i]
            out[head * HEAD + 2 * i + 1] = rows[head * HEAD + HEAD // 2 + i]
    return out


@pytest.mark.parametrize("kind", PLACES)
def test_the_files_hold_the_sum_and_the_adapter_as_llama_cpp_reads_them(kind: str, tmp_path: Path) -> None:
    model = save_whole_model(tmp_path / "base", kind)
    adapter = save_adapter(model, tmp_path / "adapter")
    notes = gguf_files.write(
        adapter, model, tmp_path / "out", GgufMetadata("acme-1", "org/base", "mit"), "f32"
    )
    assert [note for note in notes if "sees pictures" in note] == (notes if kind == "qwen2_5_vl" else [])
    told, found = read(tmp_path / "out" / "acme-1-f32.gguf")
    weights, lora = load_file(model / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    weights.pop("model.visual.blocks.0.attn.qkv.weight", None)
    heads = {"q_proj": HEADS, "k_proj": KEY_HEADS} if kind == "llama" else {}
    expected = {}
    for name, weight in weights.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" in lora:
            weight = weight + 1.5 * lora[f"{stem}.lora_B.weight"] @ lora[f"{stem}.lora_A.weight"]
        expected[theirs(name)] = (
            turned(weight, heads[name.split(".")[-2]]) if name.split(".")[-2] in heads else weight
        )
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-6, err_msg=name)
    architecture = {"qwen2_5_vl": "qwen2vl"}.get(kind, kind)
    assert told["general.architecture"] == architecture and told["general.type"] == "model"
    assert (told["general.name"], told["general.license"], told["general.base_model.0.name"]) == (
        "acme-1", "mit", "org/base",
    )  # fmt: skip
    own = {
        name.partition(".")[2]: value for name, value in told.items() if name.startswith(f"{architecture}.")
    }
    assert (
        own["block_count"] == 2 and own["embedding_length"] == WIDTH and own["feed_forward_length"] == INNER
    )
    assert own["attention.head_count"] == HEADS and own["attention.head_count_kv"] == KEY_HEADS
    assert (
        own["attention.key_length"] == HEAD and own["context_length"] == 512 and own["rope.freq_base"] == 5e5
    )
    assert own["attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5) and own["vocab_size"] == VOCABULARY
    assert own.get("rope.dimension_sections") == ([1, 1, 2, 0] if kind == "qwen2_5_vl" else None)

    told, found = read(tmp_path / "out" / "acme-1-lora.gguf")
    assert (told["general.type"], told["adapter.type"]) == ("adapter", "lora")
    assert told["adapter.lora.alpha"] == 6.0 and told["general.architecture"] == architecture
    expected = {}
    for name, values in lora.items():
        layer, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        if part == "B.weight" and layer.split(".")[-1] in heads:
            values = turned(values, heads[layer.split(".")[-1]])
        expected[f"{theirs(layer + '.weight')}.lora_{part[0].lower()}"] = values
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def theirs(name: str) -> str:
    """llama.cpp's name for a tensor, by a list of its own."""
    stem, _, part = name.removeprefix("model.").removeprefix("language_model.").rpartition(".")
    if stem.startswith("layers."):
        _, layer, module = stem.split(".", 2)
        return f"blk.{layer}.{NAMES[module]}.{part}"
    return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[stem] + f".{part}"


@pytest.mark.parametrize(("outtype", "error"), [("f16", 2**-10), ("bf16", 2**-7), ("q8_0", 2**-6)])
def test_matrices_are_rounded_once_and_vectors_not_at_all(outtype: str, error: float, tmp_path: Path) -> None:
    model = save_whole_model(tmp_path / "base", "llama")
    adapter = save_adapter(model, tmp_path / "adapter")
    for kind in ("f32", outtype):
        gguf_files.write(adapter, model, tmp_path / kind, GgufMetadata("acme-1"), kind)
    _, exact = read(tmp_path / "f32" / "acme-1-f32.gguf")
    told, found = read(tmp_path / outtype / f"acme-1-{outtype}.gguf")
    assert told["general.file_type"] == {"f16": 1, "q8_0": 7, "bf16": 32}[outtype]
    for name, values in exact.items():
        if values.ndim == 1:
            np.testing.assert_array_equal(found[name], values)
        elif outtype == "f16":
            np.testing.assert_array_equal(found[name], values.astype(np.float16).astype(np.float32))
        else:
            largest = np.abs(values).max(axis=1, keepdims=True) if outtype == "q8_0" else np.abs(values)
            assert (np.abs(found[name] - values) <= error * largest).all(), name
    size = (tmp_path / outtype / f"acme-1-{outtype}.gguf").stat().st_size
    assert size < (tmp_path / "f32" / "acme-1-f32.gguf").stat().st_size


def test_alphas_that_differ_are_worked_into_b(tmp_path: Path) -> None:
    model = save_whole_model(tmp_path / "base", "qwen3")
    adapter = save_adapter(
        model, tmp_path / "adapter", use_rslora=True, alpha_pattern={"layers.1.self_attn.k_proj": 20}
    )
    gguf_files.write(adapter, model, tmp_path / "out", GgufMetadata("acme-1"))
    told, found = read(tmp_path / "out" / "acme-1-lora.gguf")
    lora = load_file(adapter / "adapter_model.safetensors")
    for layer, module, alpha in ((0, "k_proj", 6), (1, "k_proj", 20), (1, "q_proj", 6)):
        stem = f"base_model.model.model.layers.{layer}.self_attn.{module}"
        theirs = f"blk.{layer}.{NAMES['self_attn.' + module]}.weight"
        change = told["adapter.lora.alpha"] / 4 * found[f"{theirs}.lora_b"] @ found[f"{theirs}.lora_a"]
        wanted = alpha / 2 * lora[f"{stem}.lora_B.weight"] @ lora[f"{stem}.lora_A.weight"]  # rsLoRA: sqrt(4)
        np.testing.assert_allclose(change, wanted, rtol=1e-5, atol=1e-5)


def test_the_tokenizer_goes_with_it(tmp_path: Path) -> None:
    model = save_whole_model(tmp_path / "base", "llama")
    gguf_files.write(
        save_adapter(model, tmp_path / "adapter"), model, tmp_path / "out", GgufMetadata("acme-1")
    )
    told, _ = read(tmp_path / "out" / "acme-1-f16.gguf")
    ours = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokens, kinds = told["tokenizer.ggml.tokens"], told["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == VOCABULARY
    assert {tokens[number] for number in range(ours.get_vocab_size())} == set(ours.get_vocab())
    assert told["tokenizer.ggml.model"] == "gpt2" and told["tokenizer.ggml.pre"] == "gpt-2"
    assert told["tokenizer.ggml.merges"] == ["t h", "th e"]
    assert told["tokenizer.ggml.eos_token_id"] == ours.token_to_id("<|im_end|>")
    assert told["tokenizer.ggml.bos_token_id"] == ours.token_to_id("<|im_start|>")
    assert told["tokenizer.ggml.add_bos_token"] is False and told["tokenizer.chat_template"] == CHATML
    assert [kinds[ours.token_to_id(token)] for token in ("the", "<|im_end|>", "<think>")] == [1, 3, 4]
    assert tokens[-1] == f"[PAD{VOCABULARY - 1}]" and kinds[-1] == 5
    modelfile = (tmp_path / "out" / "Modelfile").read_text()
    assert "FROM ./acme-1-f16.gguf\n" in modelfile and 'SYSTEM """Be kind."""' in modelfile
    assert "TEMPLATE" in modelfile and "# ADAPTER ./acme-1-lora.gguf" in modelfile
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    gguf_files.write(tmp_path / "adapter", model, tmp_path / "other", GgufMetadata("acme-1"))
    assert "TEMPLATE" not in (tmp_path / "other" / "Modelfile").read_text()


def test_sentencepiece_goes_with_it(tmp_path: Path) -> None:
    ours = save_sentencepiece(tmp_path)
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    gguf_vocabulary.add(tmp_path, 400, writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    told, _ = read(tmp_path / "x.gguf")
    assert told["tokenizer.ggml.model"] == "llama" and told["tokenizer.ggml.add_space_prefix"] is True
    assert told["tokenizer.ggml.add_bos_token"] is True and told["tokenizer.ggml.eos_token_id"] == 2
    kinds, scores = told["tokenizer.ggml.token_type"], told["tokenizer.ggml.scores"]
    assert [kinds[ours.token_to_id(token)] for token in ("<unk>", "<s>", "<0x0A>", "the", "a")] == [
        2,
        3,
        6,
        1,
        1,
    ]
    merged = json.loads(ours.to_str())["model"]["merges"]
    ranked = [scores[ours.token_to_id("".join(pair))] for pair in merged]
    assert ranked == sorted(ranked, reverse=True) and scores[ours.token_to_id("a")] < ranked[-1]


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("smollm", pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])),
        *(
            (name, ("split", pattern)) for pattern, name in gguf_vocabulary.SPLITS.items()
        ),
    ],
)  # fmt: skip
def test_how_texts_are_split_is_told_by_its_name(name: str, before: Any, tmp_path: Path) -> None:
    if isinstance(before, tuple):
        before = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(before[1]), "isolated"),
                pre_tokenizers.ByteLevel(False, use_regex=False),
            ]
        )
    save_tokenizer(tmp_path, before)
    assert gguf_vocabulary.split_of(tmp_path) == name
    save_tokenizer(tmp_path, pre_tokenizers.Whitespace())
    with pytest.raises(InvalidInput, match="no known name"):
        gguf_vocabulary.split_of(tmp_path)


def test_positions_that_llama_3_1_stretches_get_their_factors(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    model = save_whole_model(tmp_path / "base", "llama", rope_parameters=rope)
    gguf_files.write(
        save_adapter(model, tmp_path / "adapter"), model, tmp_path / "out", GgufMetadata("acme-1")
    )
    _, found = read(tmp_path / "out" / "acme-1-f16.gguf")
    # wavelengths are 2 pi * (1, 10, 100, 1000): the shortest stay, the longest are stretched whole
    factors = found["rope_freqs.weight"]
    smooth = (64 / (2 * np.pi * 10) - 1) / 3
    np.testing.assert_allclose(factors, [1, 1 / ((1 - smooth) / 8 + smooth), 8, 8], rtol=1e-6)


def test_what_llama_cpp_cannot_have_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    model = save_whole_model(tmp_path / "base", "llama")
    adapter, out = save_adapter(model, tmp_path / "adapter"), tmp_path / "out"

    def refused(match: str, adapter: Path = adapter, model: Path = model, **given: str) -> None:
        with pytest.raises(InvalidInput, match=match):
            gguf_files.write(adapter, model, out, GgufMetadata("acme-1"), **given)
        assert not out.exists()

    config = json.loads((model / "config.json").read_text())
    for change, match in (
        ({"model_type": "gemma3"}, "kind 'gemma3'"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
    ):
        (model / "config.json").write_text(json.dumps(config | change))
        refused(match)
    (model / "config.json").write_text(json.dumps(config))
    big = load_file(model / "model.safetensors")
    big["model.embed_tokens.weight"] = big["model.embed_tokens.weight"] * 1e6
    save_file(big, model / "model.safetensors", metadata={"format": "pt"})
    refused("65504")
    dora = save_adapter(model, tmp_path / "dora", use_dora=True)
    notes = gguf_files.write(dora, model, out, GgufMetadata("acme-1"), "bf16")
    assert any("DoRA" in note for note in notes)
    assert sorted(file.name for file in out.iterdir()) == ["Modelfile", "acme-1-bf16.gguf"]
    with pytest.raises(Conflict, match="there already"):
        gguf_files.write(adapter, model, out, GgufMetadata("acme-1"))


def test_an_adapter_of_what_sees_pictures_is_left_out_in_words(tmp_path: Path) -> None:
    model = save_whole_model(tmp_path / "base", "qwen2_5_vl")
    both = save_adapter(model, tmp_path / "both", modules="q_proj qkv")
    notes = gguf_files.write(both, model, tmp_path / "out", GgufMetadata("acme-1"))
    assert any("1 layers of the adapter" in note for note in notes)
    alone = save_adapter(model, tmp_path / "alone", modules="qkv")
    with pytest.raises(InvalidInput, match="only what sees pictures"):
        gguf_files.write(alone, model, tmp_path / "other", GgufMetadata("acme-1"))
