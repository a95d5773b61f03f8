"""A canary answers its share of the conversations, each from beginning to end, and feedback tells which did."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.errors import Conflict
from comfyloop.records import Project
from comfyloop.serve.routing.aliases import answers
from comfyloop.store import generations
from tests.unit.serve.gateway import Gateway
from tests.unit.serve.test_serve_router import eventually, in_engine


@given(st.text(min_size=1), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_conversation_stays_where_it_is_and_a_larger_share_only_adds(
    conversation: str, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    project = Project(name="acme", base_model="m", live=1, canary=2, canary_share=low)
    wider = project.model_copy(update={"canary_share": high})
    assert answers(project, conversation) == answers(project, conversation)
    if answers(project, conversation) == 2:
        assert answers(wider, conversation) == 2


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_the_share_is_the_one_that_was_asked_for(share: float) -> None:
    project = Project(name="acme", base_model="m", live=1, canary=2, canary_share=share)
    drawn = [answers(project, f"conversation {i}") for i in range(4000)]
    assert drawn.count(2) / len(drawn) == pytest.approx(share, abs=0.03)


def test_a_canary_answers_beside_the_live_version_until_it_is_promoted(gateway: Gateway) -> None:
    gateway.add_version(1)
    gateway.add_version(2)
    gateway.services.router.promote("acme", 1)
    started = gateway.http.post("/v1/versions/2/promote", params={"canary": 0.5})
    assert started.status_code == 200 and started.json()["number"] == 1  # live is what it was
    listed = gateway.http.get("/v1/versions").json()
    assert (listed["live"], listed["canary"], listed["canary_share"]) == (1, 2, 0.5)

    said: dict[str, set[str]] = {}
    for turn in range(3):
        for user in range(20):
            answer = gateway.ask(user=f"user-{user}", text=f"turn {turn}", max_tokens=1)
            version = answer.headers["x-comfyloop-version"]
            said.setdefault(f"user-{user}", set()).add(version)
            with gateway.store.read() as conn:
                recorded = generations.get(conn, answer.json()["id"])
            assert f"acme@{recorded.version}" == version
            assert answer.json()["choices"][0]["message"]["content"] == recorded.answer
    assert all(len(versions) == 1 for versions in said.values()), "a client hears one version"
    assert {version for versions in said.values() for version in versions} == {"acme@1", "acme@2"}

    gateway.services.router.promote("acme", 2)
    assert {gateway.said(user=f"user-{user}", max_tokens=1) for user in range(20)} == {"acme-v2"}
    assert gateway.services.router.project("acme").canary_share == 0


def test_a_canary_is_taken_back(gateway: Gateway) -> None:
    gateway.add_version(1)
    router = gateway.services.router
    router.canary("acme", 1, 0.9)
    assert "acme-v1" in {gateway.said(user=f"user-{user}", max_tokens=1) for user in range(10)}
    router.canary("acme", 1, 0.0)
    assert {gateway.said(user=f"user-{user}", max_tokens=1) for user in range(10)} == {"base"}
    eventually(lambda: in_engine(gateway) == set())


def test_turns_of_a_conversation_stay_together_without_a_name(gateway: Gateway) -> None:
    gateway.add_version(1)
    gateway.services.router.canary("acme", 1, 0.5)
    heard = set()
    for number in range(12):
        messages = [{"role": "user", "content": f"question {number}"}]
        versions = set()
        for _ in range(3):
            body = {"model": "acme", "messages": messages, "max_tokens": 1}
            answer = gateway.http.post("/v1/chat/completions", json=body)
            versions.add(answer.headers["x-comfyloop-version"])
            messages += [{"role": "assistant", "content": "so"}, {"role": "user", "content": "and then?"}]
        assert len(versions) == 1
        heard |= versions
    assert heard == {"acme@base", "acme@1"}


def test_the_live_version_cannot_be_its_own_canary(gateway: Gateway) -> None:
    gateway.add_version(1)
    gateway.services.router.promote("acme", 1)
    with pytest.raises(Conflict, match="is live"):
        gateway.services.router.canary("acme", 1, 0.1)
    assert gateway.http.post("/v1/versions/1/promote", params={"canary": 1.5}).status_code == 400
