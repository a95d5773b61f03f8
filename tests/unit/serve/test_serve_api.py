"""The nouns over HTTP, and what is refused before it reaches one."""

from __future__ import annotations

import hashlib
import io
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from comfyloop import __version__, curate
from comfyloop.errors import Conflict, InvalidInput
from comfyloop.media import data_urls
from comfyloop.records import GateItem, GateReport, Run, RunState, Snapshot, Verdict, Version
from comfyloop.serve.api.server import bind
from comfyloop.serve.routing.traffic import Traffic
from comfyloop.settings import Settings
from comfyloop.store import lessons, runs, snapshots, versions
from tests.unit.serve.gateway import Gateway, instant, running_gateway


def error(response: httpx.Response) -> dict[str, object]:
    body = response.json()["error"]
    assert set(body) == {"message", "hint", "mend", "code", "type", "param"}
    return dict(body)


def test_feedback_is_stored_once_and_deleted_by_its_author(gateway: Gateway) -> None:
    id = gateway.ask().json()["id"]
    item = {
        "kind": "answer_edited",
        "id": "fb-1",
        "project": "acme",
        "generation": id,
        "edited": "Aloha!",
        "author": "kim",
    }
    first = gateway.http.post("/v1/feedback", json=item)
    assert first.status_code == 201 and first.json() == {"stored": ["fb-1"], "duplicates": []}
    again = gateway.http.post("/v1/feedback", json={"items": [item]})
    assert again.json() == {"stored": [], "duplicates": ["fb-1"]}
    page = gateway.http.get("/v1/feedback", params={"limit": 1}).json()
    assert [i["edited"] for i in page["items"]] == ["Aloha!"]
    rest = gateway.http.get("/v1/feedback", params={"after": page["next_after"]}).json()
    assert rest == {"items": [], "next_after": None}
    unknown = gateway.http.post("/v1/feedback", json={**item, "id": "fb-2", "generation": "gen-x"})
    assert unknown.status_code == 404 and "gen-x" in str(error(unknown)["message"])
    answer = gateway.http.get(f"/v1/generations/{id}").json()["answer"]
    same = gateway.http.post("/v1/feedback", json={**item, "id": "fb-3", "edited": answer})
    assert same.status_code == 400 and "accepted" in str(error(same)["message"])
    assert gateway.http.delete("/v1/feedback", params={"author": "kim"}).json() == {"deleted": 1}
    assert gateway.http.get("/v1/feedback").json()["items"] == []


def png(seed: int) -> str:
    """A picture that no perceptual hash takes for another one, as a data URL."""
    dots = random.Random(seed).choices((0, 255), k=64)
    picture = Image.new("L", (8, 8))
    picture.putdata(dots)
    out = io.BytesIO()
    picture.resize((64, 64), Image.Resampling.NEAREST).save(out, "PNG")
    return data_urls.encode(out.getvalue())


def test_what_is_forgotten_is_nowhere_any_more(gateway: Gateway) -> None:
    """Not in the feedback, in no version that answers, in no file of a snapshot and in no report of the gate."""
    for number, author in enumerate(("kim", "kim", "ann", "ann")):
        pictures = [{"type": "image_url", "image_url": {"url": png(number)}}] if number in (0, 3) else []
        asked = [*pictures, {"type": "text", "text": f"question {number}"}]
        told = gateway.ask(messages=[{"role": "user", "content": asked}]).json()["id"]
        item = {"kind": "answer_edited", "id": f"fb-{number}", "project": "acme", "generation": told}
        sent = gateway.http.post(
            "/v1/feedback", json=item | {"edited": f"Secret {author} {number}.", "author": author}
        )
        assert sent.status_code == 201
    settings = gateway.services.settings.model_copy(update={"holdout_first": 0, "holdout_every": 2})
    made = curate.build(gateway.store, "acme", settings)
    assert isinstance(made, Snapshot) and made.train == made.holdout == 4
    held = curate.read_samples(Path(made.path) / "holdout.jsonl", "acme")
    items = tuple(
        GateItem(sample=s.id, slice="text", question=s.prompt[0].text, reference=s.answer) for s in held
    )
    gateway.add_version(1)
    gateway.http.post("/v1/versions/1/promote")
    with gateway.store.begin() as conn:
        lessons.add(conn, "acme", 1, made.feedback)
        report = GateReport(
            project="acme", live=0, candidate=1, verdict=Verdict.PROMOTE, reasons=("So.",), items=items
        )
        versions.set_gate(conn, "acme", 1, report)

    def everywhere() -> str:
        files = "".join(file.read_text() for file in Path(made.path).glob("*.json*"))
        return files + gateway.http.get("/v1/versions/1").text + gateway.http.get("/v1/feedback").text

    assert len(list((Path(made.path) / "images").iterdir())) == 2
    assert everywhere().count("Secret kim") >= 4
    done = gateway.http.post("/v1/forget", json={"author": "kim"}).json()
    assert (done["feedback"], done["versions"], done["live"]) == (["fb-0", "fb-1"], [1], 0)
    assert "Secret kim" not in everywhere() and "Secret ann" in everywhere()
    assert len(list((Path(made.path) / "images").iterdir())) == 1
    left = curate.read_samples(Path(made.path) / "holdout.jsonl", "acme")
    assert [sample.answer for sample in left] == ["Secret ann 3."]
    again = gateway.http.post("/v1/forget", json={"author": "kim"})
    assert again.status_code in (200, 404), again.text


