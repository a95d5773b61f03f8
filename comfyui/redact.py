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


def redact(graph: dict[str, Any], excluded: Collection[str] = ()) -> dict[str, Any]:
    """A copy of an API-form graph without secrets.

    A node whose class or title names a secret keeps its links and loses its values; an input so named is dropped.
    An excluded node (by class) is left out, and with it the links from it.
    """
    kept = {key: node for key, node in graph.items() if node.get("class_type") not in excluded}
    clean: dict[str, Any] = {}
    for key, node in kept.items():
        class_type = str(node.get("class_type", ""))
        title = str((node.get("_meta") or {}).get("title", ""))
        secret_node = is_secret(class_type) or is_secret(title)
        inputs = {}
        for name, value in (node.get("inputs") or {}).items():
            link = is_link(value, graph)
            if link and value[0] not in kept:
                continue
            if link or not (secret_node or is_secret(name)):
                inputs[name] = value
        clean[key] = {"class_type": class_type, "inputs": inputs}
    return clean


def is_link(value: Any, graph: dict[str, Any]) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in graph
