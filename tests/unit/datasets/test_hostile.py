"""What is broken or meant to harm is refused by file and line, and nothing of it stays."""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfyloop import formats
from comfyloop.datasets import DataSetState
from comfyloop.durable import appear
from comfyloop.errors import ComfyLoopError, DataError, TooLarge
from comfyloop.formats import files, tables
from comfyloop.sources import look, tree_of, unpack_all
from comfyloop.sources.source import SourceOptions
from tests.conftest import REPOSITORY
from tests.unit.datasets.conftest import Adding, picture

ROW = {"query": "What?", "response": "A mug."}
LINE = json.dumps(ROW) + "\n"


def zipped(path: Path, *entries: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def tarred(path: Path, *entries: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(b"x" * entry.size))
    return path


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, to
    return entry


def zip_link() -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("a.png")
    entry.external_attr = 0o120777 << 16
    return entry


def cut(path: Path) -> Path:
    zipped(path, ("data.jsonl", LINE.encode() * 100))
    path.write_bytes(path.read_bytes()[:-40])
    return path


def damaged(path: Path) -> Path:
    zipped(path, ("data.jsonl", bytes(range(256)) * 100))
    data = bytearray(path.read_bytes())
    data[60:70] = b"\0" * 10
    path.write_bytes(data)
    return path


def cut_gzip(path: Path) -> Path:
    path.write_bytes(gzip.compress(LINE.encode() * 100)[:-20])
    return path


def nested(path: Path) -> Path:
    inner = zipped(path.with_name("a.zip"), ("data.jsonl", LINE.encode())).read_bytes()
    for name in ("b.zip", path.name):
        inner = zipped(path.with_name(name), ("inner.zip", inner)).read_bytes()
    path.with_name("a.zip").unlink()
    path.with_name("b.zip").unlink()
    return path


ARCHIVES: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "upwards": ("a.zip", lambda p: zipped(p, ("../../evil.jsonl", b"x")), "leads out of its folder"),
    "backslashes": ("a.zip", lambda p: zipped(p, ("..\\evil.jsonl", b"x")), "leads out of its folder"),
    "absolute": ("a.tar", lambda p: tarred(p, tarfile.TarInfo("/tmp/evil.jsonl")), "leads out of its folder"),
    "drive": ("a.zip", lambda p: zipped(p, ("C:/evil.jsonl", b"x")), "leads out of its folder"),
    "long name": ("a.zip", lambda p: zipped(p, ("x" * 300, b"x")), "leads out of its folder or is none"),
    "link": ("a.tar", lambda p: tarred(p, link("a.png", "/etc/passwd")), "holds the link"),
    "hard link": ("a.tar", lambda p: tarred(p, link("a.png", "/etc/passwd", tarfile.LNKTYPE)), "holds the link"),
    "zip link": ("a.zip", lambda p: zipped(p, (zip_link(), b"/etc/passwd")), "holds the link"),
    "device": ("a.tar", lambda p: tarred(p, link("null", "", tarfile.CHRTYPE)), "a device or a pipe"),
    "twice": ("a.zip", lambda p: zipped(p, ("a.TXT", b"x"), ("a.txt", b"y")), "twice"),
    "cut": ("a.zip", cut, "damaged"),
    "damaged": ("a.zip", damaged, "damaged"),
    "cut gzip": ("a.jsonl.gz", cut_gzip, "damaged"),
    "no archive": ("a.tar", lambda p: (p.write_bytes(b"nothing" * 200) and p) or p, "damaged"),
    "nested": ("c.zip", nested, "archives within an archive"),
    "bomb": ("a.zip", lambda p: zipped(p, ("data.jsonl", b"0" * (65 * 2**20))), "made to fill the disk"),
    "gzip bomb": ("a.csv.gz", lambda p: (p.write_bytes(gzip.compress(b"0" * (65 * 2**20))) and p) or p, "made to fill"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_would_do_harm_are_refused(tmp_path: Path, kind: str) -> None:
    name, make, why = ARCHIVES[kind]
    folder = tmp_path / "data"
    folder.mkdir()
    archive = make(folder / name)
    before = {path for path in tmp_path.rglob("*")}
    with pytest.raises(DataError if "bomb" not in kind else TooLarge, match=why) as caught:
        unpack_all(folder, 2**30)
    assert archive.name in str(caught.value)
    if kind != "nested":
        assert {path for path in tmp_path.rglob("*")} == before


def test_no_archive_unpacks_to_more_than_is_allowed(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", ("a.jsonl", LINE.encode() * 1000))
    with pytest.raises(TooLarge, match=r"a\.zip unpacks to more than 1000 bytes"):
        unpack_all(tmp_path, 1000)


def test_names_packed_by_chinese_windows_are_read(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("plain")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, LINE)
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(b"plain", "图x".encode("gb18030") + b".t"))
    unpack_all(tmp_path, 10_000)
    assert tree_of(tmp_path).files == ("a.zip/图x.t",)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=400),
    name=st.sampled_from(["a.zip", "a.tar", "a.tgz", "a.gz", "a.tar.xz", "a.tar.bz2"]),
)
def test_any_bytes_are_an_archive_or_are_refused(tmp_path: Path, data: bytes, name: str) -> None:
    folder = tmp_path / "any"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        appear(old, lambda _: None) if old.is_dir() else old.unlink()
    (folder / name).write_bytes(data)
    try:
        unpack_all(folder, 10_000)
    except ComfyLoopError as error:
        assert name in str(error)
        (folder / name).unlink()
    else:
        import shutil

        shutil.rmtree(folder)