def test_what_is_not_feedback_is_told_field_by_field(gateway: Gateway) -> None:
    response = gateway.http.post("/v1/feedback", json={"kind": "answer_liked", "project": "acme"})
    assert response.status_code == 400
    assert "answer_liked" in str(error(response)["message"])


def test_projects_are_made_changed_and_answer_at_once(gateway: Gateway) -> None:
    made = gateway.http.post("/v1/projects", json={"name": "pets", "system_prompt": "Purr."})
    assert made.status_code == 201 and made.json()["base_model"] == gateway.services.settings.model
    assert gateway.http.post("/v1/projects", json={"name": "pets"}).status_code == 409
    assert gateway.said("pets", max_tokens=1) == "base"
    changed = gateway.http.patch("/v1/projects/pets", json={"system_prompt": "Bark."}).json()
    assert changed["system_prompt"] == "Bark."
    generation = gateway.http.get("/v1/generations", params={"project": "pets"}).json()["items"][0]
    assert generation["messages"][0]["content"][0]["text"] == "Purr."
    bad = gateway.http.post("/v1/projects", json={"name": "base"})
    assert bad.status_code == 400 and "word of model names" in str(error(bad)["message"])
    other = gateway.http.post("/v1/projects", json={"name": "x", "base_model": "not/served"})
    assert other.status_code == 400 and "not/served" in str(error(other)["message"])
    missing = gateway.http.get("/v1/projects/nope")
    assert missing.status_code == 404 and "acme, pets" in str(error(missing)["message"])
    assert [p["name"] for p in gateway.http.get("/v1/projects").json()["items"]] == ["acme", "pets"]


def test_generations_are_listed_newest_first_by_page(gateway: Gateway) -> None:
    ids = [gateway.ask(text=f"question {n}").json()["id"] for n in range(5)]
    first = gateway.http.get("/v1/generations", params={"limit": 3}).json()
    second = gateway.http.get("/v1/generations", params={"limit": 3, "before": first["next_before"]}).json()
    assert [g["id"] for g in first["items"] + second["items"]] == ids[::-1]
    assert second["next_before"] is None


def test_versions_are_listed_and_rolled_back(gateway: Gateway) -> None:
    gateway.add_version(1)
    assert gateway.http.post("/v1/versions/1/promote").json()["previous"] == 0
    listed = gateway.http.get("/v1/versions").json()
    assert listed["live"] == 1 and [(v["number"], v["state"]) for v in listed["items"]] == [(1, "live")]
    assert gateway.http.post("/v1/rollback").json()["number"] == 0
    assert gateway.http.get("/v1/versions/1").json()["state"] == "retired"
    back = gateway.http.post("/v1/rollback", json={"to": 1})
    assert back.json()["number"] == 1
    assert gateway.http.get("/v1/versions/7").status_code == 404
    assert gateway.http.post("/v1/versions/7/promote").status_code == 404


