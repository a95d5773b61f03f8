"""What is left out of training data, mended or shown to a person; one file a filter, each declaring its `FILTER`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft
from comfyloop.declared import declared
from comfyloop.errors import InvalidInput
from comfyloop.records import Dropped
from comfyloop.settings import Settings

FILTERS: dict[str, Filter] = declared(__name__, Filter)

SENTENCES: dict[str, str] = {name: filter.sentence for name, filter in FILTERS.items()}


@dataclass(frozen=True)
class Doubt:
    """Something that a person may overrule: what a filter is unsure of, or left out."""

    draft: Draft
    filter: Filter
    ruling: Ruling


@dataclass(frozen=True)
class Filtered:
    """
    Attributes:
        kept: The drafts that no filter refuses, mended where one could; also those that one is unsure of.
        dropped: The feedback of which not a single draft is kept, with the first filter that refused one.
        doubts: What filters said of single drafts, those that are kept and those that are not.
        unmeasured: Filter -> how many drafts it could not measure.
    """

    kept: list[Draft]
    dropped: list[Dropped]
    doubts: list[Doubt]
    unmeasured: dict[str, int]

    @property
    def unsure(self) -> list[Dropped]:
        """Feedback of which a draft is kept that a person should look at, with the filter that is unsure of it."""
        used = {feedback for draft in self.kept for feedback in draft.sample.feedback}
        found = {
            (item.feedback, doubt.filter.name): item
            for doubt in self.doubts
            if doubt.ruling.says == "unsure"
            for item in _told(doubt.filter, doubt.draft, doubt.ruling)
        }
        return [asked for (feedback, _), asked in found.items() if feedback in used]


def apply(drafts: Sequence[Draft], ground: Ground) -> Filtered:
    """What every filter says of the drafts, the later ones of what the earlier ones have kept. What a person has
    answered to one, it does not say again.

    Those that compare come last, so that a copy of a good draft is never preferred to it.

    Raises:
        InvalidInput: The settings name no such filter, or set of one what it does not have.
    """
    chosen = options_of(ground.settings)
    kept = list(drafts)
    refused: dict[str, Dropped] = {}
    doubts: list[Doubt] = []
    unmeasured: Counter[str] = Counter()
    for filter in in_order():
        if not (options := chosen[filter.name]).on:
            continue
        judged, kept = list(zip(kept, filter.judge(kept, ground, options), strict=True)), []
        for draft, ruling in judged:
            if ruling.says in ("drop", "ask", "unsure") and not filter.final:
                if draft.is_answered(filter.name):
                    kept.append(draft)
                    continue
                doubts.append(Doubt(draft, filter, ruling))
            if ruling.says in ("drop", "ask"):
                for item in _told(filter, draft, ruling):
                    refused.setdefault(item.feedback, item)
                continue
            if ruling.says == "unmeasured":
                unmeasured[filter.name] += 1
            kept.append(_mended(draft, ruling))
    used = {feedback for draft in kept for feedback in draft.sample.feedback}
    return Filtered(
        kept,
        [dropped for feedback, dropped in refused.items() if feedback not in used],
        doubts,
        dict(unmeasured),
    )


def in_order() -> list[Filter]:
    return sorted(FILTERS.values(), key=lambda filter: (filter.compares, filter.rank, filter.name))


def options_of(settings: Settings) -> Mapping[str, Options]:
    """What is set of each filter, and the rest as it declares it.

    Raises:
        InvalidInput: There is no such filter, or it has no such option.
    """
    if strange := sorted(settings.filters.keys() - FILTERS.keys()):
        raise InvalidInput(
            f"The settings name a filter {strange[0]!r}, which there is not.",
            f"[filters.NAME] takes one of {', '.join(FILTERS)}.",
        )
    chosen: dict[str, Options] = {}
    for name, filter in FILTERS.items():
        try:
            chosen[name] = filter.options.model_validate(settings.filters.get(name, {}))
        except ValidationError as error:
            (first, *_) = error.errors()
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidInput(
                f"The setting filters.{name}.{where} cannot be used: {first['msg']}.",
                f"It has {', '.join(filter.options.model_fields)}: see docs/reference/filters.md.",
            ) from error
    return chosen


def _told(filter: Filter, draft: Draft, ruling: Ruling) -> list[Dropped]:
    return [
        Dropped(feedback=feedback, reason=filter.name, detail=ruling.reason)
        for feedback in draft.sample.feedback
    ]


def _mended(draft: Draft, ruling: Ruling) -> Draft:
    if ruling.says != "mend":
        return draft
    assert ruling.mended is not None
    return replace(draft, sample=ruling.mended, made_from=draft.made_from or draft.sample)


__all__ = ["FILTERS", "KEEP", "SENTENCES", "Doubt", "Filtered", "apply", "in_order", "options_of"]
