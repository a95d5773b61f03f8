"""A community's bundles: what is good is listed and adopted, what is bad is shown as such."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyloop.errors import EngineUnavailable, InvalidInput, NotFound
from comfyloop.registry import index

MOST = 2**30


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """A good bundle, one that was changed, and an unsigned one."""
    place = tmp_path / "shared"
    place.mkdir()
    shutil.copy(packed, place / "acme-17.comfyloop")
    data = bytearray(packed.read_bytes())
    data[len(data) // 2] ^= 1
    (place / "changed.comfyloop").write_bytes(data)
    with zipfile.ZipFile(place / "unsigned.comfyloop", "w") as archive:
        archive.writestr("README.md", "<script>alert(1)</script>")
    index.build(place)
    return place


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_bad_and_unsigned_bundles_are_listed_as_such(folder: Path, tmp_path: Path) -> None:
    found = {entry.file: entry for entry in index.read(str(folder), tmp_path).entries}
    assert found["acme-17.comfyloop"].name == "acme@17" and not found["acme-17.comfyloop"].problem
    assert "hash does not fit" in found["changed.comfyloop"].problem
    assert found["unsigned.comfyloop"].problem
    page = (folder / "index.html").read_text()
    assert page.count('class="bad"') == 2 and "acme@17" in page and "<script" not in page
    with pytest.raises(InvalidInput, match="cannot be adopted"):
        index.fetch(str(folder), "changed.comfyloop", tmp_path, MOST)


def test_a_bundle_is_fetched_over_http_and_is_the_one_that_the_index_says(
    folder: Path, address: str, packed: Path, tmp_path: Path
) -> None:
    assert index.fetch(address, "acme@17", tmp_path, MOST).read_bytes() == packed.read_bytes()
    with pytest.raises(NotFound, match="has no acme@18"):
        index.fetch(address, "acme@18", tmp_path, MOST)
    (folder / "acme-17.comfyloop").write_bytes(packed.read_bytes() + b"x" * 1000)
    with pytest.raises(InvalidInput, match="another file"):
        index.fetch(address, "acme@17", tmp_path, MOST)
    assert not list((tmp_path / "adopted").iterdir())


def test_a_repository_is_an_index_too(folder: Path, packed: Path, tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    place = f"git+file://{folder}"
    assert index.fetch(place, "acme@17", tmp_path, MOST).read_bytes() == packed.read_bytes()
    with pytest.raises(EngineUnavailable, match="cannot be cloned"):
        index.read(f"git+file://{tmp_path}/none", tmp_path)


def test_an_index_cannot_name_files_elsewhere(folder: Path, tmp_path: Path) -> None:
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace("acme-17.comfyloop", "../../etc/passwd"))
    with pytest.raises(InvalidInput, match="cannot be read"):
        index.read(str(folder), tmp_path)
