"""Answers to the data's questions, sampled from the model in training.

They are sampled for a few steps at once, so that many are generated in one batch, and stored in the run
(`sampled.jsonl`): a run that resumes in the middle of such a block uses the same answers.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList

from comfyloop.train.data.encode import Encoder
from comfyloop.train.data.examples import Example
from comfyloop.train.run.directory import RunDirectory, disk_error
from comfyloop.train.run.plan import Plan
from comfyloop.train.specs.text import DistillationSpec
from comfyloop.train.text.models import Loaded

AT_ONCE = 16
"""Answers that are written side by side."""
LONGER, LEAST = 1.5, 8
"""An answer may be so much longer than the wanted one, or have so many tokens: past that a teacher says nothing new."""

Check = Callable[[], None]


class Sampled:
    """The answers of a run by step and sample.

    Args:
        examples: What is answered, up to where the answer begins; None: not asked.
        room: Most tokens of an answer to each of them that the model has positions for.
    """

    def __init__(
        self,
        directory: RunDirectory,
        model: Loaded,
        encoder: Encoder,
        plan: Plan,
        examples: Sequence[Example | None],
        room: Sequence[int],
        options: DistillationSpec,
        fingerprint: str,
    ) -> None:
        self._file = directory.sampled
        self._model, self._encoder, self._plan = model, encoder, plan
        self._examples, self._room, self._options = examples, room, options
        self._fingerprint = fingerprint
        self._answers: dict[tuple[int, int], Tensor] = {}
        self._read()

    def of(self, step: int, check: Check) -> dict[int, Tensor]:
        """The answers that a step's samples are trained on, by index: sampled answers, generated now if the next
        block begins, or the wanted ones.

        Args:
            check: Called at every token; what it raises ends the sampling.
        """
        mine = self._own(step)
        if any((step, index) not in self._answers for index in mine):
            self._sample(step, check)
        examples = {index: self._example((step, index)) for index in self._taught(step)}
        targets = {index: example.input_ids[example.answer] for index, example in examples.items()}
        return targets | {index: self._answers[step, index] for index in mine}

    def _taught(self, step: int) -> list[int]:
        batches = self._plan.micro_batches(step)
        return [index for batch in batches for index in batch if self._examples[index] is not None]

    def _own(self, step: int) -> list[int]:
        """The samples that the student answers itself: chosen at random, reproducibly."""
        chance = random.Random(self._plan.seed * 1_000_003 + step)
        return [index for index in self._taught(step) if chance.random() < self._options.lmbda]

    def _sample(self, step: int, check: Check) -> None:
        """All answers from `step` to the end of its block."""
        steps = self._options.steps_per_generation
        end = min((step // steps + 1) * steps, self._plan.total_steps)
        places = [(number, index) for number in range(step, end) for index in self._own(number)]
        together = self._side_by_side(places)
        self._model.eval()
        why = self._model.alone
        self._model.go_alone("it writes answers")
        try:
            for number, group in enumerate(together):
                seed = ((self._plan.seed * 1_000_003 + step) * 1_000 + number) % 2**64
                most = max(self._most(index) for _, index in group)
                answers = sample(
                    self._model,
                    [self._example(place) for place in group],
                    self._encoder,
                    most=most,
                    temperature=self._options.temperature,
                    seed=seed,
                    check=check,
                )
                for place, tokens in zip(group, answers, strict=True):
                    self._answers[place] = tokens[: self._most(place[1])]
        finally:
            self._model.go_alone(why)
            self._model.train()
        self._write(places)

    def _side_by_side(self, places: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """Groups that are generated in one batch; samples with images alone, since processors batch images
        differently."""
        blind = [place for place in places if self._example(place).pixels is None]
        groups = [blind[start : start + AT_ONCE] for start in range(0, len(blind), AT_ONCE)]
        return [*groups, *([place] for place in places if self._example(place).pixels is not None)]

    def _most(self, index: int) -> int:
        """The maximum number of tokens of a sample's answer."""
        length = self._example((0, index)).answer.numel()
        return min(self._options.max_completion_length, max(LEAST, int(LONGER * length)), self._room[index])

    def _example(self, place: tuple[int, int]) -> Example:
        example = self._examples[place[1]]
        assert example is not None
        return example

    def _read(self) -> None:
        """Read the answers that were sampled before. A block is a line: an incomplete one is sampled again."""
        lines = self._file.read_text(encoding="utf-8").split("\n") if self._file.exists() else []
        for line in lines:
            with contextlib.suppress(ValueError):
                block = json.loads(line)
                if block["fingerprint"] == self._fingerprint:
                    for answer in block["answers"]:
                        place = answer["step"], answer["sample"]
                        self._answers[place] = torch.tensor(answer["tokens"], dtype=torch.int64)

    def _write(self, places: Sequence[tuple[int, int]]) -> None:
        answers: list[dict[str, Any]] = []
        for step, index in places:
            tokens = self._answers[step, index]
            text = self._encoder.tokenizer.decode(tokens, skip_special_tokens=True)
            id = self._example((step, index)).id
            answers.append({"step": step, "sample": index, "id": id, "text": text, "tokens": tokens.tolist()})
        block = {"fingerprint": self._fingerprint, "answers": answers}
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(
                    "\n" + json.dumps(block, ensure_ascii=False)
                )  # the new line first: it ends a torn one
        except OSError as error:
            raise disk_error(self._file, error) from error


class _Checking:
    """A stopping criterion of transformers' that never stops, but may raise."""

    def __init__(self, check: Check) -> None:
        self._check = check

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self._check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.no_grad()
def sample(
    model: Loaded,
    examples: Sequence[Example],
    encoder: Encoder,
    *,
    most: int,
    temperature: float,
    seed: int,
    check: Check,
) -> list[Tensor]:
    """An answer to each conversation, [n] token ids with the one on which the model stopped, if it did.

    Args:
        examples: One with images, or several without.
        temperature: 0: the likeliest token each time.
    """
    stop = sorted(encoder.stop_ids)
    prompts = [example.input_ids[: int(example.answer[0])] for example in examples]
    longest = max(map(len, prompts))
    pad = encoder.tokenizer.pad_token_id
    pad = pad if pad is not None else stop[0] if stop else 0
    ids = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    attention_mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        attention_mask[row, longest - len(prompt) :] = 1
    fields = {"input_ids": ids, "attention_mask": attention_mask}
    if examples[0].pixels is not None:
        fields |= {name: kinds[None, :longest] for name, kinds in examples[0].token_kinds.items()}
        fields |= {
            name: value.to(model.dtype) if value.is_floating_point() else value
            for name, value in examples[0].seen().items()
        }
    # as the model is, whatever it is served with
    chance = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    plain = GenerationConfig(
        max_new_tokens=most,
        repetition_penalty=1.0,
        suppress_tokens=None if encoder.image_token_id is None else [encoder.image_token_id],
        **chance,
        eos_token_id=stop or None,
        pad_token_id=pad,
        bos_token_id=encoder.tokenizer.bos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sequences = model.whole.generate(
            **{name: value.to(model.device) for name, value in fields.items()},
            generation_config=plain,
            stopping_criteria=StoppingCriteriaList([_Checking(check)]),
        )
    return [_until(answer, encoder.stop_ids) for answer in sequences[:, longest:].cpu()]


def _until(tokens: Tensor, stop_ids: frozenset[int]) -> Tensor:
    """Up to the first token on which the model stops, and with it."""
    for place, token in enumerate(tokens.tolist()):
        if token in stop_ids:
            return tokens[: place + 1]
    return tokens
