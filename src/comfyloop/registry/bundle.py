"""Exports, inspects and unpacks bundles."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from comfyloop import platforms
from comfyloop.complaints import in_words
from comfyloop.errors import InvalidInput, NotFound
from comfyloop.models.rope import RopeScaling
from comfyloop.platforms import sync
from comfyloop.records import Version
from comfyloop.registry import archive, base_model, keys
from comfyloop.registry.archive import ASK_AGAIN, ArchivePiece, ArchiveWriter, Reader, disk_error, shown
from comfyloop.registry.manifest import (
    IMAGE_WEIGHTS,
    KNOWN,
    MANIFEST,
    MOST_SHEET,
    MOST_WORDS,
    SHEET,
    SIGNATURE,
    SMALL,
    TEXT_CONFIG,
    TEXT_POSITIONS,
    TEXT_WEIGHTS,
    BaseModelOf,
    BundleFile,
    Manifest,
)

MOST_BYTES = 4 * 2**30


class Opened(NamedTuple):
    """A bundle whose manifest and signature are valid; the rest has not been checked."""

    manifest: Manifest
    key: str
    sha256: str  # of the manifest


class Imported(NamedTuple):
    """An imported bundle: the resulting candidate, and a sentence about its key."""

    version: Version
    manifest: Manifest
    trust: str


class Sides(NamedTuple):
    """The paths of an unpacked bundle's sides, and the SHA-256 of their files."""

    text: Path | None
    image: Path | None
    hashes: dict[Path, bytes]


