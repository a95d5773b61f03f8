"""The names that clients use for models: "acme", "acme@17", "acme@base", "acme@candidate"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from comfyloop.errors import NotFound
from comfyloop.records import BASE

_NAME = re.compile(r"^(?P<project>[a-z0-9][a-z0-9._-]{0,62})(?:@(?P<which>base|live|candidate|[0-9]{1,9}))?$")


@dataclass(frozen=True)
class ModelName:
    """`which` is a version's number, or the alias that stands for one."""

    project: str
    which: int | Literal["live", "candidate"] = "live"

    @classmethod
    def parse(cls, name: str) -> ModelName:
        """Raises NotFound, saying how names are spelled, when `name` cannot be one."""
        match = _NAME.match(name)
        if match is None:
            shown = name if len(name) <= 80 else name[:77] + "..."
            raise NotFound(
                f"There is no model {shown!r}.",
                'A model is named by its project, "acme" (the live version), "acme@17" (that version), '
                '"acme@base" or "acme@candidate"; GET /v1/models lists them.',
            )
        project = str(match["project"])
        match match["which"]:
            case None | "live":
                return cls(project, "live")
            case "candidate":
                return cls(project, "candidate")
            case "base":
                return cls(project, BASE)
            case number:
                return cls(project, int(number))


def version_name(project: str, number: int) -> str:
    """The name that always means this version: "acme@17", "acme@base"."""
    return f"{project}@base" if number == BASE else f"{project}@{number}"
