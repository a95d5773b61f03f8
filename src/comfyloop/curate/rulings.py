"""What a filter is, and what it says.

A filter looks at drafts and says of each, in their order, whether it is learned: a `Ruling`. It changes nothing and
keeps nothing; what it needs, it finds in the `Ground`. What takes long to find out it measures there, by the content
of the sample or picture: a second look at the same content costs a look-up, also where an option has changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from comfyloop.curate.measurements import Measurements
from comfyloop.curate.reviews import Taught
from comfyloop.curate.samples import Draft
from comfyloop.curate.seen import Look
from comfyloop.records import Sample
from comfyloop.settings import Settings

Says = Literal["keep", "drop", "ask", "mend", "unsure", "unmeasured"]
"""
keep        nothing is wrong with it
drop        it is not learned
ask         it is not learned before a person has said so
mend        `mended` is learned in its place
unsure      it may be wrong, a person should look at it: it is learned, and named in the report
unmeasured  what the filter needs is not installed or cannot be read: it is learned, and counted as not measured
"""


@dataclass(frozen=True)
class Ruling:
    """
    Attributes:
        reason: What is wrong with this very draft, as part of a sentence, for the report. Never repeats a secret.
        score: What was measured, in the filter's own unit; None: nothing was.
        mended: The sample that takes its place.
    """

    says: Says
    reason: str = ""
    score: float | None = None
    mended: Sample | None = None


KEEP = Ruling("keep")


def against(draft: Draft, reason: str, score: float | None = None) -> Ruling:
    """What a filter of taste says of a draft that it does not like: too long, too dark, in another language.

    Nobody is overruled by a measure: what a person did by hand, an edit, an accept, a pick, may well be meant as it is,
    so a person is asked. Of what was uploaded nobody may have looked at every line: it is left out.
    """
    looked_at = draft.sample.origin != UPLOADED or draft.answered is not None
    return Ruling("unsure" if looked_at else "drop", reason, score)


UPLOADED = "sample_uploaded"


class StoredPictures(Protocol):
    """The pictures that samples name, by the hashes of their bytes."""

    def exists(self, sha: str) -> bool: ...

    def is_whole(self, sha: str) -> bool:
        """Whether its bytes are those that were stored, and a picture that models take."""
        ...

    def read(self, sha: str) -> bytes:
        """Raises NotFound, DamagedBlob."""
        ...

    def look(self, sha: str) -> Look | None:
        """What tells it from others; None where it cannot be read."""
        ...


@dataclass(frozen=True)
class Ground:
    """What filters go by beside the drafts."""

    settings: Settings
    pictures: StoredPictures
    measurements: Measurements = field(default_factory=Measurements)
    taught: Sequence[Taught] = ()
    same: Callable[[str], str] | None = None
    """From a picture to the first one of the project that shows the same; None: nobody has looked."""
    left: dict[str, Any] = field(default_factory=dict)
    """What filters that compare leave for the next curation of the project, by their names: where the drafts that they
    look at begin with those of the last time, they go on from there."""


class Options(BaseModel):
    """What a person can set of a filter, in `[filters.NAME]`; a filter with more to set declares its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    on: bool = Field(default=True, description="Whether it is applied.")


@dataclass(frozen=True)
class Filter:
    """A reason for which drafts are left out, mended or shown to a person.

    Attributes:
        name: That of its file; what it says is counted under it.
        sentence: The reason in full.
        judge: From drafts, the ground and the options to a ruling a draft, in the same order.
        rank: Of several that refuse a draft, the one of lowest rank is named.
        compares: It compares drafts with each other and needs all of them at once, after the others have spoken. The
            others may be given any part of the drafts, anywhere.
        final: No person can take in what it refuses: there is nothing to train on.
        options: What can be set of it.
        measure: What one that compares finds out of each draft alone, through `Ground.measurements`, before it
            compares; it may be given any part of the drafts, anywhere.
    """

    name: str
    sentence: str
    judge: Callable[[Sequence[Draft], Ground, Any], Iterable[Ruling]]
    rank: int = 100
    compares: bool = False
    final: bool = False
    options: type[Options] = Options
    measure: Callable[[Sequence[Draft], Ground, Any], object] | None = None