def write(manifest: Manifest, pieces: Sequence[ArchivePiece], target: Path, home: Path) -> Manifest:
    """Pack and sign a bundle, atomically.

    Raises:
        StorageError: The disk refuses, or the key cannot be used.
    """
    keys.needed()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as handle:
            packing = ArchiveWriter(handle)
            files = [packing.add(piece) for piece in pieces]
            complete_manifest = manifest.model_copy(
                update={"files": tuple(BundleFile(**file._asdict()) for file in files)}
            )
            body = (complete_manifest.model_dump_json(indent=2) + "\n").encode()
            packing.add(ArchivePiece(MANIFEST, body))
            packing.add(ArchivePiece(SIGNATURE, keys.sign(home, body)))
            packing.close()
        sync(part)
        platforms.replace(part, target)
        sync(target.parent)
    except OSError as error:
        raise disk_error(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return complete_manifest


def look(file: Path) -> Opened:
    """The manifest and the signer of a bundle; the weights are not read.

    Raises:
        NotFound: There is no such file.
        InvalidInput: It is no bundle, or not as it was signed.
    """
    with _reading(file, MOST_BYTES) as reader:
        return _open(reader)


def unpack(
    file: Path,
    into: Path,
    *,
    text_base: BaseModelOf | None,
    image_base: BaseModelOf | None,
    text_place: str = "",
    image_place: str = "",
    positions: RopeScaling | None = None,
    most_bytes: int = MOST_BYTES,
) -> tuple[Opened, Sides]:
    """Check a bundle completely, including against the base models of a project, and unpack it into the new folder
    `into`.

    Args:
        text_base, image_base: Of the project; None: it has none.
        text_place, image_place: Where they lie.
        positions: How the engine scales positions.

    Raises:
        NotFound: There is no such file.
        InvalidInput: It is not taken; says why. Nothing stays of it.
        StorageError: The disk refuses.
    """
    try:
        with _reading(file, most_bytes) as reader:
            opened = _open(reader)
            _refuse_other_bases(opened.manifest, text_base, image_base)
            sides = _write_out(reader, opened.manifest, into)
        name = f"The bundle {file.name}"
        if sides.text is not None:
            base_model.check_text(name, sides.text, text_place, positions)
        if sides.image is not None:
            base_model.check_image(name, sides.image, image_place)
    except OSError as error:
        shutil.rmtree(into, ignore_errors=True)
        raise disk_error(into, error) from error
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise
    return opened, sides


def verify(file: Path) -> tuple[Opened, str]:
    """As `look`, but also verify every file; also returns the SHA-256 of the whole bundle, which is read only
    once."""
    with _reading(file, MOST_BYTES) as reader:
        opened = _open(reader)
        digests = {one.name: hashlib.sha256() for one in reader.files}
        whole = reader.whole(lambda one, chunk: digests[one.name].update(chunk))
        for signed in opened.manifest.files:
            if digests[signed.name].hexdigest() != signed.sha256:
                raise _other(signed.name, reader.name)
    return opened, whole


def unfold(file: Path, folder: Path) -> Opened:
    """The files of a bundle, as they are, in the new folder `folder`; only hashes and the signature are looked at.

    Raises:
        NotFound, InvalidInput: As of `look`, or a file is not what was signed.
        StorageError: The disk refuses.
    """
    try:
        with _reading(file, MOST_BYTES) as reader:
            opened = _open(reader)
            signed = {one.name: one.sha256 for one in opened.manifest.files}
            for one in reader.files:
                target = folder / one.name
                target.parent.mkdir(parents=True, exist_ok=True)
                digest = _copy(reader, one, target)
                if digest.hexdigest() != signed.get(one.name, digest.hexdigest()):
                    raise _other(one.name, reader.name)
    except OSError as error:
        raise disk_error(folder, error) from error
    return opened


def fold(folder: Path, target: Path) -> Path:
    """Reassemble the bundle from its files in `folder`, byte for byte.

    Raises:
        NotFound: There is no manifest, or one of its files.
        InvalidInput: A file is not what was signed. It is removed, so that it is fetched again.
        StorageError: The disk refuses.
    """
    body, signature = folder / MANIFEST, folder / SIGNATURE
    if not body.is_file() or not signature.is_file():
        raise NotFound(f"{folder} has no manifest or no signature.")
    try:
        manifest = Manifest.model_validate_json(body.read_bytes())
    except (ValidationError, RecursionError):
        raise InvalidInput("The manifest cannot be read.", ASK_AGAIN) from None
    for one in manifest.files:
        if one.name not in KNOWN or (folder / one.name).is_symlink():
            raise InvalidInput(f"{shown(one.name)} is no part of a bundle.", ASK_AGAIN)
        if not (folder / one.name).is_file():
            raise NotFound(f"{one.name} is missing.", ASK_AGAIN)
    try:
        with target.open("wb") as handle:
            packing = ArchiveWriter(handle)
            for one in manifest.files:
                archived = packing.add(ArchivePiece(one.name, path=folder / one.name))
                if archived.sha256 != one.sha256:
                    (folder / one.name).unlink()
                    raise _other(one.name, target.name)
            packing.add(ArchivePiece(MANIFEST, path=body))
            packing.add(ArchivePiece(SIGNATURE, path=signature))
            packing.close()
    except OSError as error:
        target.unlink(missing_ok=True)
        raise disk_error(target, error) from error
    except InvalidInput:
        target.unlink(missing_ok=True)
        raise
    return target


def _copy(reader: Reader, file: archive.ArchivedFile, target: Path) -> hashlib._Hash:
    digest = hashlib.sha256()
    with target.open("xb") as handle:
        for chunk in reader.chunks(file):
            digest.update(chunk)
            handle.write(chunk)
    return digest


def _other(file: str, bundle: str) -> InvalidInput:
    return InvalidInput(f"{file} in {bundle} is not what was signed: its hash does not fit.", ASK_AGAIN)


@contextlib.contextmanager
def _reading(file: Path, most_bytes: int) -> Iterator[Reader]:
    try:
        handle = file.open("rb")
    except OSError as error:
        raise NotFound(f"{file} cannot be read: {error.strerror}.", "Name a .comfyloop file.") from None
    with handle:
        yield Reader(handle, file.name, most_bytes)


def _open(reader: Reader) -> Opened:
    files = {file.name: file for file in reader.files}
    for name in files:
        if name not in KNOWN:
            raise InvalidInput(f"{reader.name} holds {shown(name)}, which is no part of a bundle.", ASK_AGAIN)
    for name, what in ((MANIFEST, "no manifest"), (SIGNATURE, "no signature")):
        if name not in files:
            raise InvalidInput(f"{reader.name} has {what}: nobody answers for what is in it.", ASK_AGAIN)
    body = reader.read(files[MANIFEST], MOST_WORDS)
    key = keys.signer(reader.name, reader.read(files[SIGNATURE], MOST_WORDS), body)
    try:
        manifest = Manifest.model_validate_json(body)
    except ValidationError as error:
        wrong = in_words(error.errors(), "the manifest")
        raise InvalidInput(f"{reader.name} has a manifest that cannot be read: {wrong}.", ASK_AGAIN) from None
    except RecursionError:
        raise InvalidInput(f"{reader.name} has a manifest that cannot be read.", ASK_AGAIN) from None
    signed_files = {file.name: (file.bytes, file.crc32) for file in manifest.files}
    archived_files = {
        name: (file.bytes, file.crc32) for name, file in files.items() if name not in (MANIFEST, SIGNATURE)
    }
    if signed_files != archived_files or len(signed_files) != len(manifest.files):
        raise InvalidInput(f"{reader.name} does not hold the files that were signed.", ASK_AGAIN)
    for file in manifest.files:
        most = MOST_WORDS if file.name in SMALL else MOST_SHEET if file.name == SHEET else MOST_BYTES
        if file.bytes > most:
            raise InvalidInput(
                f"{file.name} in {reader.name} has {file.bytes} bytes, more than {most}.", ASK_AGAIN
            )
    return Opened(manifest, key, hashlib.sha256(body).hexdigest())


def _refuse_other_bases(manifest: Manifest, text: BaseModelOf | None, image: BaseModelOf | None) -> None:
    names = {file.name for file in manifest.files}
    sides = (
        ("text", manifest.text_base, {TEXT_CONFIG, TEXT_WEIGHTS}),
        ("image", manifest.image_base, {IMAGE_WEIGHTS}),
    )
    for side, made_for, needed in sides:
        if (made_for is not None) != bool(needed & names) or (made_for is not None and not needed <= names):
            raise InvalidInput(
                f"The bundle does not say what its {side} side is, or lacks a part of it.", ASK_AGAIN
            )
    if manifest.text_base is None and manifest.image_base is None:
        raise InvalidInput("The bundle has neither a text nor an image side.", ASK_AGAIN)
    if TEXT_POSITIONS in names and manifest.text_base is None:
        raise InvalidInput("The bundle does not say what its text side is, or lacks a part of it.", ASK_AGAIN)
    what = f"{manifest.project}@{manifest.number}"
    if manifest.text_base is not None and text is not None:
        base_model.refuse_other_base(what, manifest.text_base, text)
    if manifest.image_base is not None:
        if image is None:
            raise InvalidInput(
                f"{what} has an image side, for {manifest.image_base.name}, and this project has no image model.",
                "Import it into a project with that image model.",
            )
        base_model.refuse_other_base(what, manifest.image_base, image)


def _write_out(reader: Reader, manifest: Manifest, into: Path) -> Sides:
    """Each file whose hash is the signed one, under the name that is expected there and no other."""
    hashes: dict[Path, bytes] = {}
    packed = {file.name: file for file in reader.files}
    for file in manifest.files:
        target = into / (file.name if "/" in file.name else f"origin/{file.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = _copy(reader, packed[file.name], target)
        if digest.hexdigest() != file.sha256:
            raise _other(file.name, reader.name)
        sync(target)
        hashes[target] = digest.digest()
    own = into / "origin" / MANIFEST
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for folder in (into / "text", into / "image", into / "origin", into):
        if folder.is_dir():
            sync(folder)
    text = into / "text" if manifest.text_base is not None else None
    image = into / IMAGE_WEIGHTS if manifest.image_base is not None else None
    return Sides(text, image, hashes)
