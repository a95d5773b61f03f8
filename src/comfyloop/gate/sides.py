"""A version is promoted whole or not at all: what the verdict on its text side says of both sides."""

from __future__ import annotations

from comfyloop.records import GateReport, Verdict, Version

UNJUDGED = (
    "The image side has changed, and pictures are not judged by numbers yet: compare what both versions draw, "
    "and promote this one by hand."
)


def whole(report: GateReport, live: Version | None, candidate: Version) -> GateReport:
    """The report on the text side, extended to the whole version.

    Args:
        live: None is the base model.
    """
    if candidate.image_adapter == (live.image_adapter if live is not None else None):
        return report
    text_changed = candidate.text_adapter != (live.text_adapter if live is not None else None)
    if report.verdict is Verdict.REJECT and text_changed:
        return report
    verdict = Verdict.NOT_ENOUGH_EVIDENCE
    return report.model_copy(update={"verdict": verdict, "reasons": (UNJUDGED, *report.reasons)})
