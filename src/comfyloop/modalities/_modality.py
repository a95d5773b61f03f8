"""What a kind of part says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Modality:
    """
    Attributes:
        name: That of its file, and the `type` of such a part in a record.
        types: What OpenAI, ms-swift and other tools write as the `type` of such a part.
        read: What a part as any of these write it holds: its text, or what says where its bytes are (None: the next
            of the row's list). Raises KeyError, TypeError where it holds nothing of the kind.
        wire: The part as OpenAI's API has it, of its text or of a URL of its bytes.
        slot: The part as a chat template is given it: a text, or a place that the processor fills.
    """

    name: str
    types: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Any]
    wire: Callable[[str], dict[str, Any]]
    slot: Callable[[str | None], dict[str, str]]
