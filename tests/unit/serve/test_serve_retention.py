"""What old turns left goes, and nothing that is in use, or that a rollback or a judgement needs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from comfyloop import integrity
from comfyloop.loop import retention
from comfyloop.loop.lease import lease_of, this_process
from comfyloop.records import BASE, Project, Pruned, Run, RunState, Snapshot, Version
from comfyloop.settings import Settings
from comfyloop.store import Store, leases, open_store, projects, runs, snapshots, versions
from tests.unit.serve.gateway import Gateway


def turn(store: Store, home: Path, number: int, parent: int, text: str | None = None) -> None:
    """What one turn leaves; `text`: the adapter that it takes over from its parent."""
    run, snapshot = f"run_{number}", f"snapshot-{number}"
    for folder in (home / "runs" / run, home / "snapshots" / snapshot):
        folder.mkdir(parents=True)
        (folder / "data").write_bytes(b"x" * 1000)
    side = integrity.folder(home, "acme", number) / ("image" if text else "text")
    side.mkdir(parents=True)
    (side / "adapter_config.json").write_text(str(number))
    with store.begin() as conn:
        snapshots.add(conn, Snapshot(id=snapshot, project="acme", path="", train=1, holdout=0, replay=0))
        made = Run(id=run, project="acme", snapshot=snapshot, recipe="sft", path=str(home / "runs" / run))
        runs.add(conn, made)
        for state in (RunState.RUNNING, RunState.SUCCEEDED):
            runs.set_state(conn, run, state)
        versions.add(
            conn,
            Version(
                project="acme",
                number=number,
                parent=parent,
                snapshot=snapshot,
                run=run,
                text_adapter=text or str(side),
                image_adapter=str(side) if text else None,
                sha256=integrity.hash_of(side),
            ),
        )


@given(st.integers(min_value=0, max_value=2**32), st.integers(1, 4), st.integers(1, 4))
@hypothesis_settings(max_examples=15)
def test_whatever_was_promoted_and_rolled_back_everything_in_use_stays(
    tmp_path_factory: pytest.TempPathFactory, seed: int, keep_versions: int, keep_runs: int
) -> None:
    chance = random.Random(seed)
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, keep_versions=keep_versions, keep_runs=keep_runs)
    with open_store(settings) as store:
        with store.begin() as conn:
            projects.add(conn, Project(name="acme", base_model="starter"))
        for number in range(1, 13):
            with store.read() as conn:
                live = projects.get(conn, "acme").live
                before = versions.find(conn, "acme", live) if live != BASE else None
            text = before.text_adapter if before is not None and chance.random() < 0.4 else None
            turn(store, home, number, live, text)
            with store.begin() as conn:
                if chance.random() < 0.5:
                    versions.promote(conn, "acme", number)
                elif chance.random() < 0.3 and len(versions.trail(conn, "acme")) > 1:
                    versions.rollback(conn, "acme")
        would = retention.prune(store, settings, dry_run=True)
        assert retention.prune(store, settings) == would
        assert retention.prune(store, settings) == Pruned()
        with store.read() as conn:
            found = projects.get(conn, "acme")
            every = {version.number: version for version in versions.list_by(conn, "acme")}
            needed = {*versions.trail(conn, "acme"), *sorted(every)[-keep_versions:], found.live} - {BASE}
            for number in needed:
                integrity.check(conn, every[number])
                assert (home / "snapshots" / every[number].snapshot / "data").exists()
            at = found.live
            while at != BASE:  # the live one's line
                integrity.check(conn, every[at])
                at = every[at].parent
        gone = {
            f"acme@{number}" for number in every if integrity.pruned(integrity.folder(home, "acme", number))
        }
        assert gone == set(would.versions)
        left = {path.name for path in (home / "runs").iterdir()}
        assert left == {f"run_{n}" for n in range(1, 13)} - set(would.runs)
        assert {f"run_{n}" for n in range(13 - keep_runs, 13)} <= left
        assert found.live == BASE or f"run_{found.live}" in left


def test_it_is_asked_for_over_http_and_what_is_gone_is_said_to_be(gateway: Gateway) -> None:
    home = gateway.services.settings.home
    for number in range(1, 6):
        turn(gateway.store, home, number, 0)
    gateway.services.router.promote("acme", 1)
    few = {"keep_versions": 1, "keep_runs": 2}
    controller = gateway.controller
    controller.settings = controller.settings.model_copy(update=few)
    would = gateway.http.post("/v1/prune", params={"dry_run": True}).json()
    assert would["versions"] == ["acme@2", "acme@3", "acme@4"] and (home / "runs" / "run_1").exists()
    owner = this_process()
    with gateway.store.begin() as conn:
        assert leases.acquire(conn, lease_of("acme"), owner, 60)
    assert gateway.http.post("/v1/prune").json()["busy"] == ["acme"]
    with gateway.store.begin() as conn:
        leases.release(conn, lease_of("acme"), owner)
    done = gateway.http.post("/v1/prune").json()
    assert done == would and done["runs"] == ["run_3", "run_2"] and done["bytes"] > 4000
    assert {path.name for path in (home / "snapshots").iterdir()} == {f"snapshot-{n}" for n in (1, 4, 5)}
    asked = gateway.ask("acme@3")
    assert asked.status_code == 404 and "keep_versions" in asked.text
    assert gateway.http.post("/v1/versions/3/promote").status_code == 404
    assert gateway.http.get("/v1/versions/3").status_code == 200
    assert gateway.http.get("/v1/runs/run_1/log").json()["lines"] == []
    ids = {model["id"] for model in gateway.http.get("/v1/models").json()["data"]}
    assert "acme@3" not in ids and {"acme@1", "acme@5"} <= ids
    assert gateway.said("acme", max_tokens=1) == "acme-v1"
