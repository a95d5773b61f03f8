"""What keeping a frozen vision tower's features saves: an epoch with and without, and a run after one more image.

Two SmolVLM-shaped models with random weights: a 135M-sized language model under a large tower (93 M parameters,
576 patches an image) and under a small one (1 M, 16 patches). An epoch with kept features and one that runs
the tower each time are taken in turns, batch by batch, in CPU seconds. Then a second run looks at the same
images and 1% more, with the disk cache of the first.

    python bench/features.py [--images 100] [--batches 4] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tests' models

import torch
from PIL import Image

from comfyloop.train.data.examples import Example
from comfyloop.train.data.rows import read_rows
from comfyloop.train.recipes.sft import answer_loss
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.feature_cache import FeatureCache, tower_hash
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.models import Loaded, describe, load

BATCH = 4


@dataclass(frozen=True)
class Tower:
    name: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int


TOWERS = (
    Tower("large", 768, 12, 12, 384),
    Tower("small", 192, 2, 3, 64),
)


def make_model(tower: Tower, folder: Path) -> Path:
    """SmolVLM's class and processor around a tower, saved."""
    import transformers as t
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    from comfyloop.models.processors import without_video
    from tests.families import IDEFICS, idefics_tokenizer

    tokenizer = idefics_tokenizer()
    patches = tower.image_size // 16
    config = t.SmolVLMConfig(
        vision_config={
            "hidden_size": tower.hidden_size,
            "intermediate_size": 4 * tower.hidden_size,
            "num_hidden_layers": tower.num_hidden_layers,
            "num_attention_heads": tower.num_attention_heads,
            "image_size": tower.image_size,
            "patch_size": 16,
        },
        text_config=t.LlamaConfig(
            vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=4,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    t.SmolVLMForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    size = {"longest_edge": tower.image_size}
    processor = without_video(t.SmolVLMProcessor)(
        SmolVLMImageProcessorPil(size=size, max_image_size=size, do_image_splitting=False),
        tokenizer,
        None,
        image_seq_len=patches * patches // 16,
        chat_template=IDEFICS,
    )
    processor.save_pretrained(folder)
    return folder


def make_rows(folder: Path, images: int) -> Path:
    """Photographs' stand-ins: 640 x 480 JPEGs, each with a question and a caption."""
    words = ["red", "mug", "cat", "dolphin", "lazy", "fox", "window", "table", "morning", "light", "Paris"]
    chance = random.Random(1)
    lines = []
    for number in range(images):
        path = folder / f"{number}.jpg"
        if not path.exists():
            Image.effect_noise((64, 48), 90).resize((640, 480)).convert("RGB").save(path, quality=85)
        answer = " ".join(chance.choice(words) for _ in range(12))
        messages = [
            {"role": "user", "content": "<image>Write a caption."},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"messages": messages, "images": [path.name]}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "rows.jsonl"


def cpu() -> float:
    return time.process_time()


def look(model: Loaded, examples: list[Example], cache: FeatureCache | None) -> tuple[ImageFeatures, float]:
    """CPU seconds of looking at every image, with the disk cache where there is one."""
    began = cpu()
    features = ImageFeatures(model, cache)
    for example in examples:
        features.of(example)
    return features, cpu() - began


def epochs(
    model: Loaded, cached_features: ImageFeatures, examples: list[Example], batches: int
) -> dict[str, float]:
    """CPU seconds of training batches with kept features and without, in turns."""
    seconds = {"kept": 0.0, "computed": 0.0}
    model.train()
    for number in range(batches):
        batch = examples[number * BATCH : (number + 1) * BATCH]
        for name in ("kept", "computed") if number % 2 else ("computed", "kept"):
            features = cached_features if name == "kept" else ImageFeatures(model, memory=0)
            began = cpu()
            answer_loss(model, features, batch).total.backward()
            seconds[name] += cpu() - began
            for _, parameter in model.trainable:
                parameter.grad = None
    return seconds


def measure(tower: Tower, images: int, batches: int, folder: Path) -> dict[str, Any]:
    path = make_model(tower, folder / tower.name)
    spec = TrainSpec(model=str(path), train="rows.jsonl", dtype="auto")
    description = describe(spec.model)
    encoder = description.encoder(spec)
    rows, _ = read_rows(make_rows(folder, images + max(1, images // 100)))
    began = cpu()
    examples = [encoder.encode(row) for row in rows]
    reading = cpu() - began
    model = load(spec, description, None)
    first = ImageFeatures(model)
    tower_key = tower_hash(first.parameters(), first.setting())
    model.eval()
    before, full = look(
        model, examples[:images], FeatureCache(folder / f"cache-{tower.name}", tower_key, 10**10)
    )
    uses_disk = before.cache is not None
    began = cpu()
    tower_hash(first.parameters(), first.setting())
    hashing = cpu() - began
    after, again = look(model, examples, FeatureCache(folder / f"cache-{tower.name}", tower_key, 10**10))
    seconds = epochs(model, before, examples, batches)
    return {
        "tower": tower.name,
        "dtype": str(model.dtype),
        "images": images,
        "epoch: kept / computed each time": round(seconds["kept"] / seconds["computed"], 3),
        "CPU s a batch of 4, kept": round(seconds["kept"] / batches, 3),
        "CPU s a batch of 4, computed": round(seconds["computed"] / batches, 3),
        "disk cache": "used" if uses_disk else "switched itself off",
        "looking at all images, CPU s": round(full, 2),
        "second run, 1% more images, CPU s": round(again + hashing, 2),
        "second run / first": round((again + hashing) / full, 4),
        "the same with reading and decoding": round((again + hashing + reading) / (full + reading), 4),
        "images computed in the second run": after.computed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        for tower in TOWERS:
            figures = measure(tower, arguments.images, arguments.batches, Path(folder))
            print(json.dumps(figures, indent=2), flush=True)


if __name__ == "__main__":
    main()
