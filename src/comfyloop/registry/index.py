"""Indexes of bundles: a folder, a git repository or a web address with an `index.json` in it.

An index is created by whoever holds the files and is not trusted: a bundle is verified again when it is adopted.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
from pydantic import Field, StringConstraints, ValidationError

from comfyloop.complaints import in_words
from comfyloop.durable import write_whole
from comfyloop.errors import ComfyLoopError, EngineUnavailable, InvalidInput, NotFound
from comfyloop.files import regular
from comfyloop.records import Record
from comfyloop.registry import bundle, keys
from comfyloop.registry.archive import CHUNK, disk_error
from comfyloop.registry.manifest import SHEET, BaseModelOf, Line

INDEX, PAGE, SHEETS = "index.json", "index.html", "sheets"
MOST_INDEX = 16 * 2**20
GIT_SECONDS = 600

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]{0,200}\.comfyloop$")]


class IndexEntry(Record):
    """One bundle of an index. `problem` says why it cannot be adopted."""

    file: FileName
    bytes: int = Field(ge=0)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]  # of the whole file
    name: Line = ""  # acme@17
    publisher: Line = ""
    key: Line = ""
    text_base: BaseModelOf | None = None
    image_base: BaseModelOf | None = None
    licence: Line = ""
    trigger_words: Line = ""
    verdict: Line = ""
    has_sheet: bool = False
    problem: str = Field(default="", max_length=2000)


class BundleIndex(Record):
    format: Literal[1] = 1
    entries: tuple[IndexEntry, ...] = Field(max_length=100_000)


def build(folder: Path) -> BundleIndex:
    """Write `index.json`, a page for people and the contact sheets beside the bundles in `folder`.

    Raises:
        NotFound: There is no such folder.
        StorageError: The disk refuses.
    """
    if not folder.is_dir():
        raise NotFound(f"There is no folder {folder}.", "Name the folder with the .comfyloop files.")
    index = BundleIndex(
        entries=tuple(_entry(file) for file in sorted(folder.glob("*.comfyloop")) if file.is_file())
    )
    try:
        shutil.rmtree(folder / SHEETS, ignore_errors=True)
        for entry in index.entries:
            if entry.has_sheet and not entry.problem:
                (folder / SHEETS).mkdir(exist_ok=True)
                with zipfile.ZipFile(folder / entry.file) as archive:
                    (folder / SHEETS / f"{entry.file}.png").write_bytes(archive.read(SHEET))
        write_whole(folder / INDEX, index.model_dump_json(indent=2) + "\n")
        write_whole(folder / PAGE, page(index))
    except OSError as error:
        raise disk_error(folder, error) from error
    return index


def _entry(file: Path) -> IndexEntry:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,200}\.comfyloop", file.name):
        raise InvalidInput(
            f"{file.name!r} cannot be listed.", "Use letters, digits, dots and dashes in names of files."
        )
    fields: dict[str, Any] = {"file": file.name, "bytes": file.stat().st_size}
    try:
        verified_bundle, fields["sha256"] = bundle.verify(file)
    except ComfyLoopError as error:
        with file.open("rb") as handle:
            fields["sha256"] = hashlib.file_digest(handle, "sha256").hexdigest()
        return IndexEntry(**fields, problem=str(error)[:2000])
    manifest = verified_bundle.manifest
    return IndexEntry(
        **fields,
        name=f"{manifest.project}@{manifest.number}",
        publisher=manifest.publisher,
        key=verified_bundle.key,
        text_base=manifest.text_base,
        image_base=manifest.image_base,
        licence=manifest.licence,
        trigger_words=manifest.trigger_words,
        verdict=manifest.verdict,
        has_sheet=any(one.name == SHEET for one in manifest.files),
    )


# --- reading one that somebody else made


def read(place: str, cache: Path) -> BundleIndex:
    """The index at a folder, a git repository (`git+https://…`, or an address that ends in .git) or a web address.

    Raises:
        NotFound: There is none.
        InvalidInput: It is no index.
        EngineUnavailable: It cannot be reached.
    """
    try:
        if _is_web(place):
            text = _get(f"{place.rstrip('/')}/{INDEX}", MOST_INDEX)
        else:
            text = regular(_folder(place, cache) / INDEX, MOST_INDEX).read_bytes()
    except OSError as error:
        raise NotFound(
            f"{place} has no index: {error.strerror}.", "`comfyloop index build DIR` makes one."
        ) from None
    try:
        return BundleIndex.model_validate_json(text)
    except ValidationError as error:
        raise InvalidInput(
            f"The index of {place} cannot be read: {in_words(error.errors(), 'it')}."
        ) from None
    except RecursionError:
        raise InvalidInput(f"The index of {place} cannot be read.") from None


def fetch(place: str, name: str, cache: Path, most_bytes: int) -> Path:
    """The file of one entry, by its name (acme@17) or its file's name; it is what the index says, to the bit.

    Raises:
        NotFound: The index has no such entry.
        InvalidInput: The entry is bad, or the file is another one.
        EngineUnavailable: It cannot be reached.
        StorageError: The disk refuses.
    """
    entries = [one for one in read(place, cache).entries if name in (one.name, one.file)]
    good = [one for one in entries if not one.problem]
    if not entries:
        raise NotFound(f"{place} has no {name}.", f"comfyloop browse {place} lists what it has.")
    if not good:
        raise InvalidInput(f"{name} cannot be adopted: {entries[0].problem}")
    if len(good) > 1:
        raise InvalidInput(
            f"{place} has several {name}.", f"Name the file: {', '.join(one.file for one in good)}."
        )
    entry = good[0]
    if entry.bytes > most_bytes:
        raise InvalidInput(
            f"{name} has {entry.bytes} bytes, more than {most_bytes}.", "Raise the setting max_bundle_bytes."
        )
    target = cache / "adopted" / f"{entry.sha256[:16]}.comfyloop"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sha256 = (
            _download(place, entry, target)
            if _is_web(place)
            else _copied(regular(_folder(place, cache) / entry.file, most_bytes), target)
        )
    except OSError as error:
        raise disk_error(target, error) from error
    if sha256 != entry.sha256:
        target.unlink(missing_ok=True)
        raise InvalidInput(
            f"{entry.file} is another file than the index of {place} says: its hash does not fit."
        )
    return target


def _is_web(place: str) -> bool:
    return place.startswith(("http://", "https://")) and not place.rstrip("/").endswith(".git")


def _folder(place: str, cache: Path) -> Path:
    if not (place.startswith("git+") or place.endswith(".git")):
        return Path(place).expanduser()
    address = place.removeprefix("git+")
    if address.startswith("-"):
        raise InvalidInput(f"{place!r} is no address of a repository.")
    target = cache / "indexes" / hashlib.sha256(address.encode()).hexdigest()[:16]
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file"}
    command = [
        "git",
        "-c",
        "core.symlinks=false",
        "clone",
        "--quiet",
        "--depth",
        "1",
        "--",
        address,
        str(target),
    ]
    try:
        result = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=GIT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise InvalidInput(
            "Repositories are read by `git`, which is not installed.", "Install git."
        ) from None
    except subprocess.TimeoutExpired:
        raise EngineUnavailable(
            f"{address} was not there within {GIT_SECONDS} seconds.", "Try again."
        ) from None
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["git failed"])[-1][:300]
        raise EngineUnavailable(
            f"{address} cannot be cloned: {reason}.", "Look at the address, and try again."
        )
    return target


def _get(url: str, most: int) -> bytes:
    data = b""
    with _answer(url) as response:
        for chunk in response.iter_bytes(CHUNK):
            data += chunk
            if len(data) > most:
                raise InvalidInput(f"{url} has more than {most} bytes.")
    return data


def _download(place: str, entry: IndexEntry, target: Path) -> str:
    digest, size = hashlib.sha256(), 0
    with _answer(f"{place.rstrip('/')}/{entry.file}") as response, target.open("wb") as handle:
        for chunk in response.iter_bytes(CHUNK):
            digest.update(chunk)
            handle.write(chunk)
            size += len(chunk)
            if size > entry.bytes:
                break
    return digest.hexdigest()


@contextlib.contextmanager
def _answer(url: str) -> Iterator[httpx.Response]:
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=60) as response:
            if response.status_code == 404:
                raise NotFound(f"There is nothing at {url}.", "Look at the address.")
            response.raise_for_status()
            yield response
    except httpx.HTTPError as error:
        raise EngineUnavailable(f"{url} could not be fetched: {error}.", "Try again.") from None


def _copied(file: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as source, target.open("wb") as handle:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            handle.write(chunk)
    return digest.hexdigest()


# --- the page


def page(index: BundleIndex) -> str:
    """A page without scripts that any web host serves."""
    cards = "\n".join(_card(entry) for entry in index.entries) or "<p>There are no bundles here yet.</p>"
    return _PAGE.replace("{cards}", cards)


def _card(entry: IndexEntry) -> str:
    if entry.problem:
        return (
            f'<article class="bad"><h2>{_text(entry.file)}</h2><p><strong>Cannot be adopted.</strong> '
            f"{_text(entry.problem)}</p></article>"
        )
    bases = " and ".join(base.name for base in (entry.text_base, entry.image_base) if base is not None)
    rows = {
        "for": bases,
        "by": f"{entry.publisher}, key {keys.short(entry.key)}",
        "licence": entry.licence or "none given",
        "trigger words": entry.trigger_words,
        "gate": entry.verdict.replace("_", " ") or "not judged",
    }
    listed = "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in rows.items() if value)
    sheet = (
        f'<img src="{SHEETS}/{entry.file}.png" alt="Before and after" loading="lazy">'
        if entry.has_sheet
        else ""
    )
    return (
        f"<article><h2>{_text(entry.name)}</h2>{sheet}<dl>{listed}</dl>"
        f'<p><a href="{entry.file}" download>{_text(entry.file)}</a>, {entry.bytes / 2**20:.1f} MB</p></article>'
    )


def _text(value: str) -> str:
    return html.escape(value, quote=True)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src 'self'; style-src 'unsafe-inline'">
<title>Versions to adopt</title><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
article { border: 1px solid #bbb; border-radius: 8px; padding: 1rem; overflow-wrap: anywhere; }
article.bad { border-color: #b00020; background: #fff4f4; color: #600; }
h2 { margin: 0 0 .5rem; font-size: 1.1rem; } img { max-width: 100%; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .75rem; } dt { color: #666; } dd { margin: 0; }
@media (prefers-color-scheme: dark) {
  body { background: #161616; color: #eee; } article.bad { background: #311; color: #fbb; }
  dt { color: #aaa; } a { color: #8cf; }
}
</style></head><body><h1>Versions to adopt</h1>
<p><code>comfyloop adopt ADDRESS NAME</code> verifies one, judges it on your own corrections, and offers to make it
live.</p>
<main>
{cards}
</main></body></html>
"""
