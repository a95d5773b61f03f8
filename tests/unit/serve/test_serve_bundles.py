"""A version leaves one service as a bundle and comes into another as a candidate, over HTTP and by the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from comfyloop import integrity
from comfyloop.cli import app
from comfyloop.client import bundles
from comfyloop.client.client import Client
from comfyloop.errors import Conflict, InvalidInput, TooLarge
from comfyloop.records import Version
from comfyloop.registry import bundle
from comfyloop.settings import Settings
from comfyloop.store import versions
from tests.acceptance.conftest import wait_for
from tests.unit.registry.conftest import REPORT, save_model, save_text_adapter
from tests.unit.serve.gateway import Gateway, instant, running_gateway

pytest.importorskip("cryptography", reason="bundles are signed with it: pip install 'comfyloop[hubs]'")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Gateway]:
    """A service with a version 1 that was trained and judged."""
    home = tmp_path_factory.mktemp("maker")
    settings = Settings(home=home, project="acme", port=0, model=str(model), publisher="Anna")
    with running_gateway(settings, instant()) as gateway:
        text = save_text_adapter(model, home / "versions" / "acme" / "1" / "text")
        version = Version(
            project="acme", number=1, text_adapter=str(text), sha256=integrity.hash_of(text), gate=REPORT
        )
        with gateway.store.begin() as conn:
            versions.add(conn, version)
        yield gateway


@pytest.fixture
def other(tmp_path: Path, model: Path) -> Iterator[Gateway]:
    settings = Settings(home=tmp_path / "other", project="acme", port=0, model=str(model))
    with running_gateway(settings, instant()) as gateway:
        yield gateway


def told(gateway: Gateway, *words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--url", gateway.url])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_it_says_what_is_in_a_bundle_before_it_writes(maker: Gateway, tmp_path: Path) -> None:
    target = tmp_path / "acme-1.comfyloop"
    said = told(maker, "bundle", "export", "acme@1", str(target), "--dry-run", "--licence", "mit")
    assert "text/adapter_model.safetensors" in said and "No prompts" in said and "licence: mit" in said
    assert not target.exists()
    said = told(maker, "bundle", "export", "acme@1", str(target), "--with", "examples")
    assert said.index("With prompts and answers") < said.index("Written to")
    assert target.exists()
    wait_for(lambda: not list((maker.services.settings.home / "bundles").iterdir()), 30)  # once it is sent
    shown = json.loads(CliRunner().invoke(app, ["bundle", "show", str(target), "--json"]).stdout)
    assert shown["manifest"]["publisher"] == "Anna"


def test_a_version_is_written_for_use_elsewhere(maker: Gateway, model: Path, tmp_path: Path) -> None:
    told(maker, "export", "acme@1", str(tmp_path / "p"), "--to", "peft")
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    assert (
        config["base_model_name_or_path"] == model.name
        and (tmp_path / "p" / "adapter_model.safetensors").exists()
    )
    told(maker, "export", "1", str(tmp_path / "m"), "--to", "merged")
    assert (tmp_path / "m" / "config.json").exists() and (tmp_path / "m" / "model.safetensors").exists()
    said = told(maker, "export", "1", str(tmp_path / "s"), "--to", "ms-swift")
    assert "swift infer --adapters" in said and (tmp_path / "s" / "args.json").exists()
    for form, match in (("comfyui", "no image side"), ("comfyui-text", "'llama'"), ("gguf", "no tensor")):
        with pytest.raises(InvalidInput, match=match):
            told(maker, "export", "1", str(tmp_path / "c"), "--to", form)
        assert not (tmp_path / "c").exists()
    with pytest.raises(InvalidInput, match="--outtype"):
        told(maker, "export", "1", str(tmp_path / "c"), "--to", "peft", "--outtype", "f32")
    with pytest.raises(Conflict, match="there already"):
        told(maker, "export", "1", str(tmp_path / "m"), "--to", "merged")


def test_an_evaluation_goes_into_the_card(maker: Gateway, tmp_path: Path) -> None:
    file, target = tmp_path / "evaluation.json", tmp_path / "acme-1.comfyloop"
    assert "knowledge-zh" in told(maker, "evaluate", "acme@1", str(file))
    found = {one["suite"].rpartition(" ")[2]: one for one in json.loads(file.read_text())}
    assert {"knowledge", "knowledge-zh", "tool-call"} <= found.keys() and "own-answers" not in found
    assert found["knowledge"]["items"] == 18 and found["knowledge"]["version"].startswith("ComfyLoop ")
    assert 0 <= found["knowledge"]["base"] <= 1 and 0 <= found["knowledge"]["this"] <= 1
    told(maker, "bundle", "export", "acme@1", str(target), "--evaluation", str(file))
    bundle.unfold(target, tmp_path / "files")
    assert (
        "| general questions, chance of the right answer: knowledge-zh |"
        in (tmp_path / "files" / "README.md").read_text()
    )
    assert json.loads((tmp_path / "files" / "evaluation.json").read_text()) == json.loads(file.read_text())
    with pytest.raises(Conflict, match="there already"):
        told(maker, "evaluate", "acme@1", str(file))
    file.write_text('[{"suite": 1}]')
    with pytest.raises(InvalidInput, match="is no evaluation"):
        told(maker, "bundle", "export", "acme@1", str(tmp_path / "x"), "--evaluation", str(file))


def test_an_imported_version_is_a_candidate_that_is_judged_here_before_it_goes_live(
    maker: Gateway, other: Gateway, tmp_path: Path
) -> None:
    file = tmp_path / "acme-1.comfyloop"
    with Client(maker.url) as client:
        bundles.export(client, 1, file, {})
    with Client(other.url) as client:
        taken = bundles.take_in(client, file)
        assert "which was not met before" in taken["trust"]
        version = Version.model_validate(taken["version"])
        assert (version.number, version.state, version.parent) == (1, "candidate", 0)
        assert version.origin is not None and version.origin.publisher == "Anna"
        with maker.store.read() as conn:
            assert version.origin.version == versions.get(conn, "acme", 1).sha256
        with other.store.read() as conn:
            integrity.check(conn, version)
        with pytest.raises(Conflict, match="not judged here"):
            client.promote(1)
        with pytest.raises(Conflict, match="not judged here"):
            client.promote(1, canary=0.5)
        with other.store.begin() as conn:
            versions.set_gate(conn, "acme", 1, REPORT.model_copy(update={"candidate": 1}))
        client.promote(1)
        assert other.said("acme", max_tokens=1) == "acme-v1"
        assert "Anna" in told(other, "versions")
        again = bundles.take_in(client, file)  # its key is known by now; it is a version of its own
        assert again["version"]["number"] == 2 and "is known here" in again["trust"]
        onward = tmp_path / "onward.comfyloop"
        bundles.export(client, 1, onward, {})
    shown = json.loads(CliRunner().invoke(app, ["bundle", "show", str(onward), "--json"]).stdout)
    assert shown["manifest"]["version"] == taken["manifest"]["version"]


def test_where_nothing_was_corrected_yet_it_waits_to_be_judged(
    maker: Gateway, other: Gateway, tmp_path: Path
) -> None:
    file = tmp_path / "acme-1.comfyloop"
    with Client(maker.url) as client:
        bundles.export(client, 1, file, {})
    said = " ".join(told(other, "bundle", "import", str(file)).split())
    assert "acme@1 cannot be judged yet" in said and "comfyloop gate 1" in said
    with Client(other.url) as client:
        assert [version.state for version in client.versions()[1]] == ["candidate"]


def test_what_is_refused_leaves_no_version_and_no_file(
    maker: Gateway, other: Gateway, tmp_path: Path
) -> None:
    file = tmp_path / "x.comfyloop"
    with Client(maker.url) as client:
        bundles.export(client, 1, file, {})
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with Client(other.url) as client:
        with pytest.raises(InvalidInput, match="hash does not fit"):
            bundles.take_in(client, file)
        assert client.versions()[1] == []
    home = other.services.settings.home
    assert not list((home / "bundles").iterdir()) and not (home / "versions").exists()
    small = other.services.settings.model_copy(update={"max_bundle_bytes": 100})
    with (
        running_gateway(
            small.model_copy(update={"home": tmp_path / "small"}), instant(), wait=False
        ) as tight,
        Client(tight.url) as client,
        pytest.raises(TooLarge, match="max_bundle_bytes"),
    ):
        bundles.take_in(client, file)


def test_another_key_of_the_same_publisher_is_refused_until_a_person_says_otherwise(
    maker: Gateway, other: Gateway, tmp_path: Path
) -> None:
    from comfyloop.registry import keys

    keys.remember(other.services.settings.home, "Anna", "a" * 64)
    file = tmp_path / "x.comfyloop"
    with Client(maker.url) as client:
        bundles.export(client, 1, file, {})
    with Client(other.url) as client:
        with pytest.raises(Conflict, match="signed with the key"):
            bundles.take_in(client, file)
        assert client.versions()[1] == []
        assert "in place of" in bundles.take_in(client, file, trust_new_key=True)["trust"]
