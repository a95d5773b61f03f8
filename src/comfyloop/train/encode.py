"""A row becomes token ids, the positions of its answer, and what the model's image processor makes of its
images.

The answer is found from the model's own chat template: the conversation is rendered up to the answer with
`add_generation_prompt`, and whole; the first must begin the second, token by token, and what remains is
what the model has to write. It ends with the first token on which generation stops, because nothing after
it is ever written by the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from comfyloop.errors import ModelError
from comfyloop.train.pictures import open_picture
from comfyloop.train.rows import IMAGE_TAG, Row, Turn, UnusableRow


@dataclass(frozen=True, eq=False)
class Example:
    """One row as tensors. L tokens, of which A are answer tokens."""

    id: str
    line: int
    input_ids: Tensor  # [L] int64
    answer: Tensor  # [A] int64: positions of the answer's tokens, ascending, each >= 1
    images: dict[str, Tensor] = field(
        default_factory=dict
    )  # what the image processor gives: pixel_values, ...
    token_kinds: dict[str, Tensor] = field(
        default_factory=dict
    )  # per-token extras, [L]: mm_token_type_ids, ...

    def __len__(self) -> int:
        return self.input_ids.numel()


class Encoder:
    """Rows to examples for one model.

    Args:
        processor: The model's processor (image-text models) or tokenizer.
        sees_images: Whether the model takes images.
        image_token_id: The token that stands for image features, None where there is none.
        stop_ids: Token ids on which the model stops writing.
        max_length: Most tokens of a sample.
    """

    def __init__(
        self,
        processor: Any,
        *,
        sees_images: bool,
        image_token_id: int | None,
        stop_ids: frozenset[int],
        max_length: int,
        max_pixels: int,
        max_image_pixels: int,
        train_on: str = "last",
    ) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer if sees_images else processor
        self.sees_images = sees_images
        self.image_token_id = image_token_id
        self.stop_ids = stop_ids
        self.max_length = max_length
        self.max_pixels = max_pixels
        self.max_image_pixels = max_image_pixels
        self.train_on = train_on
        if not getattr(processor, "chat_template", None) and not getattr(
            self.tokenizer, "chat_template", None
        ):
            raise ModelError(
                "The model has no chat template, so it is not known how a conversation is written for it.",
                "Use the instruct or chat variant of the model.",
            )

    def encode(self, row: Row) -> Example:
        """Raises UnusableRow with the reason when the row cannot be trained on with this model."""
        if row.images and not self.sees_images:
            raise UnusableRow("it has images, but the model takes text only")
        text = self._render(row.turns, prompt=False)
        ids = self._tokenize(text)
        if not row.images and self.image_token_id is not None and self.image_token_id in ids:
            raise UnusableRow("its text contains the model's image token, but it has no image")
        pictures = [open_picture(p, self.max_pixels, self.max_image_pixels) for p in row.images]
        fields = self._with_images(text, pictures) if pictures else {}
        input_ids = fields.pop("input_ids") if pictures else torch.tensor(ids, dtype=torch.int64)
        positions: list[int] = []
        for end, turn in enumerate(row.turns, start=1):
            if turn.role == "assistant" and (self.train_on == "all" or end == len(row.turns)):
                start, stop, length = self._answer_span(row.turns[:end], ids)
                if pictures:
                    whole = end == len(row.turns)
                    upto = input_ids if whole else self._up_to(row.turns[:end], pictures)
                    moved = _moved_by_images(upto, input_ids, ids[start:length], length)
                    start, stop = start + moved, stop + moved
                positions.extend(range(start, stop))
        if input_ids.numel() > self.max_length:
            raise UnusableRow(
                f"it has {input_ids.numel()} tokens{' with its images' * bool(pictures)}, "
                f"more than the {self.max_length} that max_length and the model's positions allow"
            )
        kinds = {k: v[0] for k, v in fields.items() if v.dim() == 2 and v.shape == (1, input_ids.numel())}
        images = {k: v for k, v in fields.items() if k not in kinds}
        answer = torch.tensor(positions, dtype=torch.int64)
        return Example(row.id, row.line, input_ids, answer, images, kinds)

    def with_answer(self, row: Row, example: Example, answer: str) -> Example:
        """The same conversation with another answer at its end. Images are shared, not opened again.

        Args:
            row: A row whose last answer is all that is learnt of it.
            example: What `encode` made of it.

        Raises:
            UnusableRow: It cannot be trained on, such as when it is too long.
        """
        turns = (*row.turns[:-1], Turn("assistant", answer))
        ids = self._tokenize(self._render(turns, prompt=False))
        start, stop, _ = self._answer_span(turns, ids)
        first = int(example.answer[0])
        tail = torch.tensor(ids[start:], dtype=torch.int64)
        if self.image_token_id is not None and bool((tail == self.image_token_id).any()):
            raise UnusableRow("it contains the model's image token")
        if not row.images and not torch.equal(
            example.input_ids[:first], torch.tensor(ids[:start], dtype=torch.int64)
        ):
            raise UnusableRow("the model's chat template writes the conversation before it differently")
        if first + len(tail) > self.max_length:
            raise UnusableRow(
                f"with it the sample has {first + len(tail)} tokens, "
                f"more than the {self.max_length} that max_length and the model's positions allow"
            )
        return Example(
            row.id,
            row.line,
            torch.cat([example.input_ids[:first], tail]),
            torch.arange(first, first + stop - start),
            example.images,
            # the kinds of an answer's tokens are those of text, 0
            {name: nn.functional.pad(v[:first], (0, len(tail))) for name, v in example.token_kinds.items()},
        )

    def _render(self, turns: Sequence[Turn], prompt: bool) -> str:
        """The conversation as the template writes it; with `prompt`, up to where the assistant begins."""
        messages = [{"role": t.role, "content": self._content(t)} for t in turns]
        try:
            rendered: str = self.processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a template raises what it likes: roles that do not alternate, ...
            raise UnusableRow(f"the model's chat template refuses it ({error})") from None
        return rendered

    def _content(self, turn: Turn) -> str | list[dict[str, str]]:
        if not self.sees_images:
            return turn.content
        parts: list[dict[str, str]] = []
        for position, text in enumerate(turn.content.split(IMAGE_TAG)):
            if position:
                parts.append({"type": "image"})
            if text:
                parts.append({"type": "text", "text": text})
        return parts

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=self._adds_special_tokens(text))["input_ids"]
        return ids

    def _adds_special_tokens(self, text: str) -> bool:
        """As `apply_chat_template(tokenize=True)`: a tokenizer never, a processor unless they are there."""
        bos = self.tokenizer.bos_token
        return self.sees_images and not (bos is not None and text.startswith(bos))

    def _answer_span(self, turns: Sequence[Turn], ids: list[int]) -> tuple[int, int, int]:
        """Where in `ids` the last of `turns` is: first token, one past its stop token, one past its turn."""
        prompt = self._tokenize(self._render(turns[:-1], prompt=True))
        upto = self._tokenize(self._render(turns, prompt=False))
        if ids[: len(prompt)] != prompt or ids[: len(upto)] != upto:
            raise UnusableRow(
                "the model's chat template writes the conversation before an answer differently once the "
                "answer is there, so the answer's tokens cannot be told apart"
                + (" (train_on = last may work)" if self.train_on == "all" else "")
            )
        start, end = len(prompt), len(upto)
        if not self.tokenizer.decode(ids[start:end], skip_special_tokens=True).strip():
            raise UnusableRow("no token of its answer is left to learn")
        while end > start + 1 and ids[end - 1] not in self.stop_ids and self._is_blank(ids[end - 1]):
            end -= 1  # the newline that a template writes after the stop token
        if ids[end - 1] not in self.stop_ids:
            end = len(upto)  # a template without a stop token: keep what it wrote
        return start, end, len(upto)

    def _is_blank(self, token: int) -> bool:
        return not self.tokenizer.decode([token]).strip()

    def _with_images(self, text: str, pictures: list[Image.Image]) -> dict[str, Tensor]:
        """What the processor makes of a text and its images; `input_ids` [L] has every image token."""
        try:
            encoded = self.processor(
                text=[text],
                images=pictures,
                return_tensors="pt",
                add_special_tokens=self._adds_special_tokens(text),
            )
        except (ValueError, IndexError, StopIteration) as error:
            raise UnusableRow(f"the model's processor refuses its images ({error})") from None
        fields = dict(encoded)
        fields.pop("attention_mask", None)
        fields["input_ids"] = fields["input_ids"][0]
        if self.image_token_id is None or not bool((fields["input_ids"] == self.image_token_id).any()):
            raise UnusableRow(
                f"its {len(pictures)} image(s) left no image token in the text that the chat template made"
            )
        return fields

    def _up_to(self, turns: Sequence[Turn], pictures: list[Image.Image]) -> Tensor:
        """Token ids [l] of the first turns of a conversation with the images that stand in them."""
        text = self._render(turns, prompt=False)
        seen = sum(turn.content.count(IMAGE_TAG) for turn in turns)
        if seen == 0:
            return torch.tensor(self._tokenize(text), dtype=torch.int64)
        return self._with_images(text, pictures[:seen])["input_ids"]


def _moved_by_images(upto: Tensor, input_ids: Tensor, tail: list[int], length: int) -> int:
    """By how many tokens the images before an assistant turn push it back.

    Args:
        upto: [l] the conversation up to and with that turn, images as many tokens.
        input_ids: [L] the whole conversation.
        tail: The turn's tokens from the answer's first to the turn's last; no image is among them.
        length: Tokens up to and with that turn when every image is one token.
    """
    if upto[-len(tail) :].tolist() != tail or not torch.equal(input_ids[: upto.numel()], upto):
        raise UnusableRow("the model's processor changes its text beyond putting in image tokens")
    return upto.numel() - length
