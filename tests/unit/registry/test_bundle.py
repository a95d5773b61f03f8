"""What travels in a bundle, and what of a bundle is taken."""

from __future__ import annotations

import json
import random
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from comfyloop.errors import ComfyLoopError, Conflict, InvalidInput, NotFound
from comfyloop.records import Ancestor, Version
from comfyloop.registry import bundle, contents, keys
from comfyloop.registry.archive import ArchivePiece
from comfyloop.registry.contents import BundleOptions
from comfyloop.registry.manifest import BaseModelOf, Include
from tests.unit.registry.conftest import Made, save_model


def test_a_version_comes_out_of_its_bundle_as_it_went_in(made: Made, packed: Path, tmp_path: Path) -> None:
    opened, sides = made.unpack(packed, tmp_path / "in")
    assert opened.manifest.project == "acme" and opened.manifest.number == 17
    assert sides.text is not None and made.version.text_adapter is not None
    before = load_file(Path(made.version.text_adapter) / "adapter_model.safetensors")
    after = load_file(sides.text / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    config = json.loads((sides.text / "adapter_config.json").read_text())
    assert config["r"] == 2 and config["lora_alpha"] == 4


def test_any_zip_program_reads_it(packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        assert {
            "README.md",
            "gate.json",
            "spec.json",
            "manifest.json",
            "text/adapter_model.safetensors",
        } < set(archive.namelist())
        card = archive.read("README.md").decode()
    assert card.startswith("---\n") and "library_name: peft" in card and "edit distance" in card


def test_nothing_of_persons_and_machines_leaves_unless_it_is_named(
    made: Made, packed: Path, tmp_path: Path
) -> None:
    whole = packed.read_bytes()
    for word in (b"Anna", b"/home", b"Rex", b"made_in", str(made.model.parent).encode()):
        assert word not in whole, word
    with_examples = made.pack(
        tmp_path / "e.comfyloop", BundleOptions(include=[Include.EXAMPLES], licence="apache-2.0")
    )
    assert b"Rex aus der Gasse" in with_examples.read_bytes()
    with zipfile.ZipFile(with_examples) as archive:
        assert 'license: "apache-2.0"' in archive.read("README.md").decode()
    with pytest.raises(InvalidInput, match="no contact sheet"):
        made.pack(tmp_path / "s.comfyloop", BundleOptions(include=[Include.SHEET]))


def test_a_thousand_mutated_bundles_are_all_refused_and_leave_nothing(
    made: Made, packed: Path, tmp_path: Path
) -> None:
    whole = packed.read_bytes()
    rng = random.Random(20)
    place = tmp_path / "b" / "mutated.comfyloop"
    place.parent.mkdir()
    for turn in range(1000):
        data = bytearray(whole)
        at = rng.randrange(len(data))
        match turn % 6:
            case 0 | 1:  # of the bytes that are no weights, too
                at = at if turn % 12 else len(data) - 1 - rng.randrange(3000)
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + rng.randrange(1, 400)]
            case 3:
                data[at:at] = rng.randbytes(rng.randrange(1, 40))
            case 4:
                del data[at:]
            case 5:
                other = rng.randrange(len(data))
                piece = data[other : other + 64]
                data[at : at + len(piece)] = (
                    piece if piece != data[at : at + len(piece)] else b"x" * len(piece)
                )
        place.write_bytes(data)
        with pytest.raises(ComfyLoopError):
            made.unpack(place, tmp_path / "in")
        assert not (tmp_path / "in").exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b", "mutated.comfyloop"]


def by_zip(packed: Path, target: Path, change: Callable[[zipfile.ZipFile], object]) -> Path:
    """The bundle packed again by another program, with something more in it."""
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        change(new)
    return target


def link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("examples.json")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda z: z.writestr("../evil.txt", "x"), "written outside its folder"),
        (lambda z: z.writestr("/tmp/evil.txt", "x"), "written outside its folder"),
        (lambda z: z.writestr("C:\\evil.txt", "x"), "written outside its folder"),
        (link, "holds a link"),
        (lambda z: z.writestr("text/adapter_model.bin", "x"), "a pickle .* runs code"),
        (lambda z: z.writestr("contact-sheet.png", b"\0" * 2**22, zipfile.ZIP_DEFLATED), "would grow from"),
        (lambda z: z.writestr("setup.py", "x"), "changed or packed again"),
        (lambda z: None, "changed or packed again"),
    ],
)
def test_what_was_planted_has_its_own_sentence(
    made: Made, packed: Path, tmp_path: Path, change: Callable[[zipfile.ZipFile], object], sentence: str
) -> None:
    file = by_zip(packed, tmp_path / "x.comfyloop", change)
    with pytest.raises(InvalidInput, match=sentence):
        made.unpack(file, tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["x.comfyloop"]


def rewritten(made: Made, target: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """A bundle of other contents, rightly signed: its maker means ill."""
    manifest, pieces = contents.gather(made.version, made.project, str, publisher="mallory")
    held = {piece.name: b"".join(piece.chunks()) for piece in pieces}
    change(held)
    bundle.write(manifest, [ArchivePiece(name, data) for name, data in held.items()], target, made.home)
    return target


def with_tensors(
    change: Callable[[dict[str, np.ndarray]], object], tmp_path: Path
) -> Callable[[dict[str, bytes]], None]:
    def rewrite(held: dict[str, bytes]) -> None:
        file = tmp_path / "w.safetensors"
        file.write_bytes(held["text/adapter_model.safetensors"])
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
        held["text/adapter_model.safetensors"] = file.read_bytes()
        file.unlink()

    return rewrite


def test_a_tensor_that_is_none_of_a_lora_is_refused(made: Made, tmp_path: Path) -> None:
    more = with_tensors(
        lambda t: t.update({"base_model.model.lm_head.weight": np.zeros((2, 2), np.float32)}), tmp_path
    )
    with pytest.raises(InvalidInput, match=r"lm_head.*not a LoRA tensor"):
        made.unpack(rewritten(made, tmp_path / "x", more), tmp_path / "in")
    nan = with_tensors(lambda t: t[min(t)].fill(np.nan), tmp_path)
    with pytest.raises(InvalidInput, match="not finite"):
        made.unpack(rewritten(made, tmp_path / "y", nan), tmp_path / "in")
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda h: h.update({"run.sh": b"x"}), "no part of a bundle"),
        (
            lambda h: h.update({"text/adapter_model.safetensors": b"\x80\x04."}),
            "not a whole safetensors file",
        ),
        (
            lambda h: h.update({"text/adapter_config.json": b"[" * 100_000}),
            "adapter_config.json that cannot be read",
        ),
        (lambda h: h.update({"text/adapter_config.json": b"[]"}), "adapter_config.json that cannot be read"),
        (lambda h: h.pop("text/adapter_config.json"), "lacks a part"),
        (lambda h: h.update({"README.md": b"x" * (5 * 2**20)}), "more than"),
    ],
)
def test_a_rightly_signed_bundle_is_looked_at_all_the_same(
    made: Made, tmp_path: Path, change: Callable[[dict[str, bytes]], object], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        made.unpack(rewritten(made, tmp_path / "x", change), tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_a_wrong_signature_and_none_have_their_own_sentences(
    made: Made, packed: Path, tmp_path: Path
) -> None:
    data = bytearray(packed.read_bytes())
    place = data.index(b"signature.ed25519") + len("signature.ed25519")
    crc = data.index(b"signature.ed25519") - 16
    data[place + 40] ^= 1
    import zlib

    new = zlib.crc32(data[place : place + 96]).to_bytes(4, "little")
    data[crc : crc + 4] = new
    index = data.rindex(b"signature.ed25519") - 46 + 16
    data[index : index + 4] = new
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InvalidInput, match="signature of x does not fit"):
        made.unpack(tmp_path / "x", tmp_path / "in")
    with pytest.raises(NotFound, match="cannot be read"):
        made.unpack(tmp_path / "none", tmp_path / "in")
    (tmp_path / "z").write_bytes(b"no zip at all, but long enough to be one of these")
    with pytest.raises(InvalidInput, match="not a zip file"):
        made.unpack(tmp_path / "z", tmp_path / "in")


def test_another_base_model_is_told_by_its_weights_and_by_its_kind(
    made: Made, packed: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="other weights"):
        made.unpack(packed, tmp_path / "in", model=save_model(tmp_path / "other", seed=1))
    with pytest.raises(InvalidInput, match=r"qwen3.*does not fit"):
        made.unpack(packed, tmp_path / "in", model=save_model(tmp_path / "kind", kind="qwen3"))
    made.unpack(packed, tmp_path / "in", model=save_model(tmp_path / "same"))


def test_the_same_public_model_fits_although_its_files_were_written_otherwise() -> None:
    from comfyloop.registry.base_model import refuse_other_base

    one = BaseModelOf(name="Qwen/Qwen3-VL", kind="qwen3_vl", weights="a" * 64)
    refuse_other_base("acme@1", one, one.model_copy(update={"weights": "b" * 64}))
    here = one.model_copy(update={"name": "qwen3-copy", "weights": "b" * 64})
    with pytest.raises(InvalidInput, match="other weights"):
        refuse_other_base("acme@1", one, here)


def test_a_key_is_trusted_on_first_use_and_another_one_is_not(tmp_path: Path) -> None:
    a, b, here = (tmp_path / name for name in ("a", "b", "here"))
    first, second = (keys.sign(home, b"x")[:32].hex() for home in (a, b))
    assert keys.own(a) == first and (a / "keys" / "signing.key").stat().st_mode & 0o77 == 0
    met = keys.look_up(here, "anna", first)
    assert met.remember and keys.short(first) in met.sentence
    keys.remember(here, "anna", first)
    assert not keys.look_up(here, "anna", first).remember
    with pytest.raises(Conflict, match="signed with the key"):
        keys.look_up(here, "anna", second)
    assert keys.look_up(here, "anna", second, accept=True).remember
    assert "itself" in keys.look_up(a, "anna", first).sentence


def test_lineage_goes_on_where_a_version_came_from_elsewhere(
    made: Made, packed: Path, tmp_path: Path
) -> None:
    from comfyloop.records import Origin

    opened, _ = made.unpack(packed, tmp_path / "in")
    origin = Origin(
        publisher="anna", key=opened.key, project="acme", number=17, version=opened.manifest.version,
        lineage=(Ancestor(version="c" * 64),), bundle=opened.sha256,
    )  # fmt: skip
    line = [
        Version(project="mine", number=2, sha256="d" * 64, text_adapter="x"),
        Version(project="mine", number=1, sha256="e" * 64, text_adapter="x", origin=origin),
    ]
    found = contents.ancestors(line)
    assert [one.version for one in found] == ["d" * 64, opened.manifest.version, "c" * 64]
    assert [one.publisher for one in found] == ["", "anna", ""]
