"""What is left out of training data, mended or shown to a person; one file a filter, each declaring its `FILTER`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

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


class Passed(NamedTuple):
    """What becomes of a draft among the filters that look at each one alone.

    Attributes:
        draft: As it is kept, perhaps mended; None: it is not.
        doubts: What they said of it, but for what a person has answered.
        refused: What refused it, if something did.
        unmeasured: Filters that could not measure it.
    """

    draft: Draft | None
    doubts: tuple[Doubt, ...] = ()
    refused: Doubt | None = None
    unmeasured: tuple[str, ...] = ()


def apply(drafts: Sequence[Draft], ground: Ground) -> Filtered:
    """What every filter says of the drafts, the later ones of what the earlier ones have kept. What a person has
    answered to one, it does not say again.

    Those that compare come last, so that a copy of a good draft is never preferred to it.

    Raises:
        InvalidInput: The settings name no such filter, or set of one what it does not have.
    """
    return compare(each(drafts, ground), ground)


def each(drafts: Sequence[Draft], ground: Ground) -> list[Passed]:
    """What becomes of the drafts among the filters that look at each one alone: of the same draft, the same."""
    return _through(_chosen(ground.settings, compares=False), [Passed(draft) for draft in drafts], ground)


def measure(drafts: Sequence[Draft], ground: Ground) -> None:
    """What filters that compare need to know of each draft: measured, and left in `ground.measurements`."""
    for filter, options in _chosen(ground.settings, compares=True):
        if filter.measure is not None:
            filter.measure(drafts, ground, options)


def compare(passed: Sequence[Passed], ground: Ground) -> Filtered:
    """`apply`, of drafts that `each` has seen."""
    every = _through(_chosen(ground.settings, compares=True), list(passed), ground)
    place = {filter.name: number for number, filter in enumerate(in_order())}
    told = [one for one in every if one.doubts or one.refused or one.unmeasured]
    doubts = sorted(
        (doubt for one in told for doubt in one.doubts), key=lambda doubt: place[doubt.filter.name]
    )
    refusals = sorted(
        (one.refused for one in told if one.refused), key=lambda refused: place[refused.filter.name]
    )
    unmeasured = Counter(name for one in told for name in one.unmeasured)
    kept = [one.draft for one in every if one.draft is not None]
    refused: dict[str, Dropped] = {}
    for one in refusals:
        for item in _told(one.filter, one.draft, one.ruling):
            refused.setdefault(item.feedback, item)
    used = {feedback for draft in kept for feedback in draft.sample.feedback} if refused else set()
    return Filtered(
        kept,
        [dropped for feedback, dropped in refused.items() if feedback not in used],
        doubts,
        {name: unmeasured[name] for name in sorted(unmeasured, key=lambda name: place[name])},
    )


def _through(chosen: Sequence[tuple[Filter, Options]], passed: list[Passed], ground: Ground) -> list[Passed]:
    """What each filter says of what those before it have kept."""
    there = [(place, one.draft) for place, one in enumerate(passed) if one.draft is not None]
    places, drafts = [place for place, _ in there], [draft for _, draft in there]
    for filter, options in chosen:
        changed = False
        judged = zip(drafts, filter.judge(drafts, ground, options), strict=True)
        for index, (_, ruling) in enumerate(judged):
            if ruling.says == "keep":
                continue
            before = passed[places[index]]
            after = passed[places[index]] = _after(before, filter, ruling)
            changed |= after.draft is not before.draft
        if changed:
            there = [(place, draft) for place in places if (draft := passed[place].draft) is not None]
            places, drafts = [place for place, _ in there], [draft for _, draft in there]
    return passed


def _after(before: Passed, filter: Filter, ruling: Ruling) -> Passed:
    draft = before.draft
    assert draft is not None
    if ruling.says == "mend":
        return before._replace(draft=_mended(draft, ruling))
    if ruling.says == "unmeasured":
        return before._replace(unmeasured=(*before.unmeasured, filter.name))
    doubt = Doubt(draft, filter, ruling)
    if not filter.final:
        if draft.is_answered(filter.name):
            return before
        before = before._replace(doubts=(*before.doubts, doubt))
    return before if ruling.says == "unsure" else before._replace(draft=None, refused=doubt)


def _chosen(settings: Settings, *, compares: bool) -> list[tuple[Filter, Options]]:
    chosen = options_of(settings)
    return [
        (filter, chosen[filter.name])
        for filter in in_order()
        if filter.compares is compares and chosen[filter.name].on
    ]


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
    assert ruling.mended is not None
    return replace(draft, sample=ruling.mended, made_from=draft.made_from or draft.sample)


__all__ = [
    "FILTERS",
    "KEEP",
    "SENTENCES",
    "Doubt",
    "Filtered",
    "Passed",
    "apply",
    "compare",
    "each",
    "in_order",
    "measure",
    "options_of",
]
