"""What a JSON body must be before it is parsed: whole text, and no more values than are parsed in a moment.

The parser holds the interpreter until it is done, so that a body of nothing but brackets would hold up everyone.
"""

from __future__ import annotations

import re

from comfyloop.errors import InvalidInput, TooLarge

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


def check(body: bytes) -> None:
    """Refuse what is no text in UTF-8, and text with half a character in it: no disk or engine can take it.

    Raises:
        InvalidInput: With the reason.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"The body is not UTF-8 (byte {error.start}).", "Send JSON in UTF-8, with whole characters."
        ) from None
    if b"\0" in body:
        raise InvalidInput("The body holds a zero byte.", "Send JSON in UTF-8, not in UTF-16.")
    lower = body if b"\\u" in body else b""
    if lower and _HALF.search(lower.replace(b"\\\\", b"__")):
        raise InvalidInput(
            "The text holds half a character (a lone UTF-16 surrogate).", "Send whole Unicode characters."
        )
    if lower and b"\\u0000" in lower.replace(b"\\\\", b"__"):
        raise InvalidInput("The text holds the character NUL, which databases do not take.", "Leave it out.")