def test_a_run_shows_progress_and_log_and_can_be_followed(gateway: Gateway, tmp_path: Path) -> None:
    with gateway.store.begin() as conn:
        snapshots.add(
            conn, Snapshot(id="s1", project="acme", path=str(tmp_path), train=3, holdout=1, replay=0)
        )
        runs.add(conn, Run(id="run-1", project="acme", snapshot="s1", recipe="sft", path=str(tmp_path)))
        runs.set_state(conn, "run-1", RunState.RUNNING)
    assert gateway.http.get("/v1/runs/run-1").json()["status"] is None
    lines = [{"step": n, "loss": 5.0 / n} for n in (1, 2, 3)]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]) + '{"step": 3, "lo')
    (tmp_path / "status.json").write_text(json.dumps({"state": "running", "step": 2}))
    assert gateway.http.get("/v1/runs/run-1").json()["status"]["step"] == 2
    part = gateway.http.get("/v1/runs/run-1/log").json()
    assert part["lines"] == lines[:2]  # the third is still being written
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rest = gateway.http.get("/v1/runs/run-1/log", params={"offset": part["next_offset"]}).json()
    assert rest["lines"] == lines[2:]
    assert gateway.http.get("/v1/runs/run-1/log", params={"tail": 1}).json()["lines"] == lines[2:]
    assert gateway.http.post("/v1/runs/run-1/hold").status_code == 202
    assert (tmp_path / "hold").exists()
    assert gateway.http.post("/v1/runs/run-1/resume").status_code == 202
    assert not (tmp_path / "hold").exists()

    assert gateway.http.post("/v1/runs/run-1/cancel").status_code == 202
    assert (tmp_path / "cancel").exists()
    (tmp_path / "status.json").write_text(json.dumps({"state": "cancelled", "step": 3}))
    followed = gateway.http.get("/v1/runs/run-1/log", params={"follow": True})
    assert followed.text.count("data: ") == 4 and "event: end" in followed.text
    assert followed.headers["x-accel-buffering"] == "no"  # nginx passes it on line by line
    with gateway.store.begin() as conn:
        runs.set_state(conn, "run-1", RunState.CANCELLED)
    over = gateway.http.post("/v1/runs/run-1/cancel")
    assert over.status_code == 409 and "is over" in str(error(over)["message"])
    (tmp_path / "report.json").write_text('{"kept": 4}')
    assert gateway.http.get("/v1/snapshots/s1/report").json() == {"kept": 4}
    assert [s["id"] for s in gateway.http.get("/v1/snapshots").json()["items"]] == ["s1"]


def test_the_file_of_an_image_adapter_is_served_once_for_its_content(
    gateway: Gateway, tmp_path: Path
) -> None:
    file = tmp_path / "ink.safetensors"
    file.write_bytes(b"tensors of a LoRA")
    with gateway.store.begin() as conn:
        versions.add(conn, Version(project="acme", number=1, image_adapter=str(file)))
        versions.add(conn, Version(project="acme", number=2, text_adapter=str(tmp_path)))
    first = gateway.http.get("/v1/versions/1/image-adapter")
    assert first.status_code == 200 and first.content == file.read_bytes()
    tag = first.headers["etag"]
    assert tag == f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"'
    again = gateway.http.get("/v1/versions/1/image-adapter", headers={"If-None-Match": tag})
    assert again.status_code == 304 and again.content == b""
    for number in (0, 2):
        none = gateway.http.get(f"/v1/versions/{number}/image-adapter")
        assert none.status_code == 404 and "has no image adapter" in str(error(none)["message"])
    file.unlink()
    gone = gateway.http.get("/v1/versions/1/image-adapter")
    assert gone.status_code == 404 and "gone from the disk" in str(error(gone)["message"])


def test_the_contact_sheet_of_a_gate_is_served(gateway: Gateway, tmp_path: Path) -> None:
    sheet = gateway.store.blobs.put(b"\x89PNG of both", "image/png")
    report = GateReport(
        project="acme", live=0, candidate=1, verdict=Verdict.PROMOTE, reasons=("better",), sheet=sheet
    )
    with gateway.store.begin() as conn:
        for number in (1, 2):
            versions.add(conn, Version(project="acme", number=number, text_adapter=str(tmp_path)))
        versions.set_gate(conn, "acme", 1, report)
    found = gateway.http.get("/v1/versions/1/sheet")
    assert (found.content, found.headers["content-type"]) == (b"\x89PNG of both", "image/png")
    none = gateway.http.get("/v1/versions/2/sheet")
    assert none.status_code == 404 and "has no contact sheet" in str(error(none)["message"])


