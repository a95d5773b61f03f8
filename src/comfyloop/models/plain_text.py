"""Keeps a person's text as plain text, whatever it contains; only the chat template produces control tokens.

A tokenizer finds its control tokens (`<|im_end|>`, `<image>`, ...) by their spelling, wherever they stand in a
rendered conversation. Before a person's text goes into the template, each such spelling in it is broken by a mark
that no text holds (`Speller.quote`); then a copy of the tokenizer that knows the mark as a token is used, and the
mark's token is removed from its output. The result is the tokens of plain text; texts without such spellings are
not affected. Nothing here imports torch.
"""

from __future__ import annotations

import copy
import functools
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

MARK = f"\ufdd0{secrets.token_hex(8)}\ufdd1"
"""Two characters that Unicode keeps out of texts, around what nobody can guess."""

_STAND_INS = (
    "<|placeholder|>",
    "<placeholder>",
    "<|image_placeholder|>",
    "<|video_placeholder|>",
    "<|audio_placeholder|>",
    "<|kimi_k25_video_placeholder|>",
)
"""What processors put for image tokens on the way, and replace wherever they find it."""


class Speller:
    """Knows the control tokens of one model.

    Args:
        processor: The model's processor (image-text models) or tokenizer.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        controls = {spelling for spelling in _controls(processor, self._tokenizer) if len(spelling) > 1}
        longest_first = sorted(controls, key=lambda spelling: (-len(spelling), spelling))
        firsts = "".join(sorted({re.escape(spelling[0]) for spelling in controls}))
        self._longest = len(longest_first[0]) if longest_first else 0
        self._pattern = (
            re.compile(f"(?=[{firsts}])(?:{'|'.join(map(re.escape, longest_first))})") if controls else None
        )

    def quote(self, text: str) -> str:
        """The text with every spelling of a control token broken by marks; most texts as they are."""
        if self._pattern is None:
            return text
        broken = text
        while (
            next_text := self._pattern.sub(_break, broken)
        ) != broken:  # what is left may spell another one
            broken = next_text
        return broken

    def quote_parts(self, parts: Sequence[str | None]) -> list[str | None]:
        """The parts of one message, None where an image stands: no text spells a control token, be it together
        with its neighbour."""
        quoted: list[str | None] = []
        before = ""  # what the last text ends with
        for part in parts:
            if part is None:
                before = ""
                quoted.append(None)
                continue
            text = self.quote(part)
            seam = before + text[: self._longest]
            if before and self.quote(seam) != seam:
                text = MARK + text
            before = (before + text)[-self._longest :]
            quoted.append(text)
        return quoted

    def tokens_of(self, text: str, special: bool) -> list[int]:
        """Token ids of a rendered conversation.

        Args:
            special: Whether the tokenizer is to put its own tokens around it.
        """
        if MARK not in text:
            ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
            return ids
        tokenizer, mark = self._marked
        return [id for id in tokenizer(text, add_special_tokens=special)["input_ids"] if id != mark]

    def fields_of(self, text: str, pictures: list[Any], special: bool) -> dict[str, Any]:
        """What the processor makes of a rendered conversation and its images, as tensors: `input_ids` [1, L], ..."""
        arguments = {
            "text": [text],
            "images": [pictures],
            "return_tensors": "pt",
            "add_special_tokens": special,
        }
        if MARK not in text:
            return dict(self._processor(**arguments))
        tokenizer, mark = self._marked
        processor = copy.copy(self._processor)
        processor.tokenizer = tokenizer
        fields = dict(processor(**arguments))
        ids = fields["input_ids"]
        is_text = ids[0] != mark
        return {
            name: value[:, is_text] if getattr(value, "shape", None) == ids.shape else value
            for name, value in fields.items()
        }

    @functools.cached_property
    def _marked(self) -> tuple[Any, int]:
        """A tokenizer that knows the mark, and the mark's token id."""
        from tokenizers import AddedToken

        tokenizer = copy.deepcopy(self._tokenizer)
        tokenizer.add_tokens([AddedToken(MARK, special=True, normalized=False)])
        return tokenizer, tokenizer.convert_tokens_to_ids(MARK)


def _break(match: re.Match[str]) -> str:
    spelling = match.group()
    return spelling[:1] + MARK + spelling[1:]


def _controls(processor: Any, tokenizer: Any) -> Iterable[str]:
    from tokenizers import AddedToken

    yield from tokenizer.all_special_tokens
    yield from (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    for holder in (
        processor,
        tokenizer,
    ):  # image_token, video_token, boi_token, ...: not every model marks them
        for name, value in vars(holder).items():
            if name.endswith(("_token", "_tag")) and isinstance(value, str | AddedToken):
                yield str(value)
    if processor is not tokenizer:
        yield from _STAND_INS
