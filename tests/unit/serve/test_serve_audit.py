"""What the audit log says of who changed what."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from comfyloop.serve.api import audit_log
from comfyloop.serve.api.audit_log import AuditLine, AuditLog
from comfyloop.settings import Settings
from tests.unit.serve.gateway import instant, running_gateway


def test_changes_are_told_with_who_asked_and_what_became_of_it(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", project="acme", port=0, token="right")
    with running_gateway(settings, instant()) as gateway:
        http = gateway.http
        own = {"Authorization": "Bearer right"}
        assert http.post("/v1/projects", json={"name": "posters"}, headers=own).status_code < 300
        assert http.post("/v1/rollback", json={"project": "acme"}, headers=own).status_code == 409
        assert (
            http.post("/v1/prune?token=wrong&dry_run=true", headers={"Authorization": "no"}).status_code
            == 401
        )
        http.get("/v1/projects", headers=own)
        http.post("/v1/busy", json={"source": "test", "seconds": 1}, headers=own)
        lines = http.get("/v1/audit", headers=own).json()["items"]
        assert http.get("/v1/audit?limit=1", headers=own).json()["items"] == lines[:1]
    told = [(line["call"], line["who"], line["status"]) for line in lines]
    assert told == [
        ("POST /v1/prune", "", 401),
        ("POST /v1/rollback", "token", 409),
        ("POST /v1/projects", "token", 201),
    ]
    assert lines[0]["path"] == "/v1/prune?dry_run=true" and lines[0]["address"] == "127.0.0.1"


def test_the_log_is_bounded_and_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    line = AuditLine(at=datetime.now(UTC), call="POST /v1/loop", path="/v1/loop", status=200)
    size = len(line.model_dump_json()) + 1
    original = audit_log.MAX_BYTES
    audit_log.MAX_BYTES = 3 * size
    try:
        for status in range(200, 208):
            log.add(line.model_copy(update={"status": status}))
    finally:
        audit_log.MAX_BYTES = original
    assert [one.status for one in log.newest(9)] == [207, 206, 205, 204, 203]
    with (tmp_path / audit_log.FILE).open("ab") as file:
        file.write(b'{"at": "2026')
    assert [one.status for one in log.newest(2)] == [207, 206]


def test_a_disk_that_refuses_stops_no_work(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "nowhere")
    log.add(AuditLine(at=datetime.now(UTC), call="POST /v1/loop", path="/v1/loop", status=200))
    assert log.newest(3) == []