# --- rows -----------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


PICTURES = {
    "empty": (b"", "0 bytes"),
    "huge": (png_header(30_000, 30_000), "30000 x 30000 pixels"),
    "strip": (png_header(16_000, 1), "16000 x 1 pixels"),
    "cut": (picture()[:-20], "damaged or broken off"),
    "text": (b"hello", "plain text"),
}


def test_all_pictures_that_are_missing_are_named_at_once(adding: Adding) -> None:
    said = adding.add(REPOSITORY / "tests" / "cases" / "27-several-bad-images").error
    for number in range(4):
        assert f"rows.jsonl:{number + 1}:" in said and f"missing{number}.png is not in the data" in said
    assert adding.stored() == []


def test_all_pictures_that_cannot_be_used_are_named_at_once(adding: Adding, tmp_path: Path) -> None:
    rows = []
    for name, (data, _) in PICTURES.items():
        (tmp_path / f"{name}.png").write_bytes(data)
        rows.append({**ROW, "images": [f"{name}.png"]})
    (tmp_path / "good.png").write_bytes(picture())
    rows.insert(2, {**ROW, "images": ["good.png"]})
    rows.append({**ROW, "images": ["nowhere.png"]})
    rows.append({**ROW, "images": ["/etc/hostname"]})
    rows.append({**ROW, "images": ["../../../dataset.json"]})
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = adding.add(tmp_path)
    assert done.state is DataSetState.REFUSED
    wanted = [why for _, why in PICTURES.values()] + ["nowhere.png is not in the data"]
    wanted += ["/etc/hostname is not in the data", "dataset.json is not in the data"]
    assert [line for line in (1, 2, 4, 5, 6, 7, 8, 9) if f"d.jsonl:{line}:" in done.error] == [
        1,
        2,
        4,
        5,
        6,
        7,
        8,
        9,
    ]
    assert all(why in done.error for why in wanted), done.error
    assert adding.stored() == [] and adding.left_over() == []


def test_a_link_in_what_is_sent_is_not_followed(adding: Adding, tmp_path: Path) -> None:
    place = adding.place()
    (place.files / "d.jsonl").write_text(json.dumps({**ROW, "images": ["a.png"]}))
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    (place.files / "a.png").symlink_to(secret)
    assert "a.png is not in the data" in adding.take(place).error


