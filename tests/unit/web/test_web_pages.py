"""The pages as a browser gets them, from the real application over a real store."""

from __future__ import annotations

import gzip
import json
import re
import tomllib
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from comfyloop.models.memory import GIB, Machine, MemoryPlan, Need, Way
from comfyloop.records import Project
from comfyloop.serve.api import sessions
from comfyloop.settings import Settings
from comfyloop.store import projects, runs, snapshots, versions
from comfyloop.train.run.directory import RunDirectory
from comfyloop.web import assets
from tests.conftest import REPOSITORY
from tests.unit.web.conftest import PAGE, Studio, open_studio

SNAPSHOT = f"/data/snapshots/{4:064x}"
PAGES = [
    *("/", "/queue", "/queue?view=grid&state=decided", "/data", "/data/feedback", SNAPSHOT),
    *(f"{SNAPSHOT}?beside={3:064x}", "/runs", "/runs/run_4"),
    *(
        "/versions/blind?a=3&b=4",
        "/versions",
        "/versions/0",
        "/versions/4",
        "/versions/5",
        "/versions/compare?a=3&b=4",
        "/settings",
    ),
]
VENDOR = assets.FOLDER / "vendor"
BUDGET = 250_000
"""Bytes that a page may weigh with all that it loads, as they are sent."""


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole_in_both_languages(studio: Studio, path: str, language: str) -> None:
    html = studio.page(path, **{"Accept-Language": language})
    assert html.count("<h1") == 1 and html.count('aria-current="page"') == 1
    assert f'lang="{"zh-Hans" if language == "zh" else "en"}"' in html
    assert not re.search(r"\{\{|\{%|\bNone\b|Undefined", html)
    # nothing of other servers, no style and no script that the policy would refuse
    assert not re.search(r"(src|href)=.https?:", html) and " style=" not in html and " onclick" not in html
    policy = studio.http.get(path, headers=PAGE).headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy


@pytest.mark.parametrize("path", PAGES)
def test_a_page_and_all_that_it_loads_weigh_little(studio: Studio, path: str) -> None:
    def packed(address: str) -> bytes:
        with studio.http.stream("GET", address, headers=PAGE | {"Accept-Encoding": "gzip"}) as answer:
            assert answer.status_code == 200, address
            return b"".join(answer.iter_raw())

    page = packed(path)
    html = gzip.decompress(page).decode()
    found = set(re.findall(r'"(/static/[^"#]+)', html))
    found |= {f"/static/vendor/{font.name}" for font in VENDOR.glob("*.woff2")}
    for script in [name for name in found if name.partition("?")[0].endswith(".js") and "vendor" not in name]:
        imported = re.findall(r'from "\./([\w.]+)"', gzip.decompress(packed(script)).decode())
        found |= {f"/static/{name}" for name in imported}
    weights = {address: len(packed(address)) for address in found}
    assert len(page) + sum(weights.values()) <= BUDGET, weights


def test_home_says_what_is_live_what_waits_and_what_changed(studio: Studio) -> None:
    html = studio.page("/")
    assert (
        "Version 4 is live." in html
        and "7 of 12" in html
        and "5 more corrections start the next run." in html
    )
    assert "Version 5 is not proven yet." in html and "About 9 more held-out corrections" in html
    assert "closer to what you wanted, on 12 questions" in html
    assert html.count('<article class="example">') == 3 and "<ins>" in html
    assert re.search(r"You had to change \d+% of the answers in the first week, \d+% in the last one\.", html)


def test_home_of_a_new_project_says_how_it_begins(studio: Studio) -> None:
    html = studio.page("/?project=posters")
    assert "Nothing is learnt yet." in html and "comfyloop comfyui link" in html
    assert 'href="/versions?project=posters"' in html and "disabled" in html


def test_versions_are_shown_with_what_the_gate_said_and_the_way_back(studio: Studio) -> None:
    html = studio.page("/versions")
    assert (
        "Back to v3" in html and html.count('data-call="POST /v1/versions/') == 3
    )  # not of live, not of rejected
    assert "worse on your corrections" in html
    report = studio.page("/versions/4")
    assert report.count('<svg class="interval') == 7 and "about caption, coffee, mug" in report
    assert "Got better" in report and '<img class="thumb" src="/v1/images/' in report
    refused = studio.page("/versions/2")
    assert "promote?project=acme&amp;force=true" in refused and "Make live all the same" in refused


def test_two_versions_stand_side_by_side_on_what_both_were_asked(studio: Studio) -> None:
    html = studio.page("/versions/compare?a=1&b=4")
    assert html.count('<article class="sides">') == 12 and "<del>" in html
    assert "No question in common" not in html
    assert studio.page("/versions/compare?a=1&b=99", 404)


