"""Repeated tests on the same hold-out: the significance level of each look. Pure.

A first look at items errs in at most settings.gate_level of cases. Every further candidate that is tested against
the same live version on the same items has another chance, so the k-th look's level is the first one's divided by
k^1.5: all looks together stay below 2.6 times it, thirty below 2.3 times. An item that was never used counts as a
first look; the number of a look is the mean over its items. A promotion changes the live version and so restarts
the count: a discovery earns back the spent error rate (D. Foster and R. Stine, "Alpha-investing", JRSS B 70, 2008).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from comfyloop.records import GateReport, Verdict

FEWEST = 5
"""With five items, all ahead, chance alone looks so in 1/32: the exact test allows no level below that."""


def level(first: float, items: int, looks: float) -> float:
    """The one-sided level of a look. With five items, where both measures must be ahead on all, a first look uses
    1/32 each."""
    if items == FEWEST and looks <= 1.5:
        return max(first, 2.0**-FEWEST)
    return first / float(max(looks, 1.0) ** 1.5)


def seen_before(reports: Iterable[GateReport], live: int, candidate: int) -> Counter[str]:
    """How often each sample was used to test candidates against the current live version."""
    counts: Counter[str] = Counter()
    for report in reports:
        if report.live == live and report.candidate != candidate and was_tested(report):
            counts.update({item.sample for item in report.items})
    return counts


def number(counts: Mapping[str, int], samples: Iterable[str]) -> float:
    """The number of a look at these samples: 1 when none was seen before."""
    earlier_looks = [counts.get(sample, 0) for sample in samples]
    return 1 + sum(earlier_looks) / len(earlier_looks) if earlier_looks else 1.0


def was_tested(report: GateReport) -> bool:
    """Whether the report's verdict came from a test and so counts as a look. Reports of earlier releases do not
    state their level."""
    return report.level > 0 or (not report.details and report.verdict is not Verdict.NOT_ENOUGH_EVIDENCE)
