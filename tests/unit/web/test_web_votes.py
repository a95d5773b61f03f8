"""Blind votes between versions: counted once, ranked by what is sure."""

from __future__ import annotations

import pytest

from comfyloop.gate.statistics import wilson
from comfyloop.serve.api.votes import standings
from comfyloop.store.votes import Tally
from tests.unit.web.conftest import Studio


def test_wilson_knows_how_little_few_votes_say() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(3, 3)
    assert low == pytest.approx(0.4385, abs=1e-4) and high == 1.0
    assert wilson(90, 100)[0] == pytest.approx(0.8256, abs=1e-4)


def test_versions_are_ranked_by_the_share_that_is_sure() -> None:
    found = standings([Tally(1, 2, 0, 3, 1), Tally(1, 3, 10, 90, 0), Tally(0, 4, 0, 0, 2)])
    assert [one.version for one in found] == [3, 2, 1, 4, 0]
    assert (found[0].won, found[0].lost, found[0].share) == (90, 10, 0.9)
    assert (found[3].share, found[3].equal) == (None, 2)


def test_a_vote_counts_once_and_can_be_taken_back(studio: Studio) -> None:
    http = studio.http
    vote = {"id": "vote_1", "project": "acme", "versions": [4, 1], "chosen": 4}
    assert http.post("/v1/votes", json=vote).json() == {"id": "vote_1", "new": True}
    assert http.post("/v1/votes", json=vote).json() == {"id": "vote_1", "new": False}
    equal = {"id": "vote_2", "project": "acme", "versions": [1, 4], "chosen": None}
    assert http.post("/v1/votes", json=equal).status_code == 201
    told = http.get("/v1/votes?project=acme").json()
    assert told["pairs"] == [[1, 4, 0, 1, 1]] or told["pairs"] == [
        {"first": 1, "second": 4, "for_first": 0, "for_second": 1, "equal": 1}
    ]
    assert [one["version"] for one in told["standings"]] == [4, 1]
    page = studio.page("/versions/blind?a=1&b=4")
    assert "Blind votes" in page and "20% and 100%" not in page and "between 21% and 100%" in page
    assert "between 21% and 100%" in studio.page("/versions/compare?a=1&b=4")
    for wrong, status in (
        ({"versions": [1, 1], "chosen": 1}, 400),
        ({"versions": [1, 4], "chosen": 3}, 400),
        ({"versions": [1, 99], "chosen": 1}, 404),
    ):
        assert http.post("/v1/votes", json={"project": "acme", **wrong}).status_code == status
    for id in ("vote_1", "vote_2"):
        assert http.delete(f"/v1/votes/{id}?project=acme").status_code == 200
    assert http.delete("/v1/votes/vote_1?project=acme").status_code == 404
    assert http.get("/v1/votes?project=acme").json() == {"standings": [], "pairs": []}
