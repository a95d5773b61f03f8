"""Tiny random-weight models of the real classes, one a family, each saved with its real processor.

Nothing is downloaded: the tokenizer is the one of tests/models.py with the family's own special tokens, the
image processors are the ones that run without torchvision, and the video processors, which do not, are left
out as `comfyloop.models.processors` leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.models import make_tokenizer

FAMILIES = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "llava_onevision", "idefics3", "smolvlm",
    "internvl", "llama", "qwen3",
)  # fmt: skip
MROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SEEING = tuple(name for name in FAMILIES if name not in {"llama", "qwen3"})


def chatml(image: str) -> str:
    """A ChatML template that writes `image` where an image stands."""
    return (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}" + image + "{% elif c['type'] == 'text' %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


# As Idefics writes it: no token opens a turn, and the answer follows a space.
IDEFICS = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}:"
    "{% if m['content'] is string %} {{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %} {{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def _tokenizer(*tokens: str, eos: str = "<|im_end|>", **named: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", *tokens]})
    tokenizer.eos_token = eos
    for name, token in named.items():
        tokenizer.add_special_tokens({name: token}) if name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES else None
    if named:
        tokenizer._set_model_specific_special_tokens(named)
        tokenizer.init_kwargs["extra_special_tokens"] = named
    return tokenizer


def _ids(tokenizer: Any) -> dict[str, int]:
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def text_fields(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        **_ids(tokenizer),
        **more,
    }


VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def _without_video(processor: type) -> type:
    from comfyloop.models.processors import without_video

    return without_video(processor)


def _qwen(name: str) -> tuple[Any, Any]:
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = _tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    prefix = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[name]
    token = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    if name == "qwen2_vl":
        vision = {
            "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
        }  # fmt: skip
    elif name == "qwen2_5_vl":
        vision = {
            "depth": 2, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 64,
            "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1],
        }  # fmt: skip
    else:
        rope["mrope_interleaved"] = True
        vision = {
            "depth": 3, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 64,
            "patch_size": 4, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64,
        }  # fmt: skip
    text = text_fields(tokenizer, rope_parameters=rope, **({"head_dim": 16} if name == "qwen3_vl" else {}))
    config = getattr(transformers, f"{prefix}Config")(
        text_config=text,
        vision_config={**vision, "initializer_range": 0.2},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    processor = _without_video(getattr(transformers, f"{prefix}Processor"))(
        Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, size={"shortest_edge": 8 * 8, "longest_edge": 48 * 48}
        ),
        tokenizer,
        chat_template=chatml(QWEN_IMAGE),
    )
    return getattr(transformers, f"{prefix}ForConditionalGeneration")(config), processor


def _llava(name: str) -> tuple[Any, Any]:
    import transformers as t

    tokenizer = _tokenizer("<video>")
    clip = t.CLIPVisionConfig(
        **VISION, image_size=28, patch_size=14, projection_dim=32, initializer_range=0.2
    )
    common = {
        "vision_config": clip,
        "text_config": t.LlamaConfig(**text_fields(tokenizer, tie_word_embeddings=True)),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "tie_word_embeddings": True,
    }
    pinpoints = [[28, 56], [56, 28], [56, 56]]
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    template = {"chat_template": chatml("<image>\n")}
    if name == "llava":
        config = t.LlavaConfig(
            **common, image_seq_length=4, vision_feature_layer=-1, vision_feature_select_strategy="default"
        )
        processor = t.LlavaProcessor(
            t.CLIPImageProcessor(**size), tokenizer, patch_size=14, num_additional_image_tokens=1,
            vision_feature_select_strategy="default", **template,
        )  # fmt: skip
        return t.LlavaForConditionalGeneration(config), processor
    if name == "llava_next":
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

        config = t.LlavaNextConfig(
            **common, image_grid_pinpoints=pinpoints, vision_feature_layer=-1,
            vision_feature_select_strategy="default",
        )  # fmt: skip
        processor = t.LlavaNextProcessor(
            LlavaNextImageProcessorPil(**size, image_grid_pinpoints=pinpoints), tokenizer, patch_size=14,
            vision_feature_select_strategy="default", num_additional_image_tokens=1, **template,
        )  # fmt: skip
        return t.LlavaNextForConditionalGeneration(config), processor
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    common["vision_config"] = t.SiglipVisionConfig(
        **VISION, image_size=28, patch_size=14, vision_use_head=False
    )
    config = t.LlavaOnevisionConfig(
        **common, video_token_index=tokenizer.convert_tokens_to_ids("<video>"), image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    processor = _without_video(t.LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints),
        tokenizer, num_image_tokens=4, vision_feature_select_strategy="full", **template,
    )  # fmt: skip
    return t.LlavaOnevisionForConditionalGeneration(config), processor


def idefics_tokenizer() -> Any:
    return _tokenizer(
        "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>",
        *(f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)), eos="<end_of_utterance>",
    )  # fmt: skip


def _idefics(name: str) -> tuple[Any, Any]:
    import transformers as t

    tokenizer = idefics_tokenizer()
    config_class, model, text = (
        (t.Idefics3Config, t.Idefics3ForConditionalGeneration, t.LlamaConfig)
        if name == "idefics3"
        else (t.SmolVLMConfig, t.SmolVLMForConditionalGeneration, t.LlamaConfig)
    )
    config = config_class(
        vision_config={**VISION, "image_size": 16, "patch_size": 4, "initializer_range": 0.2},
        text_config=text(**text_fields(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    size = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
    if name == "idefics3":
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

        processor = t.Idefics3Processor(
            Idefics3ImageProcessorPil(**size), tokenizer, image_seq_len=4, chat_template=IDEFICS
        )
    else:
        from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

        processor = _without_video(t.SmolVLMProcessor)(
            SmolVLMImageProcessorPil(**size), tokenizer, None, image_seq_len=4, chat_template=IDEFICS
        )
    return model(config), processor


def _internvl() -> tuple[Any, Any]:
    import transformers as t
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = _tokenizer(*named.values(), **named)
    config = t.InternVLConfig(
        vision_config={**VISION, "image_size": [16, 16], "patch_size": [4, 4]},
        text_config=t.Qwen2Config(**text_fields(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    processor = _without_video(t.InternVLProcessor)(
        GotOcr2ImageProcessorPil(
            size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer, image_seq_length=4, chat_template=chatml("<IMG_CONTEXT>\n"),
    )  # fmt: skip
    return t.InternVLForConditionalGeneration(config), processor


def text_tokenizer() -> Any:
    tokenizer = _tokenizer()
    tokenizer.chat_template = chatml("")
    return tokenizer


def _seeing_ahead(name: str) -> tuple[Any, Any]:
    """Families whose image tokens see each other: no packing, and no promise in FAMILIES beyond that."""
    import transformers as t

    tokenizer = _tokenizer("<start_of_image>", "<end_of_image>", "<image_soft_token>")
    if name == "gemma3":
        named = {
            "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
        }  # fmt: skip
        tokenizer = _tokenizer(*named.values(), **named)
    token = tokenizer.convert_tokens_to_ids
    vision = {**VISION, "image_size": 16, "patch_size": 4, "vision_use_head": False}
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    if name == "gemma3":
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        text = text_fields(
            tokenizer,
            head_dim=16,
            sliding_window=9,
            layer_types=["sliding_attention"] * 2 + ["full_attention"],
        )
        text.pop("rope_parameters", None)
        config = t.Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=4,
            boi_token_index=token("<start_of_image>"), eoi_token_index=token("<end_of_image>"),
            image_token_index=token("<image_soft_token>"),
        )  # fmt: skip
        processor = t.Gemma3Processor(
            Gemma3ImageProcessorPil(size={"height": 16, "width": 16}), tokenizer, image_seq_length=4,
            chat_template=chatml("<start_of_image>"),
        )  # fmt: skip
        return t.Gemma3ForConditionalGeneration(config), processor
    config = t.PaliGemmaConfig(
        text_config={**text_fields(tokenizer, head_dim=16), "model_type": "gemma"},
        vision_config={**vision, "model_type": "siglip_vision_model", "num_image_tokens": 16, "projection_dim": 64},
        image_token_index=token("<image>"), projection_dim=64, hidden_size=64,
    )  # fmt: skip
    images = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    images.image_seq_length = 16
    processor = t.PaliGemmaProcessor(images, tokenizer, chat_template=chatml("<image>"))
    return t.PaliGemmaForConditionalGeneration(config), processor


def _text_only(name: str) -> tuple[Any, Any]:
    import transformers as t

    tokenizer = text_tokenizer()
    if name == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**text_fields(tokenizer))), tokenizer
    return t.Qwen3ForCausalLM(t.Qwen3Config(**text_fields(tokenizer, head_dim=16))), tokenizer


_MAKERS: dict[str, Callable[[str], tuple[Any, Any]]] = {
    **dict.fromkeys(MROPE, _qwen),
    **dict.fromkeys(("llava", "llava_next", "llava_onevision"), _llava),
    **dict.fromkeys(("idefics3", "smolvlm"), _idefics),
    "internvl": lambda _: _internvl(),
    **dict.fromkeys(("llama", "qwen3"), _text_only),
    **dict.fromkeys(("gemma3", "paligemma"), _seeing_ahead),
}


def make_family(name: str, path: Path) -> Path:
    """Save a tiny model of family `name` with its processor into `path`."""
    import torch

    torch.manual_seed(0)
    model, processor = _MAKERS[name](name)
    tokenizer = getattr(processor, "tokenizer", processor)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path