def test_what_the_gate_said_is_shown_without_judging_again(gateway: Gateway, tmp_path: Path) -> None:
    report = GateReport(
        project="acme",
        live=0,
        candidate=1,
        verdict=Verdict.ASK,
        reasons=("Some got worse.",),
        next_step="Look at two answers.",
    )
    with gateway.store.begin() as conn:
        for number in (1, 2):
            versions.add(conn, Version(project="acme", number=number, text_adapter=str(tmp_path)))
        versions.set_gate(conn, "acme", 1, report)
    assert GateReport.model_validate(gateway.http.get("/v1/versions/1/gate").json()) == report
    none = gateway.http.get("/v1/versions/2/gate")
    assert none.status_code == 404 and "acme@2 was not judged yet" in str(error(none)["message"])


def test_who_is_busy_is_forgotten_after_the_lease(gateway: Gateway) -> None:
    clock = [100.0]
    gateway.services.router.traffic = Traffic(lambda: clock[0])
    said = gateway.http.post("/v1/busy", json={"who": "comfyui", "seconds": 5})
    assert said.status_code == 200 and said.json()["busy"] == ["comfyui"]
    gateway.http.post("/v1/busy", json={"who": "blender", "seconds": 50})
    clock[0] += 5.1
    assert gateway.http.get("/v1/busy").json()["busy"] == ["blender"]
    assert gateway.http.post("/v1/busy", json={"who": "blender", "seconds": 0}).json()["busy"] == []
    assert gateway.http.post("/v1/busy", json={"who": "x", "seconds": 1e9}).status_code == 400


def test_the_loop_is_asked_for_and_told(gateway: Gateway) -> None:
    loop = gateway.http.get("/v1/loop").json()
    assert loop["state"] == "idle" and loop["waiting"] == 0 and loop["trigger"] > 0
    id = gateway.ask().json()["id"]
    gateway.http.post(
        "/v1/feedback", json={"kind": "answer_accepted", "project": "acme", "generation": id}
    ).raise_for_status()
    assert gateway.http.get("/v1/loop").json()["waiting"] == 1
    assert gateway.http.get("/healthz").json() == {"status": "ok", "version": __version__}
    started = gateway.http.post("/v1/loop")
    assert started.status_code == 202 and started.json()["requested"] is True
    assert gateway.http.post("/v1/loop", json={"project": "nope"}).status_code == 404
    taken_back = gateway.http.post("/v1/loop/cancel")
    assert taken_back.status_code == 202 and taken_back.json()["requested"] is False
    idle = gateway.http.post("/v1/loop/cancel")
    assert idle.status_code == 409 and error(idle)["code"] == "conflict"


def test_events_arrive_over_the_websocket(gateway: Gateway) -> None:
    gateway.add_version(1)
    with connect(gateway.url.replace("http", "ws") + "/v1/events?project=acme") as socket:
        deadline = time.monotonic() + 5
        while not gateway.services.controller.events._listeners and time.monotonic() < deadline:
            time.sleep(0.01)
        gateway.services.router.promote("acme", 1)
        events = [json.loads(socket.recv(timeout=5)) for _ in range(2)]
    assert [event["type"] for event in events] == ["version.loaded", "version.promoted"]
    assert events[0]["seq"] < events[1]["seq"]


