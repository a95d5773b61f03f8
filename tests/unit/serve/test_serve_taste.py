"""Taste over HTTP: how well it is known, and pictures in its order."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from PIL import Image

from comfyloop.settings import Settings
from tests.unit.serve.gateway import Gateway, instant, running_gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("taste")
    with running_gateway(Settings(home=home, project="acme", port=0), instant()) as running:
        yield running


def upload(gateway: Gateway, shade: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (shade, shade, shade)).save(buffer, "PNG")
    answer = gateway.http.post("/v1/images", content=buffer.getvalue(), headers={"content-type": "image/png"})
    return str(answer.json()["sha256"])


def test_the_best_comes_first_once_a_taste_is_known(gateway: Gateway) -> None:
    shown = [upload(gateway, shade) for shade in (230, 20, 120)]
    before = gateway.http.post("/v1/taste/rank", json={"images": shown}).json()
    assert [one["sha256"] for one in before["images"]] == shown
    assert not before["taste"]["known"] and "at least 4" in before["taste"]["sentence"]
    for number in range(5):
        pick = {
            "kind": "image_picked", "project": "acme", "prompt": "a mug",
            "picked": [upload(gateway, number)], "over": [upload(gateway, 200 + number)],
        }  # fmt: skip
        assert gateway.http.post("/v1/feedback", json=pick).status_code == 201
    taste = gateway.http.get("/v1/taste").json()
    assert (taste["known"], taste["comparisons"], taste["win_rate"]) == (True, 5, 1.0)
    after = gateway.http.post("/v1/taste/rank", json={"images": shown}).json()
    assert [one["sha256"] for one in after["images"]] == [shown[1], shown[2], shown[0]]
    scores = [one["score"] for one in after["images"]]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]


def test_what_is_not_there_is_said(gateway: Gateway) -> None:
    answer = gateway.http.post("/v1/taste/rank", json={"images": ["0" * 64]})
    assert answer.status_code == 404 and "There is no image" in answer.json()["error"]["message"]
    assert gateway.http.post("/v1/taste/rank", json={"images": []}).status_code == 400
    assert gateway.http.post("/v1/taste/rank?project=none", json={"images": ["0" * 64]}).status_code == 404
