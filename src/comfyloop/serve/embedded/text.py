"""Tokens become text piece by piece: never half a character, never a part of a stop string."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not (yet) a character


_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
"""Bytes that byte-level vocabularies write as the character of that number; the others, in order, from U+0100 on."""
_UNPRINTED = sorted(set(range(0x100)) - set(_PRINTED))
_BYTES = {chr(n): n for n in _PRINTED} | {chr(0x100 + n): byte for n, byte in enumerate(_UNPRINTED)}
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def bytes_of(text: str, piece: str) -> bytes:
    """The bytes of a token, which need not be whole characters.

    Args:
        text: What it is decoded to, alone.
        piece: How the vocabulary writes it: by bytes as GPT-2's does, or `<0xF0>` for a byte as SentencePiece's.
    """
    if REPLACEMENT not in text:
        return text.encode()
    if single := _FALLBACK.fullmatch(piece):
        return bytes.fromhex(single[1])
    if all(char in _BYTES for char in piece):
        return bytes(_BYTES[char] for char in piece)
    return text.encode()


class TextStream:
    """The text of an answer as it grows.

    Args:
        decode: Token ids -> text, without special tokens.
        stop: The answer ends before the first of these strings.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._start = 0  # decoding starts here: far enough back for the spacing of the next token
        self._read = 0  # tokens before this have been turned into text
        self._held = ""  # text that may turn out to be the beginning of a stop string
        self.stopped: bool = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now certain, often none. Sets `stopped` at a stop string."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._read])
        now = self._decode(self._ids[self._start :])
        if now.endswith(REPLACEMENT) or len(now) <= len(before):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """The text that was held back. Bytes that never became a character are dropped."""
        if self.stopped:
            return ""
        rest = self._decode(self._ids[self._start :])[
            len(self._decode(self._ids[self._start : self._read])) :
        ]
        text = self._release(rest.rstrip(REPLACEMENT)) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        text = self._held + text
        found = [(at, s) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[0]]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep] if keep else text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