def test_a_snapshot_shows_near_copies_around_what_stayed(studio: Studio) -> None:
    html = studio.page(SNAPSHOT)
    copies = html[html.index('id="copies"') : html.index('id="copies"') + 20_000]
    assert "4 copies" in copies and "Stayed" in copies and copies.count('class="example piece"') >= 5


def test_runs_show_their_curve_and_what_came_of_them(studio: Studio) -> None:
    html = studio.page("/runs")
    assert html.count("<polyline") == 5 and "→ v4" in html
    run = studio.page("/runs/run_4")
    assert 'data-log="/v1/runs/run_4/log"' in run and "/hold" not in run  # it is over
    # a run's own project counts, whatever the address says
    assert 'data-project="acme"' in studio.page("/runs/run_4?project=posters")


def test_what_is_not_there_is_said_on_a_page_and_in_json_to_programs(studio: Studio) -> None:
    assert "Nothing is here" in studio.page("/nowhere", 404)
    assert "no version 99" in studio.page("/versions/99", 404)
    assert "no project" in studio.page("/?project=nobody", 404)
    assert studio.page("/versions/many", 400)
    assert studio.http.get("/nowhere").json()["error"]["code"] == "not_found"
    assert studio.http.get("/v1/versions/99", headers=PAGE).json()["error"]["code"] == "not_found"


def test_what_people_wrote_is_text_and_no_markup(tmp_path: Path) -> None:
    with open_studio(Settings(home=tmp_path / "home", project="acme", port=0)) as studio:
        with studio.store.begin() as conn:
            report = versions.get(conn, "acme", 4).gate
            assert report is not None
            bad = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
            item = report.items[0].model_copy(
                update={"question": bad, "reference": bad, "live_answer": bad, "candidate_answer": bad + " b"}
            )
            changed = report.model_copy(update={"items": (item, *report.items[1:]), "reasons": (bad,)})
            versions.set_gate(conn, "acme", 4, changed)
        for path in ("/", "/versions", "/versions/4", "/versions/compare?a=3&b=4"):
            html = studio.page(path)
            assert "<script>alert" not in html and "<img src=x" not in html


