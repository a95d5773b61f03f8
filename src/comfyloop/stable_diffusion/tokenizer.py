"""CLIP's tokenizer, which a single-file checkpoint does not carry and every Stable Diffusion model needs.

The merges are those of OpenAI's CLIP (MIT licence), the vocabulary follows from them.
"""

import gzip
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
MERGES = Path(__file__).with_name("clip_merges.txt.gz")


@cache
def byte_letters() -> dict[int, str]:
    """A printable letter for each of the 256 bytes, in the vocabulary's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}


def merges() -> list[tuple[str, str]]:
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    return [(left, right) for left, right in (line.split(" ") for line in lines)]


def vocabulary() -> list[str]:
    """The 49,408 tokens; a token's place in the list is its id."""
    letters = list(byte_letters().values())
    pieces = [left + right for left, right in merges()]
    return [*letters, *(letter + END_OF_WORD for letter in letters), *pieces, START, END]


def load(pad_token: str = END) -> "CLIPTokenizer":
    """The tokenizer as transformers' class; SDXL's second text encoder pads with `"!"`."""
    from transformers import CLIPTokenizer

    ids = {token: i for i, token in enumerate(vocabulary())}
    pairs = [(left, right) for left, right in merges()]
    return CLIPTokenizer(vocab=ids, merges=pairs, pad_token=pad_token, model_max_length=77)
