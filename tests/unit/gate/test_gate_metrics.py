"""What a metric declares, evidence and reports go by."""

from __future__ import annotations

import pytest

from comfyloop.gate import metrics
from comfyloop.gate.asking import Seen
from comfyloop.gate.decision import decide
from comfyloop.gate.judging import _evidence
from comfyloop.gate.metrics import METRICS, Metric
from comfyloop.gate.pairs import Pairs
from comfyloop.gate.report import render_text
from comfyloop.records import GateReport, Measure, Message, Sample, Verdict
from comfyloop.settings import Settings


def seen(number: int, live: str, candidate: str) -> Seen:
    messages = (Message.of("user", f"Question {number}?"), Message.of("assistant", "A tabby cat."))
    sample = Sample(id=f"s{number}", project="acme", kind="sft", messages=messages, group=f"g{number}")
    return Seen(sample, (-2.0 - number / 10, -1.0), (live, candidate))


@pytest.mark.parametrize("name", METRICS)
def test_each_is_shown_in_its_own_words_and_the_better_way_round(name: str) -> None:
    metric = METRICS[name]
    up = Pairs(name, "all", (0.1, 0.2), (0.3, 0.4))
    assert all(gain > 0 for gain in up.gains) == metric.higher_is_better
    measure = Measure(
        metric=name, slice="all", items=2, live=0.1, candidate=0.3, low=0.1, high=0.3,
        higher_is_better=metric.higher_is_better,
    )  # fmt: skip
    report = GateReport(
        project="acme", live=0, candidate=1, verdict=Verdict.ASK, reasons=("?",), measures=(measure,)
    )
    (row,) = (line for line in render_text(report).splitlines() if metric.words in line)
    assert f"{0.3:.{metric.digits}f}" in row and ("higher" in row) == metric.higher_is_better


def test_a_measure_of_another_release_is_shown_by_its_name() -> None:
    measure = Measure(metric="bleu", slice="all", items=2, live=0, candidate=0, low=0, high=0)
    report = GateReport(
        project="acme", live=0, candidate=1, verdict=Verdict.ASK, reasons=("?",), measures=(measure,)
    )
    assert "bleu, higher is better" in render_text(report)


def test_a_metric_of_answers_is_told_beside_and_the_verdict_does_not_go_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items = [seen(number, "A dog of some kind.", "A tabby cat.") for number in range(12)]

    def judged() -> tuple[Verdict, dict[tuple[str, str], Measure]]:
        fresh = [Seen(item.sample, item.likelihood, item.answers) for item in items]
        found = decide(_evidence(fresh, [], [], 0.0, 1.0, []), Settings())
        return found.verdict, {(m.metric, m.slice): m for m in found.measures}

    verdict, without = judged()

    def words_more(answer: str, wanted: str) -> float:
        return len(answer.split()) - len(wanted.split())

    toy = Metric("words_more", "words more than wanted", higher_is_better=True, of_answer=words_more)
    monkeypatch.setitem(metrics.METRICS, "words_more", toy)
    again, measures = judged()
    assert again is verdict
    assert measures.keys() - without.keys() == {("words_more", "all")}
    told = measures["words_more", "all"]
    assert (told.items, told.live, told.candidate) == (12, 2.0, 0.0)
