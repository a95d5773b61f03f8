"""Feedback that comes from a file, and single pieces of it: through the command line to a service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from comfyloop.cli import app
from comfyloop.errors import ComfyLoopError, InvalidInput, NotFound
from comfyloop.settings import Settings
from tests.unit.serve.gateway import Gateway, instant, running_gateway

CASES = Path(__file__).parents[2] / "cases"


def told(gateway: Gateway, *words: str) -> str:
    done = CliRunner().invoke(app, ["feedback", *words, "--url", gateway.url])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def stored(gateway: Gateway) -> int:
    items: int = 0
    after: int | None = 0
    while after is not None:
        page = gateway.http.get("/v1/feedback", params={"after": after, "limit": 200}).json()
        items, after = items + len(page["items"]), page["next_after"]
    return items


def test_an_import_with_one_bad_row_stores_nothing_and_names_the_line(gateway: Gateway) -> None:
    with pytest.raises(ComfyLoopError) as caught:
        told(gateway, "import", str(CASES / "18-partial-import" / "rows.jsonl"))
    assert "1 of 450 rows" in str(caught.value) and "rows.jsonl:431: it has no message of" in str(
        caught.value
    )
    assert "nothing was stored" in str(caught.value)
    assert stored(gateway) == 0


def test_what_only_the_service_refuses_is_named_by_its_line_too(tmp_path: Path) -> None:
    """450 rows in three requests, the last with a text that is too long: none is stored."""
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"{n}?"},
                {"role": "assistant", "content": "a" * (n // 449 * 90 + 1)},
            ]
        }
        for n in range(450)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    settings = Settings(
        home=tmp_path / "home", cache_dir=tmp_path / "cache", project="acme", max_text_chars=80
    )
    with running_gateway(settings, instant()) as gateway:
        with pytest.raises(ComfyLoopError) as caught:
            told(gateway, "import", str(file))
        assert "rows.jsonl:450: it cannot be stored: Its message 2 has 91 characters" in str(caught.value)
        assert stored(gateway) == 0
        file.write_text("\n".join(map(json.dumps, lines[:-1])))
        assert "449 samples stored, 0 were there already." in told(gateway, "import", str(file))
        assert "0 samples stored, 449 were there already." in told(gateway, "import", str(file))
        assert stored(gateway) == 449


def test_what_a_file_says_beside_its_rows_is_told(gateway: Gateway) -> None:
    said = told(gateway, "import", str(CASES / "05-preference-forms" / "q-score.jsonl"))
    assert "1 samples stored" in said and "rating (1), score (1)" in " ".join(said.split())


def test_one_piece_is_shown_and_deleted(gateway: Gateway) -> None:
    told(gateway, "import", str(CASES / "08-text-encoding" / "i-u2028.jsonl"))
    (item,) = gateway.http.get("/v1/feedback").json()["items"]
    assert json.loads(told(gateway, "show", item["id"], "--json")) == item
    assert gateway.http.get(f"/v1/feedback/{item['id']}").json() == item
    assert item["id"] in told(gateway, "show", item["id"])
    assert "is deleted" in told(gateway, "delete", item["id"])
    assert stored(gateway) == 0
    for verb in ("show", "delete"):
        with pytest.raises(NotFound, match="There is no feedback"):
            told(gateway, verb, item["id"])
    again = gateway.http.post("/v1/feedback", json=item)  # a late second delivery
    assert again.json() == {"stored": [], "duplicates": [item["id"]]} and stored(gateway) == 0


def test_a_check_stores_nothing(gateway: Gateway) -> None:
    said = [{"type": "text", "text": "x"}]
    messages = [{"role": role, "content": said} for role in ("user", "assistant")]
    good = {"kind": "sample_uploaded", "id": "s1", "project": "acme", "messages": messages}
    checked = gateway.http.post("/v1/feedback", json={"items": [good]}, params={"check": True})
    assert checked.json() == {"stored": [], "duplicates": []} and stored(gateway) == 0
    bad = {**good, "messages": messages[:1]}
    refused = gateway.http.post("/v1/feedback", json={"items": [bad]}, params={"check": True})
    assert refused.status_code == InvalidInput.status
