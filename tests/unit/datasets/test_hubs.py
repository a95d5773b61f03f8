"""Data sets of hubs, by the hubs' own clients, from servers on this machine that fail as hubs do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyloop.datasets import DataSetState
from comfyloop.errors import DataError, InvalidInput
from comfyloop.sources.fetching import check_source
from comfyloop.sources.hubs import HubFile
from comfyloop.sources.hubs import hub as waiting
from comfyloop.sources.hubs.choosing import chosen
from tests.hub_server import Fault, Hub, hub
from tests.unit.datasets.conftest import Adding, picture

PAD = "x" * 20_000


def rows(words: str, many: int = 3) -> bytes:
    lines = [{"frage": f"{words} {n}?", "antwort": f"Yes, {n}. {PAD}"} for n in range(many)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


MAP = {"query": "frage", "response": "antwort"}


SET = "datasets/ada/mugs"


@pytest.fixture(params=["hf", "ms"])
def reached(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[str, Hub]]:
    """A hub that the client of one kind goes to, and the name of its data set there."""
    monkeypatch.setattr(waiting, "PAUSES", (0.0, 0.0, 0.0))
    if request.param == "hf":
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    else:
        client = pytest.importorskip("modelscope_hub._download")
        monkeypatch.setattr(client, "DOWNLOAD_RETRY_MAX_DELAY_SECONDS", 0)
    with hub() as found:
        found.put(
            SET,
            {
                "README.md": b"---\nlicense: cc0-1.0\n---\n",
                "data/train-00000.jsonl": rows("train"),
                "data/train-00001.jsonl": rows("more"),
                "data/test-00000.jsonl": rows("test"),
            },
        )
        found.cards[SET] = {"license": "cc0-1.0"}
        for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
            monkeypatch.setenv(name, found.url)
        for name in ("MODELSCOPE_CACHE", "MODELSCOPE_HOME"):
            monkeypatch.setenv(name, str(tmp_path / name))
        yield f"{request.param}:ada/mugs", found


def faults(*kinds: str) -> list[Fault]:
    """Of the next downloads, one after the other."""
    files = r"\.jsonl$|/repo$"
    return [
        Fault(files, cut=10_000, times=1)
        if kind == "cut"
        else Fault(files, status=int(kind), times=1, headers={"Retry-After": "0"})
        for kind in kinds
    ]


def test_a_data_set_is_taken_by_its_id(adding: Adding, reached: tuple[str, Hub]) -> None:
    source, _ = reached
    done = adding.take(adding.place(source=source), map=MAP)
    assert (done.state, done.error, done.stored) == (DataSetState.DONE, "", 6)
    assert done.licence == ("cc0-1.0" if source.startswith("hf") else "")
    assert "1 files of its test and validation parts are left out" in done.notes[0]


@pytest.mark.parametrize("kinds", [["429"], ["500", "429"], ["cut"], ["cut", "cut", "429"]])
def test_faults_of_a_hub_are_waited_out(adding: Adding, reached: tuple[str, Hub], kinds: list[str]) -> None:
    source, found = reached
    found.faults[:] = faults(*kinds)
    done = adding.take(adding.place(source=source), map=MAP)
    assert (done.state, done.error, done.stored) == (DataSetState.DONE, "", 6)
    assert not any(fault.times for fault in found.faults)


def test_what_has_come_is_not_fetched_again(
    adding: Adding, reached: tuple[str, Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, found = reached
    monkeypatch.setattr(waiting, "PAUSES", ())
    place = adding.place(source=source)
    place.files.joinpath("data").mkdir()
    place.files.joinpath("data/train-00000.jsonl").write_bytes(rows("train"))
    found.faults[:] = [Fault(r"\.jsonl$|/repo$", status=500)]
    failed = adding.take(place, map=MAP)
    assert failed.state is DataSetState.FAILED and "what has come stays" in failed.error
    found.faults.clear()
    found.asked.clear()
    assert adding.take(place, map=MAP).stored == 6
    assert not any("train-00000" in path for _, path in found.asked)


def test_of_a_large_set_only_what_is_wanted_is_fetched(adding: Adding, reached: tuple[str, Hub]) -> None:
    source, found = reached
    done = adding.take(adding.place(source=source), map=MAP, limit=2)
    assert done.stored == 2
    assert not any("00001" in path for _, path in found.asked)


def test_what_a_hub_does_not_show_is_said(adding: Adding, reached: tuple[str, Hub]) -> None:
    source, found = reached
    failed = adding.take(adding.place(source=f"{source[:3]}ada/nothing"), map=MAP)
    assert failed.state is DataSetState.FAILED
    assert "has no data set ada/nothing, or does not show it. Check its id" in failed.error
    found.token = "secret"
    failed = adding.take(adding.place(source=source), map=MAP)
    assert "or does not show it" in failed.error


def test_pictures_of_parquet_are_taken(adding: Adding, reached: tuple[str, Hub], tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = [{"bytes": picture(colour), "path": None} for colour in ("red", "blue")]
    parquet.write_table(arrow.table({"image": values, "text": ["red", "blue"]}), tmp_path / "a.parquet")
    source, found = reached
    found.repos.clear()
    found.put(SET, {"data/train-0.parquet": (tmp_path / "a.parquet").read_bytes()})
    done = adding.take(adding.place(source=source))
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
