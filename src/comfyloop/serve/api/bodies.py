"""What a JSON body must be before it is parsed: whole text, and no more values than are parsed in a moment.

The parser holds the interpreter until it is done, so that a body of nothing but brackets would hold up everyone.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import re
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from comfyloop.errors import InvalidInput, TooLarge

PIECE = 2**18
"""Bytes that are looked at before others have their turn."""
LONG = 2**12
"""Bytes of a text that is read by itself, apart from the values around it."""
_HIGH = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
_HALF = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


class Values:
    """Counts the values of a JSON text as its pieces come; text in quotes does not count.

    Raises:
        TooLarge: From `add`, when there are more than `most`.
    """

    def __init__(self, most: int) -> None:
        self.most, self.found = most, 0
        self._quoted = False
        self._rest = b""  # a backslash at the end of the last piece

    def add(self, piece: bytes) -> None:
        piece = self._rest + piece
        self._rest = b"\\" if (len(piece) - len(piece.rstrip(b"\\"))) % 2 else b""
        piece = piece.removesuffix(self._rest) if self._rest else piece
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        plain = b"".join(parts[1 if self._quoted else 0 :: 2])
        self._quoted ^= len(parts) % 2 == 0
        self.found += plain.count(b"[") + plain.count(b"{") + plain.count(b",")
        if self.found > self.most:
            raise TooLarge(
                f"The JSON holds more than {self.most} values.",
                "Send it in parts, or raise the setting max_json_values.",
            )


class Characters:
    """Refuses what is no text in UTF-8, and text with half a character in it: no disk or engine can take it.

    It is told the pieces as they come, since all of a large body at once would hold up everyone.

    Raises:
        InvalidInput: From `add`, with the reason.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._seen = 0
        self._rest = b""  # an escape that goes on in the next piece

    def add(self, piece: bytes, *, last: bool = False) -> None:
        try:
            self._decoder.decode(piece, last)
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"The body is not UTF-8 (byte {self._seen + error.start}).",
                "Send JSON in UTF-8, with whole characters.",
            ) from None
        self._seen += len(piece)
        if b"\0" in piece:
            raise InvalidInput("The body holds a zero byte.", "Send JSON in UTF-8, not in UTF-16.")
        if self._rest or b"\\" in piece:
            self._check_escapes(self._rest + piece, last)

    def _check_escapes(self, piece: bytes, last: bool) -> None:
        plain = piece.replace(b"\\\\", b"__")
        begun = plain.rfind(b"\\")
        self._rest = b""
        if not last and begun >= 0 and (len(plain) - begun < 6 or _HIGH.match(plain, begun)):
            if begun >= 6 and _HIGH.match(plain, begun - 6):  # and its other half, which is cut
                begun -= 6
            plain, self._rest = plain[:begun], piece[begun:]
        if b"\\u" not in plain:
            return
        if _HALF.search(plain):
            raise InvalidInput(
                "The text holds half a character (a lone UTF-16 surrogate).", "Send whole Unicode characters."
            )
        if b"\\u0000" in plain:
            raise InvalidInput(
                "The text holds the character NUL, which databases do not take.", "Leave it out."
            )


class LargeBodies(APIRoute):
    """A route whose large bodies are parsed in a thread, and so that others have their turn meanwhile."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def parsed(request: Request) -> Response:
            if len(body := await request.body()) > PIECE:
                with contextlib.suppress(ValueError, RecursionError):  # told of by whoever asks for it
                    request._json = await run_in_threadpool(parse, body)
            return await handle(request)

        return parsed


def parse(body: bytes) -> Any:
    """What `json.loads` makes of a body. Its parser holds the interpreter until it is done, so long texts are taken out
    before, read a piece at a time, and put back; a NUL, which no body that was checked has, stands where they were.

    Raises:
        ValueError, RecursionError: As `json.loads`.
    """
    if b"\\u0000" in body or not _may_have_long_texts(body):
        return json.loads(body)
    texts: list[str] = []
    rest: list[bytes] = []
    at = look = 0
    while (begin := body.find(b'"', look)) >= 0 and (end := _quote(body, begin + 1)) >= 0:
        look = end + 1
        if end - begin > LONG:
            rest += (body[at:begin], b'"\\u0000%d"' % len(texts))
            texts.append("".join(map(_text, _pieces(body[begin + 1 : end]))))
            at = look
    value = json.loads(b"".join([*rest, body[at:]]))
    return _put_back(value, texts) if texts else value


def _may_have_long_texts(body: bytes) -> bool:
    """Whether so many bytes as a long text has stand between two quotes, or behind the last one."""
    begin = 0
    while begin + LONG <= len(body):
        last = body.rfind(b'"', begin, begin + LONG)
        if last < 0:
            return True
        begin = last + 1
    return False


def _quote(body: bytes, at: int) -> int:
    """Where the text ends in which `at` is; -1 where it does not."""
    begin = at
    while (end := body.find(b'"', at)) >= 0 and _is_escaped(body, begin, end):
        at = end + 1
    return end


def _is_escaped(text: bytes, begin: int, at: int) -> bool:
    """Whether an odd number of backslashes stands before a place, of which none is before `begin`."""
    first = at
    while first > begin:
        block = text[max(begin, first - LONG) : first]
        run = len(block) - len(block.rstrip(b"\\"))
        first -= run
        if run < len(block):
            break
    return (at - first) % 2 == 1


def _pieces(text: bytes) -> Iterator[bytes]:
    """A text in pieces that end between its characters: within no bytes of one, no escape and no pair of escapes."""
    begin = 0
    while begin < len(text):
        end = begin + PIECE
        while end < len(text) and text[end] & 0xC0 == 0x80:
            end += 1
        if end < len(text):
            escape = text.rfind(b"\\", max(begin, end - 6), end)
            if escape >= begin and not _is_escaped(text, begin, escape):
                after = escape + (6 if text[escape + 1] == ord("u") else 2)
                end = max(end, after + (6 if after >= end and _HIGH.match(text, escape) else 0))
        yield text[begin:end]
        begin = end


def _text(piece: bytes) -> str:
    found: str = json.loads(b'"' + piece + b'"')
    return found


def _put_back(value: Any, texts: list[str]) -> Any:
    if isinstance(value, str):
        return texts[int(value[1:])] if value.startswith("\0") else value
    if isinstance(value, list):
        return [_put_back(item, texts) for item in value]
    if isinstance(value, dict):
        return {_put_back(key, texts): _put_back(item, texts) for key, item in value.items()}
    return value


def check(body: bytes) -> None:
    """All of a short body at once. Raises as `Characters`."""
    Characters().add(body, last=True)


async def check_in_pieces(body: bytes, most_values: int) -> None:
    """A body that has come whole; others have their turn between its pieces.

    Raises:
        InvalidInput, TooLarge: As `Characters` and `Values`.
    """
    values, characters = Values(most_values), Characters()
    for begin in range(0, max(1, len(body)), PIECE):
        piece = body[begin : begin + PIECE]
        values.add(piece)
        characters.add(piece, last=begin + PIECE >= len(body))
        await asyncio.sleep(0)
