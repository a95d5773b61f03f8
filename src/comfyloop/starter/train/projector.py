"""The trained part: two linear layers from the tower's features to the language model's word space.

First goal ("words"): the mean of a picture's nine tokens points at the embeddings of the words of its name
and keywords. The frozen language model already reads words in the picture's place, so this alone lets it
talk about pictures, and it costs no pass through the language model.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from comfyloop.starter import vision

from . import texts
from .bank import Bank

TAG_WEIGHT = 0.5


class Projector(nn.Module):
    """The same shape and names as FastVLM's projector, in float32 while it is trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision.CHANNELS, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        hidden: Tensor = self.linear_2(F.gelu(self.linear_1(features)))
        return hidden

    @torch.no_grad()
    def scale_to(self, size: Tensor, features: Tensor) -> None:
        """Give the tokens the size that words have: the first goal asks only for their direction."""
        factor = 1.2 * size / self(features).square().mean().sqrt()
        self.linear_2.weight.mul_(factor)
        self.linear_2.bias.mul_(factor)


class WordTargets:
    """Which words each subject's tokens should point at."""

    def __init__(
        self, subjects: set[texts.Subject], tokenizer: PreTrainedTokenizerBase, embeddings: Tensor
    ) -> None:
        self.tokenizer = tokenizer
        self.bags = {subject: self.bag(subject) for subject in subjects}
        self.vocabulary = sorted({token for bag in self.bags.values() for token in bag})
        self.place = {token: i for i, token in enumerate(self.vocabulary)}
        self.directions = F.normalize(embeddings[self.vocabulary].float(), dim=-1)

    def tokens(self, text: str) -> list[int]:
        words = [w for w in re.findall(r"[a-z]+", text) if w not in texts.GENERIC]
        return [token for word in words for token in self.tokenizer(f" {word}")["input_ids"]]

    def bag(self, subject: texts.Subject) -> dict[int, float]:
        found = dict.fromkeys(self.tokens(subject.name), 1.0)
        for tag in subject.tags:
            for token in self.tokens(tag):
                found.setdefault(token, TAG_WEIGHT)
        return found

    def target(self, subjects: list[texts.Subject]) -> Tensor:
        out = torch.zeros(len(subjects), len(self.vocabulary))
        for row, subject in enumerate(subjects):
            for token, weight in self.bags[subject].items():
                out[row, self.place[token]] = weight
        return out / out.sum(-1, keepdim=True).clamp(min=1e-6)

    def loss(self, tokens: Tensor, target: Tensor, temperature: Tensor) -> Tensor:
        """`tokens` (n, 9, width): the mean of all nine, and more weakly one of them, against the words."""
        one = tokens[:, int(torch.randint(tokens.shape[1], ()))]
        total = tokens.new_zeros(())
        for vector, weight in ((tokens.mean(1), 1.0), (one, 0.3)):
            scores = F.normalize(vector, dim=-1) @ self.directions.T * temperature.exp()
            total = total - weight * (target * scores.log_softmax(-1)).sum(-1).mean()
        return total


def start_from_classifier(
    projector: Projector,
    bank: Bank,
    words: WordTargets,
    embeddings: Tensor,
    gain: float = 1.0,
    floor: float = 6.0,
) -> None:
    """Let most hidden units be what the classifier knows: one noun a unit, with that noun's embedding."""
    nouns: dict[str, list[int]] = {}
    for index, kind in enumerate(bank.kinds):
        nouns.setdefault(kind.name, []).append(index)
    width = projector.linear_2.in_features
    largest = sorted(nouns, key=lambda noun: -len(nouns[noun]))[: width - 16]
    with torch.no_grad():
        projector.linear_1.weight.mul_(0.5)
        projector.linear_2.weight.mul_(0.1)
        projector.linear_1.bias.zero_()
        projector.linear_2.bias.zero_()
        for unit, noun in enumerate(largest):
            members = nouns[noun]
            scale = len(members) ** 0.25 * gain
            projector.linear_1.weight[unit] = bank.top.rows[members].mean(0) * scale
            projector.linear_1.bias[unit] = bank.top.offsets[members].mean() * scale - floor * gain
            tokens = words.tokens(noun)
            if tokens:
                projector.linear_2.weight[:, unit] = 0.8 * F.normalize(embeddings[tokens].mean(0), dim=0)
