"""Describes what is wrong with received values, in sentences about these values.

pydantic reports its own types and every alternative that it tried; people are told about the fields that they
wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

_MUST_BE = {
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a JSON object",
    "model_type": "a JSON object",
    "model_attributes_type": "a JSON object",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_SIZES = {
    "too_short": ("min_length", "at least", "item"),
    "too_long": ("max_length", "at most", "item"),
    "string_too_short": ("min_length", "at least", "character"),
    "string_too_long": ("max_length", "at most", "character"),
}
_FIRST = "the first of them a letter or a digit"
_SIGNED = f"letters, digits, blanks and '.', '_', '@', '-', {_FIRST}"
_WRITTEN = {
    r"^[a-z0-9][a-z0-9._-]{0,62}$": f"1 to 63 of a to z, 0 to 9, '.', '_' and '-', {_FIRST}",
    r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$": f"1 to 128 of A to Z, a to z, 0 to 9, '.', '_', ':' and '-', {_FIRST}",
    r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$": f"1 to 128 of A to Z, a to z, 0 to 9, '.', '_' and '-', {_FIRST}",
    r"^[^\x00-\x1f\x7f]+$": "one line of text, without control characters",
    r"^[^\x00-\x1f\x7f]*$": "one line of text, without control characters",
    r"^[0-9a-f]{64}$": "a SHA-256: 64 of 0 to 9 and a to f",
    r"^([0-9a-f]{64})?$": "empty or a SHA-256: 64 of 0 to 9 and a to f",
    r"^((linear|dynamic|yarn):\d+(\.\d+)?)?$": "empty, or linear, dynamic or yarn and how many times, as yarn:4",
    r"^([A-Za-z0-9][A-Za-z0-9 ._@-]{0,62})?$": f"empty, or up to 63 {_SIGNED}",
    r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,62}$": f"1 to 63 {_SIGNED}",
    r"^[A-Za-z0-9][\w.-]{0,200}\.comfyloop$": "the name of a file that ends with .comfyloop",
}
"""What the patterns of texts ask for, in words."""


class Complaint(NamedTuple):
    place: str  # messages.0.content; "" for the whole
    what: str  # the rest of the sentence: "it must be text or a list"


class _Walk(NamedTuple):
    worth: tuple[bool, int]  # whether it comes to the end, and its steps
    steps: tuple[str | int, ...]


def complaints(errors: Sequence[Any], sent: Any = None) -> list[Complaint]:
    """pydantic's errors, one complaint a field.

    Args:
        sent: What was validated. With it the places are those in it, without the names of forms that were tried.
    """
    at: dict[tuple[str | int, ...], list[Any]] = {}
    for error in errors:
        at.setdefault(_place(error, sent), []).append(error)
    # What is wrong further in says more than that the whole is not of another form.
    outer = {place[:n] for place in at for n in range(len(place))}
    return [
        Complaint(".".join(map(str, place)), _together(group))
        for place, group in at.items()
        if place not in outer
    ]


def in_words(errors: Sequence[Any], whole: str, sent: Any = None) -> str:
    """The same as part of one sentence; `whole` is what a complaint that names no field is about."""
    return "; ".join(f"{place or whole}: {what}" for place, what in complaints(errors, sent))


def _place(error: Any, sent: Any) -> tuple[str | int, ...]:
    path = tuple(error["loc"])
    return (
        path
        if sent is None
        else max(_walks(path, sent, error["type"] == "missing"), key=lambda walk: walk.worth).steps
    )


def _walks(path: tuple[str | int, ...], value: Any, missing: bool) -> Iterator[_Walk]:
    """The ways on which a path may lead through the value: some of its steps are no keys of it, but names of forms
    that were tried. The best one comes to the path's end, and has the most steps."""
    if not path:
        yield _Walk((True, 0), ())
        return
    step, rest = path[0], path[1:]
    if missing and not rest and isinstance(value, dict):
        yield _Walk((True, 1), path)
        return
    if _has(value, step):
        for (ends, steps), further in _walks(rest, value[step], missing):
            yield _Walk((ends, steps + 1), (step, *further))
    for (ends, steps), further in _walks(rest, value, missing):
        yield _Walk((ends and bool(rest), steps), further)


def _has(value: Any, step: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(step, int) and step < len(value)
    return isinstance(value, dict) and step in value


def _together(errors: Sequence[Any]) -> str:
    """What is wrong at one place: of a few forms any would have done."""
    reasons = list(dict.fromkeys(map(_what, errors)))
    if len(reasons) > 1 and all(what.startswith("it must be ") for what in reasons):
        return "it must be " + " or ".join(what.removeprefix("it must be ") for what in reasons)
    return "; ".join(reasons)


def _what(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _MUST_BE:
        return f"it must be {_MUST_BE[kind]}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"it must be {words} {context[name]}"
    if kind in _SIZES:
        name, words, unit = _SIZES[kind]
        many = context[name]
        has = f", and has {context['actual_length']}" if context.get("actual_length") is not None else ""
        return f"it must have {words} {many} {unit}{'s' * (many != 1)}{has}"
    if kind == "string_pattern_mismatch":
        return f"it must be {_WRITTEN.get(context['pattern'], 'written as ' + context['pattern'])}"
    if kind in ("literal_error", "enum"):
        return f"it must be {context['expected']}"
    if kind == "missing":
        return "this field is missing"
    if kind == "extra_forbidden":
        return "there is no such field, or what it asks cannot be done here"
    if kind == "union_tag_not_found":
        return f"the field {context['discriminator']} is missing"
    if kind == "union_tag_invalid":
        return f"its {context['discriminator'].strip(chr(39))} {context['tag']!r} is none of {context['expected_tags']}"
    message = str(error["msg"]).removeprefix("Value error, ").rstrip(".")
    return message.replace("Input should", "it must", 1)
