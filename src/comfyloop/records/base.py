"""What every record is made of."""

from __future__ import annotations

import re
import secrets
import time
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

BASE = 0
"""The version number of the untrained base model."""

MOST_REVIEWED = 5000
"""Items that one decision may be about."""

ProjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
_OF_WINDOWS = re.compile(r"con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$")]
Rating = Annotated[int, Field(ge=1, le=5)]
Author = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


def is_device(name: str) -> bool:
    """Whether Windows takes a file's name for a device, whatever its ending."""
    return bool(_OF_WINDOWS.fullmatch(name.partition(".")[0]))


def now() -> datetime:
    return datetime.now(UTC)


def _in_utc(at: datetime) -> datetime:
    """A time without a zone is taken for UTC: times are compared, and those of both kinds cannot be."""
    if at.tzinfo is None:
        return at.replace(tzinfo=UTC)
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("this time is beyond the years that can be counted") from None


Time = Annotated[datetime, AfterValidator(_in_utc)]


def new_id(prefix: str) -> str:
    """An id that sorts by the time of its making: ``gen_019a…`` (48 bits of milliseconds, 64 of chance)."""
    return f"{prefix}_{int(time.time() * 1000):012x}{secrets.token_hex(8)}"


def _is_a_box(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    if not (0 <= left < right and 0 <= top < bottom):
        raise ValueError("a box is left, top, right and bottom in pixels, each side longer than none")
    return box


Box = Annotated[tuple[int, int, int, int], AfterValidator(_is_a_box)]
"""Left, top, right and bottom in pixels of a picture as it is upright."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