def test_a_browser_signs_in_once_and_a_program_sends_the_token(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", project="acme", port=0, token="right")
    with open_studio(settings, furnished=False) as studio:
        from comfyloop.records import Project
        from comfyloop.store import projects

        with studio.store.begin() as conn:
            projects.ensure(conn, Project(name="acme", base_model="starter"))
        studio.services.router.refresh()
        http = studio.http
        led = http.get("/versions?project=acme", headers=PAGE)
        assert (
            led.status_code == 303 and led.headers["location"] == "/sign-in?next=%2Fversions%3Fproject%3Dacme"
        )
        assert (
            http.get("/versions").status_code == 401
            and http.get("/v1/versions", headers=PAGE).status_code == 401
        )
        assert http.get("/static/desk.css").status_code == 200
        form = {"token": "wrong", "next": "/versions?project=acme"}
        refused = http.post("/sign-in", data=form)
        assert refused.status_code == 401 and "set-cookie" not in refused.headers
        assert 'value="/versions?project=acme"' in http.get("/sign-in?next=/versions%3Fproject%3Dacme").text

        came = http.post("/sign-in", data=form | {"token": " right "})
        assert came.status_code == 303 and came.headers["location"] == "/versions?project=acme"
        cookie = came.headers["set-cookie"]
        assert "httponly" in cookie.lower() and "samesite=" in cookie.lower() and "right" not in cookie
        assert "Sign out" in studio.page("/versions") and http.get("/v1/versions").status_code == 200
        with http.websocket_connect("ws://127.0.0.1:8265/v1/events"):
            pass
        # the session is no password for pages of others
        assert http.post("/v1/loop", headers={"Origin": "http://127.0.0.1:8188"}).status_code == 403

        http.post("/sign-out")
        assert http.get("/", headers=PAGE).status_code == 303
        for elsewhere in ("https://evil.example", "//evil.example", "/\\evil.example", "/a\r\nb"):
            led = http.post("/sign-in", data={"token": "right", "next": elsewhere})
            assert led.headers["location"] == "/"


def test_a_session_ends_with_its_time_and_with_its_token() -> None:
    begun = sessions.begin("right", now=1000)
    assert sessions.holds(begun, "right", now=1000 + sessions.SECONDS - 1)
    assert not sessions.holds(begun, "right", now=1000 + sessions.SECONDS)
    assert not sessions.holds(begun, "another", now=1001)
    until, _, signature = begun.partition(".")
    for forged in (
        "",
        ".",
        until,
        f"{int(until) + 1}.{signature}",
        f"{until}.{'0' * 64}",
        f"٣.{signature}",
        "1.ü",
    ):
        assert not sessions.holds(forged, "right", now=1001)


def test_assets_are_kept_until_their_content_is_another(studio: Studio) -> None:
    http: TestClient = studio.http
    address = assets.address("desk.css")
    answer = http.get(address)
    assert "immutable" in answer.headers["cache-control"] and answer.headers["content-type"].startswith(
        "text/css"
    )
    assert http.get("/static/desk.css").headers["cache-control"] == "no-cache"
    again = http.get(address, headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    for path in ("/static/nothing.css", "/static/../desk.py", "/static/%2e%2e/desk.py"):
        assert http.get(path).status_code == 404


def test_every_bundled_file_is_named_with_version_licence_and_hash() -> None:
    told = tomllib.loads((VENDOR / "vendor.toml").read_text("utf-8"))
    there = {path.name for path in VENDOR.iterdir()} - {"vendor.toml", "LICENSES.txt"}
    assert set(told) == there
    import hashlib

    licences = (VENDOR / "LICENSES.txt").read_text("utf-8")
    for name, entry in told.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == entry["sha256"], name
        assert entry["package"] and entry["version"] and entry["licence"] in {"0BSD", "MIT", "OFL-1.1"}
        assert entry["package"] in licences
    notice = (REPOSITORY / "NOTICE").read_text("utf-8")
    assert "static/vendor" in notice


def test_settings_say_how_the_machine_is_and_who_changed_what(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    with open_studio(Settings(home=tmp_path / "home", project="acme", port=0)) as studio:
        assert "Nothing was changed yet." in studio.page("/settings")
        studio.http.patch("/v1/projects/acme", json={"auto": False}).raise_for_status()
        studio.http.post("/v1/versions/9/promote")
        page = studio.page("/settings")
        assert "Changed a project" in page and "refused (503)" in page and "no token is asked" in page
        well = studio.page("/settings/doctor")
        assert "SQLite" in well and "This machine alone reaches 127.0.0.1" in well
        assert "is free" not in well  # the service asks itself
        zh = studio.page("/settings/doctor", **{"Accept-Language": "zh"})
        assert "可写" in zh and "只有本机能访问" in zh and not re.search(r"[a-z]{4,} [a-z]{4,} [a-z]{4,}", zh)


def test_what_fits_into_memory_is_worked_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_studio(Settings(home=tmp_path / "home", project="acme", port=0)) as studio:
        asked = []

        def plan_of(settings: Settings) -> MemoryPlan:
            asked.append(settings)
            machine = Machine("a card", "cuda", 24 * GIB)
            need = Need(weights=GIB, context=GIB // 2)
            return MemoryPlan(
                machine, Way(), {"serving": need}, {"batch_size": 2}, (("serving",), ("training",))
            )

        monkeypatch.setattr("comfyloop.web.settings.plan_of", plan_of)
        for _ in range(2):
            page = studio.page("/settings/plan")
        assert "24.0 GiB" in page and "Answering" in page and "1.50" in page and "batch_size = 2" in page
        assert len(asked) == 1
        monkeypatch.undo()
        # a model that is not there is said in a sentence
        nowhere = Settings(home=tmp_path / "other", project="acme", port=0, model=str(tmp_path / "no-model"))
    with open_studio(nowhere, furnished=False) as studio:
        with studio.store.begin() as conn:
            projects.ensure(conn, Project(name="acme", base_model="starter"))
        studio.services.router.refresh()
        assert "No plan can be made of" in studio.page("/settings/plan")


def test_the_rows_behind_a_step_are_shown(tmp_path: Path) -> None:
    with open_studio(Settings(home=tmp_path / "home", project="acme", port=0)) as studio:
        assert "was not written down" in studio.page("/runs/run_4?step=3")
        with studio.store.read() as conn:
            run, snapshot = runs.get(conn, "run_4"), snapshots.get(conn, "acme", f"{4:064x}")
        asked = [
            {
                "id": f"s{n}",
                "messages": [
                    {"role": "user", "content": f"Question {n}"},
                    {"role": "assistant", "content": "Yes"},
                ],
            }
            for n in range(3)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in asked)
        (Path(snapshot.path) / "train.jsonl").write_text(lines, "utf-8")
        told = RunDirectory(run.path)
        rows = [
            {"step": 3, "rows": {"s0": 1.0}},
            {"step": 3, "rows": {"s1": 0.5, "s2": 7.25}},
            {"step": 4, "rows": {"s0": 2.0}},
        ]
        told.step_rows.write_text(
            "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "ro', "utf-8"
        )
        page = studio.page("/runs/run_4?step=3")
        behind = page[page.index('id="behind"') :]
        assert "What step 3 was made of" in behind and "7.25" in behind
        assert behind.index("Question 2") < behind.index("Question 1") and "Question 0" not in behind
        with told.log_file.open("a", encoding="utf-8") as file:  # a spike at the end of the log
            file.write(json.dumps({"step": 41, "loss": 99.0}) + "\n")
        assert 'href="/runs/run_4?step=41#behind"' in studio.page("/runs/run_4")
