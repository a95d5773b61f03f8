"""Several answers after one prompt: how likely each is, from one reading of the prompt.

The answers stand side by side behind the prompt, each at the positions that it would have alone, and a token sees the
prompt and its own answer only. Most of a pass of a small model is reading its weights, so four short answers cost
little more than one. What is short is read whole, and together with other requests (`LlamaStep.read`); what is long in
passes as long as a piece of a prompt, so that whoever is being answered waits no longer, behind the prompt in the
cache. Either way every bit of the result hangs on the request alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class ContinuationPart:
    """Tokens `start` to `stop` of one continuation."""

    continuation: int
    start: int
    stop: int


@dataclass(frozen=True)
class Pass:
    """Parts of several continuations from their beginnings, or the next part of one that is long."""

    parts: tuple[ContinuationPart, ...]
    tokens: list[int]

    @property
    def behind(self) -> int:
        """Tokens of the continuation that are there already."""
        return self.parts[0].start if self.parts else 0

    @property
    def offsets(self) -> list[int]:
        """Of each token, how far it is from the end of the prompt."""
        return [offset for part in self.parts for offset in range(part.start, part.stop)]

    def mask(self, prompt: int, dtype: torch.dtype, *, with_prompt: bool = False) -> Tensor:
        """Additive, (1, 1, tokens, prompt + behind + tokens): the prompt, what is there already, its own part.

        Args:
            with_prompt: the prompt's own tokens are in the pass, before the others.
        """
        parts = [torch.ones(p.stop - p.start, p.stop - p.start).tril() for p in self.parts]
        own = torch.zeros(0, 0)
        if parts:
            own = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
        seen = torch.cat((torch.ones(len(own), prompt + self.behind), own), 1)
        if with_prompt:
            first = torch.ones(prompt, prompt).tril()
            seen = torch.cat((functional.pad(first, (0, len(own))), seen))
        hidden = ~seen.bool()
        return torch.zeros(seen.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)[None, None]


def passes_of(continuations: Sequence[Sequence[int]], most: int) -> list[Pass]:
    """All tokens but the last of each, which foretells nothing that is asked for, in passes of at most `most`."""
    passes: list[Pass] = []
    together: list[ContinuationPart] = []

    def close() -> None:
        if together:
            tokens = [t for p in together for t in continuations[p.continuation][p.start : p.stop]]
            passes.append(Pass(tuple(together), tokens))
            together.clear()

    for number, tokens in enumerate(continuations):
        length = len(tokens) - 1
        if length > most or sum(p.stop for p in together) + length > most:
            close()
        for start in range(0, length, most):
            together.append(ContinuationPart(number, start, min(start + most, length)))
            if length > most:
                close()
    close()
    return passes


class Scoring:
    """The log-probabilities of a request's continuations, as far as they are known."""

    def __init__(self, continuations: Sequence[Sequence[int]], most: int) -> None:
        self.size = sum(len(tokens) - 1 for tokens in continuations)
        """Tokens to be read behind the prompt."""
        self._continuations = continuations
        self._tokens = [torch.tensor(tokens) for tokens in continuations]
        self._passes = passes_of(continuations, most)
        self.logprobs: list[list[float]] = [[] for _ in continuations]

    def begin(self, logits: Tensor) -> None:
        """Take what the prompt's last token foretells, (vocabulary,)."""
        first = logits.float().log_softmax(-1)
        for tokens, known in zip(self._tokens, self.logprobs, strict=True):
            known.append(float(first[int(tokens[0])]))

    @property
    def next(self) -> Pass | None:
        return self._passes[0] if self._passes else None

    @property
    def whole(self) -> Pass:
        """All of it as one pass."""
        parts = [
            ContinuationPart(i, 0, len(tokens) - 1)
            for i, tokens in enumerate(self._continuations)
            if len(tokens) > 1
        ]
        return Pass(tuple(parts), [t for tokens in self._continuations for t in tokens[:-1]])

    def take_whole(self, logits: Tensor) -> None:
        """Take what the prompt's last token and then those of `whole` foretell."""
        self.begin(logits[0])
        self._passes = [self.whole] if self.size else []
        if self._passes:
            self.take(logits[1:])

    def take(self, logits: Tensor) -> None:
        """Take what the tokens of the next pass foretell, (tokens, vocabulary)."""
        done, start = self._passes.pop(0), 0
        for part in done.parts:
            scores = logits[start : start + part.stop - part.start].float().log_softmax(-1)
            told = self._tokens[part.continuation][part.start + 1 : part.stop + 1, None].to(scores.device)
            self.logprobs[part.continuation] += scores.gather(-1, told)[:, 0].tolist()
            start += part.stop - part.start
