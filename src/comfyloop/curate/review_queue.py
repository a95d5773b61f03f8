"""The review queue: what filters are unsure of and what the live version does worst on, in the order of doubt. Pure.

One item is one content, whatever samples are made of it and whoever sent it. What is decided about it is feedback
(`SampleReviewed`), and reviews.py applies it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from comfyloop.curate import filters
from comfyloop.curate.filters import Doubt, learned
from comfyloop.curate.reviews import Reviewed
from comfyloop.curate.rulings import Ground
from comfyloop.curate.samples import Draft
from comfyloop.records import Decided, QueueItem, Reason, SampleReviewed

LIVE = "live"
LIVE_SENTENCE = "the live version does far worse on it than on the rest: it may be wrong, or just hard"
LIVE_MOST = 50
"""Items that are asked about for this reason at a time, the worst."""
LIVE_FEWEST = 20
"""Known losses from which on one can be told to be unlike the rest."""
LIVE_FAR = 3.0
"""Standard deviations above the median, by the median deviation."""


@dataclass
class _QueuedSample:
    drafts: list[Draft] = field(default_factory=list)
    reasons: dict[str, Reason] = field(default_factory=dict)
    learned: bool = False
    held: bool = False  # it is learned only once it is accepted
    decided: SampleReviewed | None = None


def of(
    reviewed: Reviewed,
    doubts: Sequence[Doubt],
    kept: Sequence[Draft],
    losses: Mapping[str, float],
    ground: Ground,
) -> list[QueueItem]:
    """Those that wait first, those most in doubt before the others; then what was left out, then what was decided.

    Args:
        kept: The drafts of which training samples are made.
        losses: How badly the live version does on samples, by their ids; nats a token.
    """
    hard = _hard(kept, losses)
    about = {id for one in doubts for id in one.draft.sample.feedback}
    about |= {id for draft, _ in (*hard, *reviewed.decided) for id in draft.sample.feedback}
    kept_of_them = [draft for draft in kept if not about.isdisjoint(draft.sample.feedback)]
    learns = {draft.item for draft in kept_of_them}
    held = {doubt.draft.item for doubt in doubts if doubt.ruling.says == "ask"}
    asked: dict[str, _QueuedSample] = {}
    learns_or_may = learns | held
    for doubt in doubts:
        if doubt.ruling.says == "unsure" and doubt.draft.item not in learns_or_may:
            continue  # it was left out for another reason
        item = asked.setdefault(doubt.draft.item, _QueuedSample(held=doubt.draft.item in held))
        item.drafts.append(doubt.draft)
        reason = Reason(
            filter=doubt.filter.name,
            sentence=doubt.filter.sentence,
            detail=doubt.ruling.reason,
            score=doubt.ruling.score,
        )
        item.reasons.setdefault(doubt.filter.name, reason)
    for draft, reason in hard:
        item = asked.setdefault(draft.item, _QueuedSample())
        item.drafts.append(draft)
        item.reasons[LIVE] = reason
    for draft in kept_of_them:  # the same content in its other forms
        if draft.item in asked:
            asked[draft.item].drafts.append(draft)
            asked[draft.item].learned = True
    decided: dict[str, _QueuedSample] = {}
    for draft, decision in reviewed.decided:
        item = decided.setdefault(draft.item, _QueuedSample())
        item.drafts.append(draft)
        item.decided = decision
        item.learned = decision.decision == "accept" and draft.item in learns
    options = filters.options_of(ground.settings)["learned"]
    assert isinstance(options, learned.LearnedOptions)
    taste = learned.taste_of(kept, ground, options) if options.on and (asked or decided) else None
    if taste is not None and taste.auc < options.least_auc:
        taste = None
    if taste is not None:
        learned.read([one.drafts[0] for one in (*asked.values(), *decided.values())], ground)
    waiting = [_told(id, one, losses, taste) for id, one in asked.items()]
    waiting.sort(key=lambda item: (item.state, -len(item.reasons), -(item.refused or 0), -(item.loss or 0)))
    left_out = [item for item in waiting if item.state == "left_out"]
    waiting = [item for item in waiting if item.state == "waiting"]
    done = [_told(id, one, losses, taste) for id, one in decided.items() if id not in asked]
    done.sort(key=_when, reverse=True)
    return [*waiting, *left_out, *done]


def _when(item: QueueItem) -> tuple[datetime, str]:
    assert item.decided is not None
    return item.decided.at, item.id


def _told(
    id: str, item: _QueuedSample, losses: Mapping[str, float], taste: learned.DecisionModel | None
) -> QueueItem:
    samples = list({draft.sample.id: draft.sample for draft in item.drafts}.values())
    first, decision = samples[0], item.decided
    known = [losses[sample.id] for sample in samples if sample.id in losses]
    return QueueItem(
        id=id,
        project=first.project,
        state="decided" if decision else "waiting" if item.learned or item.held else "left_out",
        reasons=tuple(item.reasons.values()),
        learned=item.learned,
        kinds=tuple(dict.fromkeys(sample.kind for sample in samples)),
        messages=first.messages,
        picked=first.picked,
        label=first.label,
        rejected=tuple(dict.fromkeys(sample.rejected for sample in samples if sample.rejected)),
        feedback=tuple(dict.fromkeys(id for sample in samples for id in sample.feedback)),
        author=first.author,
        origin=first.origin,
        refused=round(taste.refused(learned.read_of(item.drafts[0])), 3) if taste is not None else None,
        loss=round(max(known), 3) if known else None,
        decided=Decided(
            id=decision.id,
            decision=decision.decision,
            author=decision.author,
            text=decision.text,
            at=decision.created_at,
        )
        if decision and decision.decision != "undo"
        else None,
    )


def _hard(kept: Sequence[Draft], losses: Mapping[str, float]) -> list[tuple[Draft, Reason]]:
    """What the live version does far worse on than is usual, the worst first: labels that are wrong stay hard."""
    known = [(losses[draft.sample.id], draft) for draft in kept if draft.sample.id in losses]
    if len(known) < LIVE_FEWEST:
        return []
    values = np.array([loss for loss, _ in known])
    usual = float(np.median(values))
    far = usual + LIVE_FAR * 1.4826 * float(np.median(np.abs(values - usual)))
    hard = sorted(
        ((loss, draft) for loss, draft in known if loss > far and not draft.is_answered(LIVE)),
        key=lambda one: (-one[0], one[1].sample.id),
    )
    return [
        (
            draft,
            Reason(
                filter=LIVE,
                sentence=LIVE_SENTENCE,
                detail=f"{loss:.2f} nats a token, where {usual:.2f} is usual",
                score=round(loss, 3),
            ),
        )
        for loss, draft in hard[:LIVE_MOST]
    ]
