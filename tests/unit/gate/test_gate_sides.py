"""A version with a changed image side is never promoted on the word of its text side alone."""

from __future__ import annotations

import pytest

from comfyloop.gate import whole
from comfyloop.gate.sides import UNJUDGED
from comfyloop.records import GateReport, Verdict, Version

LIVE = Version(project="acme", number=1, text_adapter="1/text", image_adapter="1/image.safetensors")


def report(verdict: Verdict) -> GateReport:
    return GateReport(project="acme", live=1, candidate=2, verdict=verdict, reasons=("of the text",))


def version(text: str | None, image: str | None) -> Version:
    return Version(project="acme", number=2, text_adapter=text, image_adapter=image)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_text_side_decides_where_the_images_are_the_same(verdict: Verdict) -> None:
    assert whole(report(verdict), LIVE, version("2/text", LIVE.image_adapter)).verdict is verdict
    assert whole(report(verdict), None, version("2/text", None)).verdict is verdict


@pytest.mark.parametrize("live", [LIVE, None])
def test_a_new_image_side_waits_for_a_person(live: Version | None) -> None:
    judged = whole(report(Verdict.PROMOTE), live, version("2/text", "2/image.safetensors"))
    assert judged.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert judged.reasons == (UNJUDGED, "of the text")


def test_a_worse_text_side_rejects_both() -> None:
    assert whole(report(Verdict.REJECT), LIVE, version("2/text", "2/i")).verdict is Verdict.REJECT


def test_the_image_side_alone_is_not_rejected_because_the_text_stays() -> None:
    judged = whole(report(Verdict.REJECT), LIVE, version(LIVE.text_adapter, "2/image.safetensors"))
    assert judged.verdict is Verdict.NOT_ENOUGH_EVIDENCE
