"""All rows of a listing, page by page."""

from __future__ import annotations

import pytest

from comfyloop.records import Project, Run, RunState, Version
from comfyloop.settings import Settings
from comfyloop.store import open_store, pages, projects, runs, versions


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5])
def test_every_row_comes_once_newest_first_though_they_are_changed_meanwhile(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(pages, "PAGE", 2)
    with open_store(settings) as store:
        with store.begin() as conn:
            for name in ("acme", "other"):
                projects.ensure(conn, Project(name=name, base_model="m"))
                for number in range(count):
                    id = f"{name}-{number}"
                    runs.add(conn, Run(id=id, project=name, snapshot="s", recipe="sft", path=id))
                    versions.add(conn, Version(project=name, number=number + 1))
        seen = []
        for run in pages.every(store, runs.list_by, "acme", lambda run: run.id):
            with store.begin() as conn:
                runs.set_state(conn, run.id, RunState.CANCELLED)
            seen.append(run.id)
        assert seen == [f"acme-{number}" for number in reversed(range(count))]
        numbers = [v.number for v in pages.every(store, versions.list_by, "acme", lambda v: v.number)]
        assert numbers == list(range(count, 0, -1))