def test_metrics_count_requests_tokens_and_swaps(gateway: Gateway) -> None:
    gateway.add_version(1)
    gateway.ask(max_tokens=3)
    gateway.ask("nope")
    gateway.http.post("/v1/versions/1/promote")
    families = text_string_to_metric_families(gateway.http.get("/metrics").text)
    told = {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def of(name: str, **labels: str) -> float:
        return told[f"comfyloop_{name}", frozenset(labels.items())]

    chat = "/v1/chat/completions"
    assert (
        of("requests_total", route=chat, status="200") == of("requests_total", route=chat, status="404") == 1
    )
    assert of("tokens_total", project="acme", kind="answer") == 3
    assert of("live_version", project="acme") == of("ready", project="acme") == of("swaps_total") == 1
    assert of("request_seconds_bucket", route=chat, le="+Inf") == 2


def test_without_the_token_only_health_answers(settings: Settings) -> None:
    with running_gateway(settings.model_copy(update={"token": "secret"}), instant()) as gateway:
        assert gateway.http.get("/healthz").status_code == 200
        for path in ("/v1/models", "/metrics", "/readyz", "/openapi.json", "/nowhere"):
            refused = gateway.http.get(path)
            assert refused.status_code == 401 and error(refused)["code"] == "unauthorized"
            assert refused.headers["www-authenticate"] == "Bearer"
        assert gateway.http.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert gateway.http.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        socket_url = gateway.url.replace("http", "ws") + "/v1/events"
        with pytest.raises(InvalidStatus):
            connect(socket_url)
        with connect(f"{socket_url}?token=secret"):
            pass


def test_a_body_over_the_limit_is_refused_while_it_is_read(settings: Settings) -> None:
    sent = 0

    def chunks():  # type: ignore[no-untyped-def]
        nonlocal sent
        for _ in range(2000):
            sent += 10_000
            yield b"x" * 10_000

    with running_gateway(settings.model_copy(update={"max_body_bytes": 50_000}), instant()) as gateway:
        for path in ("/v1/chat/completions", "/v1/images"):
            announced = gateway.http.post(path, content=b"x" * 60_000)
            assert announced.status_code == 413 and error(announced)["code"] == "too_large"
            assert "50000" in str(error(announced)["message"])
        try:
            chunked = httpx.post(f"{gateway.url}/v1/images", content=chunks())
            assert chunked.status_code == 413
        except httpx.WriteError:  # closed while we were still sending
            pass
        assert sent < 20_000_000
        assert gateway.said(max_tokens=1) == "base"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"),
        (b'{"model": "acme", "messages": [', "not valid JSON"),
        (b"[" * 100_000, "parsing the body"),
        (b"\xff\xfe", "not UTF-8"),
        (b"null", "JSON object"),
        (b"[]", "JSON object"),
        (b'{"model": "acme", "messages": []}', "messages"),
        (b'{"model": "acme", "messages": [{"role": "user"}]}', ""),
        (b'{"model": "acme", "messages": [{"role": "tool", "content": "x"}]}', "role"),
        (b'{"model": "acme", "messages": [{"role": "assistant", "content": "x"}]}', "user"),
        (b'{"model": "acme", "messages": [{"role": "user", "content": "\\ud800"}]}', "half a character"),
        (b'{"model": "acme", "n": 9, "messages": [{"role": "user", "content": "x"}]}', "n:"),
        (
            b'{"model": "acme", "temperature": 9, "messages": [{"role": "user", "content": "x"}]}',
            "temperature",
        ),
        (b'{"model": "acme", "max_tokens": 0, "messages": [{"role": "user", "content": "x"}]}', "max_tokens"),
    ],
)
def test_broken_requests_are_refused_in_words(shared_gateway: Gateway, content: bytes, words: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = shared_gateway.http.post("/v1/chat/completions", content=content, headers=headers)
    if words:
        assert response.status_code == 400, response.text
        assert words in str(error(response)["message"])
    else:
        assert response.status_code == 200


def test_a_body_of_another_type_is_told_how_to_be_sent(gateway: Gateway) -> None:
    response = gateway.http.post("/v1/chat/completions", content=b'{"model": "acme"}')
    assert response.status_code == 400 and "Content-Type: application/json" in str(error(response)["hint"])


def test_text_over_the_limit_is_refused(settings: Settings) -> None:
    with running_gateway(settings.model_copy(update={"max_text_chars": 100}), instant()) as gateway:
        response = gateway.ask(text="x" * 101)
        assert response.status_code == 413 and "max_text_chars" in str(error(response)["message"])


def test_images_over_the_limits_are_refused(settings: Settings) -> None:
    limits = {"max_image_side": 50, "max_image_bytes": 5000}
    with running_gateway(settings.model_copy(update=limits), instant()) as gateway:
        file = io.BytesIO()
        Image.new("RGB", (51, 2)).save(file, "PNG")
        wide = gateway.http.post("/v1/images", content=file.getvalue())
        assert wide.status_code == 413 and "51" in str(error(wide)["message"])
        assert gateway.http.post("/v1/images", content=b"").status_code == 400
        assert gateway.http.post("/v1/images", content=b"\x89PNG" + b"x" * 6000).status_code == 413
        form = gateway.http.post("/v1/images", files={"picture": b"x"})
        assert form.status_code == 400 and "`file`" in str(error(form)["message"])
        assert gateway.http.get("/v1/images/" + "0" * 64).status_code == 404
        assert gateway.http.get("/v1/images/..%2f..%2fetc").status_code == 404


def test_routes_that_are_not_there_and_methods_that_do_not_fit(gateway: Gateway) -> None:
    assert error(gateway.http.get("/v2/models"))["code"] == "not_found"
    wrong = gateway.http.get("/v1/chat/completions")
    assert wrong.status_code == 405 and error(wrong)["code"] == "method_not_allowed"


def test_the_openapi_has_a_summary_and_errors_for_every_route(gateway: Gateway) -> None:
    schema = gateway.http.get("/openapi.json").json()
    operations = [op for path in schema["paths"].values() for op in path.values()]
    assert len(operations) > 25
    for operation in operations:
        assert operation["summary"] and "4XX" in operation["responses"], operation
    assert len({operation["operationId"] for operation in operations}) == len(operations)


def test_while_the_engine_starts_chat_is_told_to_wait(settings: Settings) -> None:
    with running_gateway(settings, instant("--start-seconds", 1.5), wait=False) as gateway:
        response = gateway.ask()
        assert response.status_code == 503 and response.headers["retry-after"] == "2"
        assert "loading its model" in str(error(response)["message"])
        assert gateway.http.get("/readyz").status_code == 503
        assert gateway.http.get("/healthz").status_code == 200
        assert gateway.http.get("/v1/versions").status_code == 200  # all but the engine is there


def test_a_port_in_use_is_one_sentence() -> None:
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with pytest.raises(Conflict, match=f"Port {port} on 127.0.0.1 is in use"):
        bind("127.0.0.1", port)
    listener.close()
    with pytest.raises(InvalidInput, match="no address"):
        bind("no.such.host.invalid", 0)


def test_the_gateway_loads_no_torch_and_starts_light() -> None:
    """In modules of others, which no machine changes; `bench/gateway.py` has the time that it takes to start."""
    script = """
import sys
import comfyloop.service, comfyloop.serve.api.server
heavy = {"torch", "transformers", "diffusers", "peft"} & set(sys.modules)
assert not heavy, heavy
print(sum(name.partition(".")[0] != "comfyloop" for name in sys.modules))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 980


@pytest.mark.parametrize(
    ("at", "status"),
    [
        ("2026-01-02T03:04:05", 201),
        ("2026-01-02T03:04:05+08:00", 201),
        (0, 201),
        ("0001-01-01T00:00:00+14:00", 400),
        ("9999-12-31T23:59:59-14:00", 400),
    ],
)
def test_times_of_every_kind_can_be_compared_or_are_refused(
    gateway: Gateway, at: object, status: int
) -> None:
    id = gateway.ask().json()["id"]
    item = {"kind": "answer_edited", "project": "acme", "generation": id}
    assert gateway.http.post("/v1/feedback", json={**item, "edited": "One."}).status_code == 201
    sent = gateway.http.post("/v1/feedback", json={**item, "edited": "Two.", "created_at": at})
    assert sent.status_code == status, sent.text
    listed = gateway.http.get("/v1/feedback").json()["items"]
    assert all(found["created_at"].endswith("Z") for found in listed)
    # what it is curated into: an answer, not a failure
    assert gateway.http.post("/v1/snapshots").status_code in (201, 422)


def test_a_body_that_a_call_would_not_read_is_refused(shared_gateway: Gateway) -> None:
    """The snapshot would be one of the default project, and nobody would say so."""
    for path in ("/v1/snapshots", "/v1/runs/run-9/hold"):
        refused = shared_gateway.http.post(path, json={"project": "other"})
        assert refused.status_code == 400 and "takes no body" in refused.json()["error"]["message"]
    assert shared_gateway.http.post("/v1/runs/run-9/hold", json={}).status_code == 404
