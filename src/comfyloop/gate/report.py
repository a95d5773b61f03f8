"""A gate report as text for a terminal or a log; as JSON it is `report.model_dump_json()`."""

from __future__ import annotations

from comfyloop.gate.metrics import (
    DENOISING_LOSS,
    EDIT_DISTANCE,
    KEPT_SIMILARITY,
    LOG_LIKELIHOOD,
    PICK_ACCURACY,
    PICK_MARGIN,
    TEXT_SIMILARITY,
)
from comfyloop.records import BASE, GateItem, GateReport, Measure, Verdict

_VERDICTS = {
    Verdict.PROMOTE: "promote",
    Verdict.REJECT: "reject",
    Verdict.NOT_ENOUGH_EVIDENCE: "not enough evidence",
}
_METRICS = {
    LOG_LIKELIHOOD: "log-likelihood, nats per token",
    EDIT_DISTANCE: "edit distance, 0 to 1",
    DENOISING_LOSS: "denoising loss",
    PICK_MARGIN: "margin of picks",
    PICK_ACCURACY: "share of picks preferred",
    TEXT_SIMILARITY: "drawing to prompt",
    KEPT_SIMILARITY: "drawing to kept pictures",
}

_DIGITS = {DENOISING_LOSS: 4, PICK_MARGIN: 5}  # what changes there is small beside what stays


def render_text(report: GateReport, examples: int = 3) -> str:
    """Verdict, reasons, measures and the answers that changed most (`examples` of them)."""
    live = "the base model" if report.live == BASE else f"version {report.live}"
    lines = [
        f"{report.project}: version {report.candidate} against {live}: {_VERDICTS[report.verdict]}.",
        *(f"  {reason}" for reason in report.reasons),
    ]
    if report.measures:
        lines += ["", f"  {'slice':<12} {'items':>5} {'live':>8} {'cand.':>8}  {'change':<20} measure"]
        lines += map(_row, report.measures)
    for item in _most_changed(report)[:examples]:
        lines += [
            "",
            f"  Asked:     {_line(item.question)}",
            f"  Yours:     {_line(item.reference)}",
            f"  Live:      {_line(item.live_answer)}",
            f"  Candidate: {_line(item.candidate_answer)}",
        ]
    if report.sheet is not None:
        sheet = f"/v1/versions/{report.candidate}/sheet?project={report.project}"
        lines += ["", f"  Contact sheet, live beside candidate: GET {sheet}"]
    lines += ["", f"  {len(report.items)} items in {report.seconds:.1f} s."]
    return "\n".join(lines) + "\n"


def _row(m: Measure) -> str:
    digits = _DIGITS.get(m.metric, 3)
    change = f"{m.low:+.{digits}f} to {m.high:+.{digits}f}"
    return (
        f"  {m.slice:<12} {m.items:>5} {m.live:>8.{digits}f} {m.candidate:>8.{digits}f}  {change:<20} "
        f"{_METRICS.get(m.metric, m.metric)}, {'higher' if m.higher_is_better else 'lower'} is better"
    )


def _most_changed(report: GateReport) -> list[GateItem]:
    answered = [item for item in report.items if EDIT_DISTANCE in item.scores]

    def change(item: GateItem) -> float:
        live, candidate = item.scores[EDIT_DISTANCE]
        return abs(candidate - live)

    return sorted(answered, key=change, reverse=True)


def _line(text: str, width: int = 160) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
