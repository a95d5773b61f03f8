"""Both hubs' own clients against a hub on loopback, and what goes wrong there, in sentences."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from comfyloop.errors import EngineUnavailable, InvalidInput, NotFound, QueueFull, StorageError
from comfyloop.registry import bundle, hubs
from comfyloop.registry.hubs import HubPlace
from tests.hub_server import Fault, Hub, hub
from tests.unit.registry.conftest import Made

pytest.importorskip("modelscope_hub", reason="ModelScope's client: pip install 'comfyloop[hubs]'")

HF, MS = HubPlace("hf", "anna/acme"), HubPlace("ms", "anna/acme")


@pytest.fixture
def reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that both clients go to."""
    from huggingface_hub import constants

    with hub(token="secret") as found:
        for name, value in (("HF_ENDPOINT", found.url), ("MODELSCOPE_ENDPOINT", found.url)):
            monkeypatch.setenv(name, value)
        for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
            monkeypatch.setenv(name, "secret")
        for name in ("MODELSCOPE_CACHE", "MODELSCOPE_HOME"):
            monkeypatch.setenv(name, str(tmp_path / name))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield found


@pytest.mark.parametrize("place", [HF, MS], ids=str)
def test_what_is_pulled_is_byte_for_byte_what_was_pushed(
    reached: Hub, packed: Path, tmp_path: Path, place: HubPlace
) -> None:
    hubs.push(packed, place, tmp_path / "out", private=True, quiet=True)
    files = reached.repos["models/anna/acme"]
    assert {
        "README.md",
        "manifest.json",
        "signature.ed25519",
        "text/adapter_model.safetensors",
    } <= files.keys()
    assert "models/anna/acme" in reached.private
    sent = len(reached.uploads())
    hubs.push(packed, place, tmp_path / "out", private=True, quiet=True)
    assert len(reached.uploads()) == sent == 1  # the hub has its weights already
    got = hubs.pull(place, tmp_path / "in", quiet=True)
    assert got.read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("place", [HF, MS], ids=str)
def test_who_may_not_and_what_is_not_there_are_told_apart(
    reached: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: HubPlace
) -> None:
    with pytest.raises(NotFound, match="has no"):
        hubs.pull(place, tmp_path / "in", quiet=True)
    reached.put("models/anna/acme", {"README.md": b"no version\n"})
    with pytest.raises(NotFound, match="no manifest"):
        hubs.pull(place, tmp_path / "in", quiet=True)
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.setenv(name, "wrong")
    with pytest.raises(InvalidInput, match="does not let you"):
        hubs.pull(place, tmp_path / "in2", quiet=True)


@pytest.mark.parametrize("place", [HF, MS], ids=str)
def test_a_file_that_is_not_what_was_signed_is_not_taken_and_comes_again(
    reached: Hub, packed: Path, tmp_path: Path, place: HubPlace
) -> None:
    hubs.push(packed, place, tmp_path / "out", private=True, quiet=True)
    files = reached.repos["models/anna/acme"]
    right = files["text/adapter_model.safetensors"]
    files["text/adapter_model.safetensors"] = right[:-1] + bytes([right[-1] ^ 1])
    with pytest.raises(InvalidInput, match=r"hash does not fit"):
        hubs.pull(place, tmp_path / "in", quiet=True)
    assert not list((tmp_path / "in").glob("*.comfyloop"))
    files["text/adapter_model.safetensors"] = right
    reached.put("models/anna/acme", {})
    assert hubs.pull(place, tmp_path / "in", quiet=True).read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("place", [HF, MS], ids=str)
def test_a_pull_that_was_cut_off_goes_on(reached: Hub, packed: Path, tmp_path: Path, place: HubPlace) -> None:
    hubs.push(packed, place, tmp_path / "out", private=True, quiet=True)
    weights = r"resolve/.*adapter_model|/repo$"
    reached.faults.append(Fault(weights, cut=1000, times=1))
    try:
        got = hubs.pull(place, tmp_path / "in", quiet=True)
    except EngineUnavailable:  # this client leaves trying again to a person
        got = hubs.pull(place, tmp_path / "in", quiet=True)
    assert got.read_bytes() == packed.read_bytes()


def response(status: int, **headers: str) -> Exception:
    error = RuntimeError("x")
    error.response = type("R", (), {"status_code": status, "headers": headers})()  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (response(429, **{"retry-after": "7"}), QueueFull, "Try again in 7 seconds"),
        (response(429), QueueFull, "in some minutes"),
        (response(403), InvalidInput, "Log in with"),
        (response(404), NotFound, "has no hf:anna/acme"),
        (response(502), EngineUnavailable, "status 502"),
        (ConnectionResetError("peer"), EngineUnavailable, "connection broke off"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x"), StorageError, "disk is full"),
        (
            OSError("Consistency check failed: file should be of size 3 but has size 2"),
            InvalidInput,
            "otherwise than",
        ),
    ],
)
def test_errors_of_clients_are_sentences(error: Exception, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence), hubs._in_sentences(HF):
        raise RuntimeError("wrapped") from error


def test_places_are_named_in_one_way_only() -> None:
    assert HubPlace.parse("hf:a/b@v1") == HubPlace("hf", "a/b", "v1")
    for wrong in ("a/b", "hf:a", "hf:a/b/c", "gh:a/b", "hf:../x", "ms:a/b@"):
        with pytest.raises(InvalidInput, match="names no place"):
            HubPlace.parse(wrong)


def test_a_base_model_comes_from_modelscope_once(reached: Hub, tmp_path: Path) -> None:
    reached.put("models/Qwen/tiny", {"config.json": b"{}", "model.safetensors": b"x" * 100})
    folder = Path(hubs.base_model("ms:Qwen/tiny", tmp_path) or "")
    assert (folder / "model.safetensors").read_bytes() == b"x" * 100
    asked = len(reached.asked)
    assert hubs.base_model("ms:Qwen/tiny", tmp_path) == str(folder)
    assert len(reached.asked) == asked
    assert hubs.base_model("hf:Qwen/tiny", tmp_path) == "Qwen/tiny"
    assert hubs.base_model("Qwen/tiny", tmp_path) is None


def test_a_base_model_is_of_the_revision_that_is_named(
    reached: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    reached.put("models/Qwen/tiny", {"config.json": b"{}", "original/a.pth": b"x"})
    folder = Path(hubs.base_model("hf:Qwen/tiny@refs/pr/1", tmp_path) or "")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert any(unquote(path).endswith("/revision/refs/pr/1") for _, path in reached.asked)

    newest = hubs.base_model("ms:Qwen/tiny", tmp_path)
    asked = len(reached.asked)
    pinned = hubs.base_model("ms:Qwen/tiny@v1.0", tmp_path)
    assert pinned != newest and len(reached.asked) > asked  # of v1.0 nothing was there yet


def test_a_bundle_put_together_from_strange_names_is_refused(
    made: Made, packed: Path, tmp_path: Path
) -> None:
    bundle.unfold(packed, tmp_path / "f")
    text = (tmp_path / "f" / "manifest.json").read_text()
    (tmp_path / "f" / "manifest.json").write_text(text.replace("README.md", "../../etc/passwd", 1))
    with pytest.raises(InvalidInput, match="no part of a bundle"):
        bundle.fold(tmp_path / "f", tmp_path / "x.comfyloop")
    assert not (tmp_path / "x.comfyloop").exists()
