"""Converts tokenizer.json to llama.cpp's vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType

from comfyloop.errors import InvalidInput

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPLITS = {_WORDS % "": "qwen2", _WORDS % "{1,3}": "llama-bpe"}
"""By what a text is split with before pairs are merged, llama.cpp's name for it."""


def add(folder: Path, size: int, writer: GGUFWriter) -> None:
    """Write the tokenizer of a model's folder.

    Args:
        size: Rows of the embedding; what the tokenizer lacks of it is filled up.

    Raises:
        InvalidInput: llama.cpp would split texts otherwise than this tokenizer does.
    """
    tokenizer = _tokenizer_of(folder)
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        raise InvalidInput(f"The tokenizer of {folder.name} is no BPE, so it is not written as GGUF.")
    tokens: dict[int, str] = {number: token for token, number in model["vocab"].items()}
    added_tokens = {one["id"]: one for one in tokenizer.get("added_tokens") or ()}
    tokens |= {number: one["content"] for number, one in added_tokens.items()}
    if max(tokens) >= size:
        raise InvalidInput(
            f"The tokenizer of {folder.name} has {max(tokens) + 1} tokens, its embedding {size}."
        )
    of_bytes = bool(model.get("byte_fallback"))  # SentencePiece's, as in Llama 2 and Mistral

    def kind(number: int) -> TokenType:
        if number not in tokens:
            return TokenType.UNUSED
        if number in added_tokens:
            if tokens[number] == model.get("unk_token"):
                return TokenType.UNKNOWN
            return TokenType.CONTROL if added_tokens[number]["special"] else TokenType.USER_DEFINED
        return TokenType.BYTE if of_bytes and _is_byte(tokens[number]) else TokenType.NORMAL

    special = SpecialVocab(folder, load_merges=not of_bytes, n_vocab=size)
    special.add_special_token = {"bos": False, **special.add_special_token}
    if of_bytes:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(model, tokens, size))
        writer.add_add_space_prefix(_prefixes(tokenizer))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split_of(folder))
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([kind(number) for number in range(size)])
    special.add_to_gguf(writer, quiet=True)


def split_of(folder: Path) -> str:
    """llama.cpp's name for a tokenizer's pre-tokenization.

    Raises:
        InvalidInput: It has none for it, as far as is known here.
    """
    before = _tokenizer_of(folder).get("pre_tokenizer") or {}
    match before.get("pretokenizers") or [before]:
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return "gpt-2"
        case [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}]:
            return "smollm"
        case [
            {"type": "Split", "pattern": {"Regex": pattern}},
            {"type": "ByteLevel", "use_regex": False},
        ] if pattern in SPLITS:
            return SPLITS[pattern]
    raise InvalidInput(
        f"The tokenizer of {folder.name} splits texts in a way that has no known name in llama.cpp.",
        "Use --to merged, then llama.cpp's own converter.",
    )


def _tokenizer_of(folder: Path) -> dict[str, Any]:
    try:
        tokenizer: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"The tokenizer of {folder.name} cannot be read: {error}.",
            "Save it with transformers: tokenizer.json.",
        ) from None
    return tokenizer


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(model: dict[str, Any], tokens: dict[int, str], size: int) -> list[float]:
    """llama.cpp merges the pair with the best score first: the rank of its merge says which."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), rank)
    return [-float(ranks.get(tokens.get(number, ""), len(ranks))) for number in range(size)]


def _prefixes(tokenizer: dict[str, Any]) -> bool:
    """Whether a space is put before a text."""
    normalizer, before = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    steps = [*(normalizer.get("normalizers") or [normalizer]), *(before.get("pretokenizers") or [before])]
    return any(
        step.get("type") == "Prepend"
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
