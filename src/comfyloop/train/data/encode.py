"""Encodes a row as token ids, the positions of its answer, and the output of the model's image processor.

The answer is found from the model's own chat template: the conversation is rendered up to the answer with
`add_generation_prompt`, and whole; the first must be a prefix of the second, token by token, and the rest is what
the model has to write. It ends with the first token on which generation stops, because nothing after it is ever
written by the model; where a template writes none after the last answer (LLaVA 1.5's), the tokenizer's own is put
there, or the model would never learn to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from comfyloop.errors import DataError, ModelError
from comfyloop.formats import Picture, Row, Turn, UnusableRow
from comfyloop.media.decoding import BadPicture, read_picture
from comfyloop.modalities import slots
from comfyloop.models.plain_text import Speller
from comfyloop.models.processors import fields_of, takes_parts, tokens_of
from comfyloop.train.data.examples import Example, Pixels, Room, digest_of
from comfyloop.train.data.positions import Positions

PIXELS_KEPT = 2**29
"""Bytes of pixels that stay in memory from reading the data to looking at the images; more are made twice."""


class Encoder:
    """Rows to examples for one model.

    Args:
        processor: The model's processor (image-text models) or tokenizer.
        sees_images: Whether the model takes images.
        image_token_id: The token that stands for image features, None where there is none.
        stop_ids: Token ids on which the model stops writing.
        positions: How the model counts tokens.
        max_positions: Positions that the model was trained on, scaled ones included.
        max_length: Most tokens of a sample; 0: as many as there are positions.
    """

    def __init__(
        self,
        processor: Any,
        *,
        sees_images: bool,
        image_token_id: int | None,
        stop_ids: frozenset[int],
        positions: Positions,
        max_positions: int,
        max_length: int,
        max_pixels: int,
        max_image_pixels: int,
        train_on: str = "last",
    ) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer if sees_images else processor
        self.speller = Speller(processor)
        self.sees_images = sees_images
        self.image_token_id = image_token_id
        self.stop_ids = stop_ids
        self.positions = positions
        self.max_positions = max_positions
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
        self._room = Room(PIXELS_KEPT)
        self.takes_parts = sees_images and takes_parts(processor)

    def encode(self, row: Row) -> Example:
        """Raises UnusableRow with the reason when the row cannot be trained on with this model."""
        if row.images and not self.sees_images:
            raise UnusableRow("it has images, but the model takes text only")
        text = self._render(row.turns, prompt=False)
        ids = self._tokenize(text)
        pictures = [self._picture(path) for path in row.images]
        fields = self._with_images(text, pictures) if pictures else {}
        input_ids = fields.pop("input_ids") if pictures else torch.tensor(ids, dtype=torch.int64)
        answer: list[int] = []
        for end, turn in enumerate(row.turns, start=1):
            is_learned = turn.learn and (self.train_on == "all" or end == len(row.turns))
            if turn.role == "assistant" and is_learned:
                start, stop, length = self._answer_span(row.turns[:end], ids)
                if pictures:
                    whole = end == len(row.turns)
                    upto = input_ids if whole else self._up_to(row.turns[:end], pictures)
                    shift = _moved_by_images(upto, input_ids, ids[start:length], length)
                    start, stop = start + shift, stop + shift
                answer.extend(range(start, stop))
        kinds = {k: v[0] for k, v in fields.items() if v.dim() == 2 and v.shape == (1, input_ids.numel())}
        images = {k: v for k, v in fields.items() if k not in kinds and not _is_heavy(k)}
        pixels = self._pixels(row, text, fields, images) if pictures else None
        return self._example(row, input_ids, answer, images, kinds, pixels)

    def prompt(self, row: Row) -> dict[str, Tensor]:
        """A conversation without its answer, as inputs of the model's forward pass: `input_ids` [1, L], ...

        Raises:
            UnusableRow: An image cannot be read, or the model takes none.
        """
        if row.images and not self.sees_images:
            raise UnusableRow("it has images, but the model takes text only")
        text = self._render(row.turns, prompt=True)
        if row.images:
            return self._with_processor(text, [self._picture(path) for path in row.images])
        ids = torch.tensor([self._tokenize(text)], dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def with_answer(self, row: Row, example: Example, answer: str) -> Example:
        """The same conversation with another answer at its end. Images are shared, not opened again.

        Args:
            row: A row whose last answer is all that is learnt of it.
            example: What `encode` made of it.

        Raises:
            UnusableRow: It cannot be trained on, such as when it is too long.
        """
        turns = (*row.turns[:-1], Turn("assistant", (answer,)))
        ids = self._tokenize(self._render(turns, prompt=False))
        start, stop, _ = self._answer_span(turns, ids)
        first = int(example.answer[0])
        tail = torch.tensor(ids[start:], dtype=torch.int64)
        if not row.images and not torch.equal(
            example.input_ids[:first], torch.tensor(ids[:start], dtype=torch.int64)
        ):
            raise UnusableRow("the model's chat template writes the conversation before it differently")
        return self._example(
            row,
            torch.cat([example.input_ids[:first], tail]),
            list(range(first, first + stop - start)),
            example.images,
            # the kinds of an answer's tokens are those of text, 0
            {name: nn.functional.pad(v[:first], (0, len(tail))) for name, v in example.token_kinds.items()},
            example.pixels,
        )

    def continued(self, example: Example, tokens: Tensor) -> Example:
        """The same conversation with the answer that a model wrote, token by token as it did. Images are shared."""
        first = int(example.answer[0])
        input_ids = torch.cat([example.input_ids[:first], tokens])
        kinds = {
            name: nn.functional.pad(v[:first], (0, len(tokens))) for name, v in example.token_kinds.items()
        }
        return replace(
            example,
            input_ids=input_ids,
            positions=self.positions(input_ids, example.images | {k: v[None] for k, v in kinds.items()}),
            answer=torch.arange(first, len(input_ids)),
            token_kinds=kinds,
        )

    def _example(
        self,
        row: Row,
        input_ids: Tensor,
        answer: list[int],
        images: dict[str, Tensor],
        kinds: dict[str, Tensor],
        pixels: Pixels | None,
    ) -> Example:
        if self.stop_ids and int(input_ids[answer[-1]]) not in self.stop_ids:
            input_ids, kinds = self._stopped(input_ids, kinds, answer)
        positions = self.positions(input_ids, images | {k: v[None] for k, v in kinds.items()})
        seeing = [
            place
            for place, token in enumerate(input_ids.tolist())
            if pixels is not None and token == self.image_token_id
        ]
        self._check_size(input_ids.numel(), int(positions.max()) + 1, pixels is not None)
        return Example(
            row.id,
            row.line,
            input_ids,
            positions,
            torch.tensor(answer, dtype=torch.int64),
            images=images,
            pixels=pixels,
            token_kinds=kinds,
            image_tokens=len(seeing),
            image_span=(seeing[0], seeing[-1] + 1) if seeing else (0, 0),
            part=row.part,
        )

    def _pixels(self, row: Row, text: str, fields: dict[str, Tensor], images: dict[str, Tensor]) -> Pixels:
        heavy = {k: v for k, v in fields.items() if _is_heavy(k)}
        digest = digest_of(heavy | images)

        def again() -> dict[str, Tensor]:
            try:
                fresh_fields = self._with_images(text, [self._picture(path) for path in row.images])
                fresh_fields = {k: v for k, v in fresh_fields.items() if _is_heavy(k)}
            except UnusableRow:
                fresh_fields = {}
            if digest_of(fresh_fields | images) != digest:
                raise DataError(
                    f"An image of line {row.line} (sample {row.id}) is no longer what it was when the run began.",
                    "Leave the data alone while a run reads it, and start the run again.",
                )
            return fresh_fields

        return Pixels(heavy, digest, again, self._room)

    def _stopped(
        self, input_ids: Tensor, kinds: dict[str, Tensor], answer: list[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sample with a stop token appended to its answer; `answer` is extended by its position."""
        while len(answer) > 1 and self._is_blank(int(input_ids[answer[-1]])):
            answer.pop()  # the space that a template writes after an answer
        end = answer[-1] + 1
        own = self.tokenizer.eos_token_id
        stop = own if own in self.stop_ids else min(self.stop_ids)
        answer.append(end)
        return (
            torch.cat([input_ids[:end], torch.tensor([stop])]),
            {k: torch.cat([v[:end], v.new_zeros(1)]) for k, v in kinds.items()},
        )

    def _check_size(self, tokens: int, positions: int, with_images: bool) -> None:
        description = f"it has {tokens} tokens{' with its images' * with_images}"
        fewer = "lower max_pixels, " * with_images
        if self.max_length and tokens > self.max_length:
            raise UnusableRow(
                f"{description}, more than the {self.max_length} that max_length allows ({fewer}or raise max_length)"
            )
        if positions > self.max_positions:
            raise UnusableRow(
                f"{description} and reaches position {positions}, more than the {self.max_positions} that the model "
                f"was trained on ({fewer}shorten it, or set rope_scaling)"
            )

    def _render(self, turns: Sequence[Turn], prompt: bool) -> str:
        """The conversation rendered by the template; with `prompt`, up to where the assistant's turn begins."""
        messages = [{"role": t.role, "content": self._content(t)} for t in turns]
        try:
            rendered: str = self.processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a template raises what it likes: roles that do not alternate, ...
            raise UnusableRow(f"the model's chat template refuses it ({error})") from None
        return rendered

    def _content(self, turn: Turn) -> str | list[dict[str, str]]:
        parts = self.speller.quote_parts(turn.parts)
        if self.takes_parts:
            return slots(parts)
        mark = f"{self.processor.image_token}\n" if self.sees_images else ""
        return "".join(mark if part is None else part for part in parts)

    def _picture(self, path: Picture) -> Image.Image:
        try:
            return read_picture(path.read_bytes(), self.max_pixels, self.max_image_pixels)
        except FileNotFoundError:
            raise UnusableRow(f"its image {path.name} does not exist") from None
        except OSError as error:
            raise UnusableRow(f"its image {path.name} cannot be read ({error.strerror})") from None
        except BadPicture as error:
            raise UnusableRow(f"its image {path.name} {error}") from None

    def _tokenize(self, text: str) -> list[int]:
        return tokens_of(self.speller, self.tokenizer, text, self.sees_images)

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
        """The processor's output for a text and its images; `input_ids` [L] includes every image token."""
        fields = self._with_processor(text, pictures)
        fields.pop("attention_mask", None)
        fields["input_ids"] = fields["input_ids"][0]
        if self.image_token_id is None or not bool((fields["input_ids"] == self.image_token_id).any()):
            raise UnusableRow(
                f"its {len(pictures)} image(s) left no image token in the text that the chat template made"
            )
        return fields

    def _with_processor(self, text: str, pictures: list[Image.Image]) -> dict[str, Tensor]:
        try:
            return fields_of(self.speller, self.processor, text, pictures)
        except Exception as error:  # the model's own code: it raises what it likes
            reason = str(error) or type(error).__name__
            raise UnusableRow(f"the model's processor refuses its images ({reason})") from None

    def _up_to(self, turns: Sequence[Turn], pictures: list[Image.Image]) -> Tensor:
        """Token ids [l] of the first turns of a conversation, including their images."""
        text = self._render(turns, prompt=False)
        picture_count = sum(turn.pictures for turn in turns)
        if picture_count == 0:
            return torch.tensor(self._tokenize(text), dtype=torch.int64)
        return self._with_images(text, pictures[:picture_count])["input_ids"]


def _moved_by_images(upto: Tensor, input_ids: Tensor, tail: list[int], length: int) -> int:
    """By how many tokens the images before an assistant turn shift it.

    Args:
        upto: [l] the conversation up to and with that turn, images as many tokens.
        input_ids: [L] the whole conversation.
        tail: The turn's tokens from the answer's first to the turn's last; no image is among them.
        length: Tokens up to and with that turn when every image is one token.
    """
    if upto[-len(tail) :].tolist() != tail or not torch.equal(input_ids[: upto.numel()], upto):
        raise UnusableRow("the model's processor changes its text beyond putting in image tokens")
    return upto.numel() - length


def _is_heavy(name: str) -> bool:
    return name.startswith("pixel_")
