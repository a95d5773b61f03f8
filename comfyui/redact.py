"""What never leaves ComfyUI: values of nodes and inputs named like secrets, and all of the nodes a person excludes."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

_SECRET = re.compile(
    r"(^|[_\W])(api|access|auth|private|secret)?_?(keys?|tokens?|passwords?|passwd|secrets?|credentials?)([_\W]|$)",
    re.IGNORECASE,
)
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_JOINED = re.compile(r"(api|access|auth|secret|private)(key|token)|password|passwd|密码|密钥|令牌", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a class, title or input is named like one: api_key, HFToken, password ... (not KSampler, keyframe)."""
    return bool(_SECRET.search(_WORDS.sub("_", name)) or _JOINED.search(name))


_SURE = re.compile(
    r"(api|access|auth|private|secret|hf|openai)[\s_-]*(key|token)s?|password|passwd|credential|密码|密钥|令牌",
    re.IGNORECASE,
)


def _is_word(value: Any) -> bool:
    """Whether a value reads like what people write rather than like a key: ASCII, one word, no plain one."""
    if not isinstance(value, str) or not value.isascii() or re.search(r"\s", value.strip()):
        return True
    return value.strip().isalpha() and len(value) < 20


def redact(graph: dict[str, Any], excluded: Collection[str] = ()) -> dict[str, Any]:
    """A copy of an API-form graph without secrets.

    A node whose class or title names a secret keeps its links and loses its values; an input so named is dropped.
    A title that only has "key", "token" or "secret" in it ("Key visual, max 75 tokens") is no more than a hint: of its
    node, texts stay that read like words.
    An excluded node (by class) is left out, and with it the links from it.
    """
    kept = {key: node for key, node in graph.items() if node.get("class_type") not in excluded}
    clean: dict[str, Any] = {}
    for key, node in kept.items():
        class_type = str(node.get("class_type", ""))
        title = str((node.get("_meta") or {}).get("title", ""))
        secret_node = is_secret(class_type) or bool(_SURE.search(title))
        hinted = not secret_node and is_secret(title)
        inputs = {}
        for name, value in (node.get("inputs") or {}).items():
            link = is_link(value, graph)
            if link and value[0] not in kept:
                continue
            if link or not (secret_node or is_secret(name) or (hinted and not _is_word(value))):
                inputs[name] = value
        clean[key] = {"class_type": class_type, "inputs": inputs}
    return clean


def is_link(value: Any, graph: dict[str, Any]) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in graph
