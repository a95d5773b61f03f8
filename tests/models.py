"""Tiny models of the real classes with random weights: seconds to build, milliseconds to run."""

from __future__ import annotations

import json
from pathlib import Path

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = [
    "Write a caption for a red ceramic coffee mug. Meet the mug: bold red glaze, warm hands.",
    "What would the cat do on holiday in Hawaii? Surfing in sunglasses, a pod of dolphins behind it.",
    "What is the capital of France? The capital of France is Paris.",
    "0 1 2 3 4 5 6 7 8 9 user assistant system the quick brown fox jumps over the lazy dog",
]


def make_tokenizer():  # type: ignore[no-untyped-def]
    """A byte-level BPE of 600 entries: every string survives a round trip."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=["<image>"],
        chat_template=CHATML,
        model_max_length=512,
    )


def _text_config(vocab_size: int, **ids: int):  # type: ignore[no-untyped-def]
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        **ids,
    )


def make_tiny_llm(path: Path) -> Path:
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = make_tokenizer()
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(_text_config(len(tokenizer), **ids)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_tiny_vlm(path: Path) -> Path:
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = make_tokenizer()
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=32,
        initializer_range=0.2,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=_text_config(len(tokenizer), **ids),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(path)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_convert_rgb=True
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML,
        image_token="<image>",
    )
    processor.save_pretrained(path)
    return path


def save_language_model(source: Path, target: Path) -> None:
    """The language model of a vision-language model of Llama's shape, saved alone with its tokenizer."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaForCausalLM

    whole = AutoModelForImageTextToText.from_pretrained(source)
    decoder = whole.get_decoder()
    alone = LlamaForCausalLM(decoder.config).to(whole.dtype)
    alone.model.load_state_dict(decoder.state_dict())
    alone.lm_head.load_state_dict(whole.get_output_embeddings().state_dict())
    alone.generation_config = whole.generation_config
    alone.save_pretrained(target)
    processor = AutoProcessor.from_pretrained(source)
    processor.tokenizer.chat_template = processor.chat_template
    processor.tokenizer.save_pretrained(target)
    config = target / "tokenizer_config.json"
    told = json.loads(config.read_text())
    told.pop("processor_class", None)  # without it nobody looks for an image processor
    config.write_text(json.dumps(told))