TEXTS: dict[str, tuple[str, bytes, str]] = {
    "missing column": ("d.csv", b"question,answer\nWhat?,A mug.\nWhat?\n", "d.csv:3: "),
    "too many cells": ("d.csv", b"question,answer\nWhat?,A mug.,more\n", "d.csv:2: it has 3 cells"),
    "no such column": ("d.csv", b"a,b\n1,2\n", "d.csv:2: "),
    "gbk": ("d.jsonl", ('{"query": "a", "response": "b"}\n{"query": "' + "茶" + '", "response": "b"}\n').encode("gbk"), "d.jsonl:2 is not UTF-8"),  # noqa: E501
    "nul": ("d.jsonl", LINE.encode() + LINE.replace("mug", "m\\u0000g").encode(), "d.jsonl:2: its text has a NUL"),
    "nul in csv": ("d.csv", b"query,response\na,b\na,m\0g\n", "d.csv:3: its text has a NUL"),
    "half a character": ("d.jsonl", LINE.replace("mug", "\\ud83e").encode(), "d.jsonl:1: its text has half"),
    "deep": ("d.jsonl", b'{"query": ' + b"[" * 100_000 + b"}\n", "d.jsonl:1: "),
    "cut": ("d.json", b'[{"query": "a", "response": "b"}, {"query": "a", "resp', "d.json:1 (item 2): it is not JSON"),
    "nothing": ("d.jsonl", b"\n\n", "no rows"),
    "web page": ("d.jsonl", b"<!doctype html>", "a web page"),
    "lfs": ("d.parquet", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_what_cannot_be_read_is_named_by_file_and_line(adding: Adding, tmp_path: Path, kind: str) -> None:
    name, data, why = TEXTS[kind]
    (tmp_path / name).write_bytes(data)
    done = adding.add(tmp_path / name)
    assert done.state is DataSetState.REFUSED
    assert why in done.error
    assert adding.stored() == []


@pytest.mark.parametrize(
    ("encoding", "said"), [("utf-16", ""), ("utf-8-sig", ""), ("gb18030", "gb18030"), ("cp1252", "cp1252")]
)
def test_other_encodings_are_read(adding: Adding, tmp_path: Path, encoding: str, said: str) -> None:
    words = ("什么?", "一个杯子。") if encoding != "cp1252" else ("Qué?", "Un café.")
    for name, text in (
        ("d.csv", f"query,response\r\n{words[0]},{words[1]}\r\n"),
        ("e.jsonl", json.dumps({"query": words[0], "response": "2" + words[1]}, ensure_ascii=False)),
    ):
        (tmp_path / name).write_bytes(text.encode(encoding))
    done = adding.add(tmp_path, encoding=said)
    assert (done.state, done.error) == (DataSetState.DONE, "")
    assert sorted(item.messages[-1].text for item in adding.stored()) == ["2" + words[1], words[1]]  # type: ignore[union-attr]


def test_a_line_without_end_is_refused_and_those_after_it_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LONGEST", 10_000)
    monkeypatch.setattr(files, "_PIECE", 1000)
    monkeypatch.setattr(tables, "_LONGEST_CELL", 10_000)
    long = json.dumps({"query": "x" * 100_000, "response": "b"})
    (tmp_path / "d.jsonl").write_text(f"{LINE}{long}\n{LINE}")
    (tmp_path / "d.json").write_text(f"[{LINE}, {long}, {LINE}]")
    with (tmp_path / "d.csv").open("w") as file:
        csv.writer(file).writerows([["query", "response"], ["a", "b"], ["x" * 100_000, "b"]])
    told = [
        [(item.line, bool(item.value)) for item in formats.each(tmp_path / f"d.{e}")]
        for e in ("jsonl", "json", "csv")
    ]
    assert told[0] == [(1, True), (2, False), (3, True)]
    assert told[1] == [(1, True), (2, False)]
    assert told[2] == [(2, True), (3, False)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.dictionaries(
            st.text(max_size=8),
            st.text(max_size=30) | st.integers() | st.lists(st.integers(), max_size=3),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
        max_size=6,
    ),
    piece=st.integers(1, 40),
    form=st.sampled_from(["lines", "array", "pretty"]),
)
def test_a_file_is_the_same_however_little_of_it_is_held(
    tmp_path: Path, values: list[dict[str, object]], piece: int, form: str
) -> None:
    texts = [
        json.dumps(value, ensure_ascii=False, indent=1 if form == "pretty" else None) for value in values
    ]
    whole = "[" + ",\n".join(texts) + "]" if form == "array" else "\n".join(texts)
    file = tmp_path / "d.json"
    file.write_text(whole, encoding="utf-8", errors="surrogatepass", newline="")
    before = files._PIECE
    try:
        files._PIECE = piece
        found = formats.items(file)
    finally:
        files._PIECE = before
    assert [item.value for item in found] == values
    assert [item.line for item in found] == [item.line for item in formats.items(file)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=300),
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.parquet", "a.png", "a.txt"]),
)
def test_any_bytes_are_data_or_are_refused_with_a_sentence(tmp_path: Path, data: bytes, name: str) -> None:
    folder = tmp_path / "any"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / name).write_bytes(data)
    try:
        looked = look(tree_of(folder), SourceOptions())
        for one in looked.objects:
            try:
                looked.reading.row(one)
            except formats.UnusableRow as error:
                assert str(error)
    except ComfyLoopError as error:
        assert error.message.endswith(".")
