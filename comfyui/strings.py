"""ComfyUI's own nodes for texts, whose work can be done without running them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

LITERALS: dict[str, tuple[str, ...]] = {
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
    "PreviewAny": ("source",),
    "Reroute": ("",),
}


def _values(inputs: Mapping[str, Any]) -> list[str]:
    return ["f_string", *(name for name in inputs if name.startswith("values."))]


def _formatted(texts: list[str], settings: Mapping[str, Any]) -> str | None:
    """`str.format` with plain fields alone: one with attributes or a width is left to the run."""
    names = [name.partition(".")[2] for name in settings if name.startswith("values.")]
    fields = dict(zip(names, texts[1:], strict=True))
    if re.search(r"\{\{|\}\}", texts[0]) or set(re.findall(r"\{([^}]*)\}", texts[0])) - fields.keys():
        return None
    return re.sub(r"\{([^}]*)\}", lambda found: fields[found[1]], texts[0])


def _trimmed(texts: list[str], settings: Mapping[str, Any]) -> str:
    ways = {"Both": str.strip, "Left": str.lstrip, "Right": str.rstrip}
    return ways[settings["mode"]](texts[0])


def _cased(texts: list[str], settings: Mapping[str, Any]) -> str:
    ways = {"UPPERCASE": str.upper, "lowercase": str.lower, "Capitalize": str.capitalize, "Title Case": str.title}
    return ways[settings["mode"]](texts[0])


def _extracted(texts: list[str], settings: Mapping[str, Any]) -> str | None:
    value = json.loads(texts[0])[settings["key"]]
    return None if value is None else str(value)


_PATTERN = re.compile(r"[\\.^$*+?()\[\]|]|\{\d*,?\d*\}")
"""What makes a text a pattern: one with such signs is left to the run, since it may take any time."""
_LINE = re.compile(r"\^?\(\?:\[\^\\n\]\*\\n\)\{(\d+)\}\(\[\^\\n\][*+]\)(?:\(\?:\\n\|\$\))?")
"""The pattern by which ComfyUI's own templates choose a line by its number."""


def _replaced(texts: list[str], settings: Mapping[str, Any]) -> str | None:
    text, pattern, instead = texts
    if not pattern or _PATTERN.search(pattern) or "\\" in instead:
        return None
    flags = re.IGNORECASE if settings.get("case_insensitive", True) else 0
    return re.sub(re.escape(pattern), lambda _: instead, text, count=int(settings.get("count") or 0), flags=flags)


def _line(texts: list[str], settings: Mapping[str, Any]) -> str | None:
    found = _LINE.fullmatch(texts[1])
    if not found or settings.get("mode") != "First Group" or settings.get("group_index") != 1:
        return None
    return texts[0].split("\n")[int(found[1])] or None


def _named(*names: str) -> Callable[[Mapping[str, Any]], list[str]]:
    return lambda _: list(names)


MAKES: dict[str, tuple[Callable[[Mapping[str, Any]], list[str]], Callable[[list[str], Mapping[str, Any]], Any]]] = {
    "StringConcatenate": (_named("string_a", "string_b", "delimiter"), lambda t, _: t[2].join(t[:2])),
    "StringReplace": (_named("string", "find", "replace"), lambda t, _: t[0].replace(t[1], t[2])),
    "StringTrim": (_named("string"), _trimmed),
    "StringSubstring": (_named("string"), lambda t, s: t[0][s["start"] : s["end"]]),
    "CaseConverter": (_named("string"), _cased),
    "StringFormat": (_values, _formatted),
    "JsonExtractString": (_named("json_string"), _extracted),
    "RegexReplace": (_named("string", "regex_pattern", "replace"), _replaced),
    "RegexExtract": (_named("string", "regex_pattern"), _line),
}
