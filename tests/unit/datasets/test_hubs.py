"""Data sets of hubs, by the hubs' own clients, from servers on this machine that fail as hubs do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyloop.datasets import DataSetState
from comfyloop.errors import DataError, InvalidInput
from comfyloop.sources.fetching import check_source
from comfyloop.sources.hubs import HubFile, hub
from comfyloop.sources.hubs.choosing import chosen
from tests.unit.datasets.conftest import Adding, picture
from tests.unit.datasets.hub_server import HubServer, serving

PAD = "x" * 20_000


def rows(words: str, many: int = 3) -> bytes:
    lines = [{"frage": f"{words} {n}?", "antwort": f"Yes, {n}. {PAD}"} for n in range(many)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


MAP = {"query": "frage", "response": "antwort"}


@pytest.fixture(params=["hf", "ms"])
def hub_server(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[HubServer]:
    monkeypatch.setattr(hub, "PAUSES", (0.0, 0.0, 0.0))
    files = {
        "README.md": b"---\nlicense: cc0-1.0\n---\n",
        ".gitattributes": b"",
        "data/train-00000.jsonl": rows("train"),
        "data/train-00001.jsonl": rows("more"),
        "data/test-00000.jsonl": rows("test"),
    }
    with serving(HubServer(files)) as server:
        if request.param == "hf":
            constants = pytest.importorskip("huggingface_hub.constants")
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
            monkeypatch.setenv("HF_ENDPOINT", server.url)
        else:
            pytest.importorskip("modelscope_hub")
            monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
            monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
        server.name = request.param  # type: ignore[attr-defined]
        yield server


def test_a_data_set_is_taken_by_its_id(adding: Adding, hub_server: HubServer) -> None:
    kind = hub_server.name  # type: ignore[attr-defined]
    done = adding.take(adding.place(source=f"{kind}:{hub_server.id}"), map=MAP)
    assert (done.state, done.error) == (DataSetState.DONE, "")
    assert done.stored == 6
    assert done.licence == ("cc0-1.0" if kind == "hf" else "")
    assert "1 files of its test and validation parts are left out" in done.notes[0]
    assert not any("test" in path for _, path, _ in hub_server.asked if path.endswith(".jsonl"))


@pytest.mark.parametrize("faults", [["429"], ["500", "429"], ["cut"], ["cut", "cut", "429"]])
def test_faults_of_a_hub_are_waited_out(adding: Adding, hub_server: HubServer, faults: list[str]) -> None:
    hub_server.faults[:] = faults
    kind = hub_server.name  # type: ignore[attr-defined]
    done = adding.take(adding.place(source=f"{kind}:{hub_server.id}"), map=MAP)
    assert (done.state, done.error, done.stored) == (DataSetState.DONE, "", 6)
    assert hub_server.faults == []


def test_what_has_come_is_not_fetched_again(adding: Adding, hub_server: HubServer) -> None:
    kind = hub_server.name  # type: ignore[attr-defined]
    hub_server.files["data/train-00001.jsonl"] = b""
    del hub_server.files["data/train-00001.jsonl"]
    hub_server.files["data/train-00002.jsonl"] = rows("last")
    place = adding.place(source=f"{kind}:{hub_server.id}")
    hub_server.faults[:] = ["", *["500"] * 60]
    failed = adding.take(place, map=MAP)
    assert failed.state is DataSetState.FAILED
    assert "what has come stays" in failed.error
    hub_server.faults.clear()
    hub_server.asked.clear()
    assert adding.take(place, map=MAP).stored == 6
    fetched = [path for method, path, _ in hub_server.asked if method == "GET" and "train" in path]
    assert not any("00000" in path for path in fetched)


def test_of_a_large_set_only_what_is_wanted_is_fetched(adding: Adding, hub_server: HubServer) -> None:
    kind = hub_server.name  # type: ignore[attr-defined]
    done = adding.take(adding.place(source=f"{kind}:{hub_server.id}"), map=MAP, limit=2)
    assert done.stored == 2
    assert not any("00001" in path for _, path, _ in hub_server.asked)


def test_what_a_hub_does_not_show_is_said(adding: Adding, hub_server: HubServer) -> None:
    kind = hub_server.name  # type: ignore[attr-defined]
    failed = adding.take(adding.place(source=f"{kind}:ada/nothing"), map=MAP)
    assert failed.state is DataSetState.FAILED
    assert "has no data set ada/nothing, or does not show it. Check its id" in failed.error
    hub_server.token = "secret"
    failed = adding.take(adding.place(source=f"{kind}:{hub_server.id}"), map=MAP)
    assert "or does not show it" in failed.error


def test_pictures_of_parquet_are_taken(adding: Adding, hub_server: HubServer, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = [{"bytes": picture(colour), "path": None} for colour in ("red", "blue")]
    parquet.write_table(arrow.table({"image": values, "text": ["red", "blue"]}), tmp_path / "a.parquet")
    hub_server.files.clear()
    hub_server.files["data/train-0.parquet"] = (tmp_path / "a.parquet").read_bytes()
    kind = hub_server.name  # type: ignore[attr-defined]
    done = adding.take(adding.place(source=f"{kind}:{hub_server.id}"))
    assert (done.stored, done.pictures, done.mapping) == (2, 2, {"images": "image", "caption": "text"})


@pytest.mark.parametrize(
    "source", ["hf:", "hf:a/b/c", "gh:a/b", "builtin:nothing", "hf:../x", "http://x", "hf:a b"]
)
def test_what_names_no_data_set_is_refused(source: str) -> None:
    with pytest.raises(InvalidInput):
        check_source(source)


def test_the_training_part_of_a_set_is_chosen() -> None:
    files = [
        HubFile(n, 1)
        for n in ("b/train.csv", "a/train.csv", "a/test.csv", "README.md", "x.bin", "latest.csv")
    ]
    assert [file.path for file in chosen(files, "")[0]] == ["a/train.csv", "b/train.csv", "latest.csv"]
    assert [file.path for file in chosen(files, "a")[0]] == ["a/test.csv", "a/train.csv"]
    with pytest.raises(DataError, match="no data that can be read"):
        chosen([HubFile("model.bin", 1)], "")
