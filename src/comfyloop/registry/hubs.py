"""Versions on model hubs, Hugging Face's and ModelScope's, by their own clients.

A repository contains the files of a bundle unchanged, so that PEFT and diffusers can load from it, and each file is
stored once. Since a bundle's bytes are determined by its files, pulling reassembles exactly the bundle that was
pushed, with a valid signature.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from comfyloop import hub_clients
from comfyloop.durable import write_whole
from comfyloop.errors import (
    ComfyLoopError,
    EngineUnavailable,
    InvalidInput,
    NotFound,
    QueueFull,
)
from comfyloop.hub_clients import Meaning
from comfyloop.registry import bundle
from comfyloop.registry.archive import disk_error
from comfyloop.registry.manifest import KNOWN

_PLACE = re.compile(
    r"^(?P<hub>hf|ms):(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(@(?P<revision>[\w.-]+(/[\w.-]+){0,9}))?$"
)
_NAMES = {"hf": "Hugging Face", "ms": "ModelScope"}
_LOGIN = {
    "hf": "Log in with `hf auth login`, or set HF_TOKEN to a token that may do so.",
    "ms": "Set MODELSCOPE_API_TOKEN to a token of https://modelscope.cn/my/myaccesstoken.",
}


class HubPlace(NamedTuple):
    """A repository on a hub: `hf:user/name`, `ms:user/name`, with `@revision` where one is wanted."""

    hub: Literal["hf", "ms"]
    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubPlace:
        """Raises InvalidInput: It names no repository."""
        match = _PLACE.match(text)
        if match is None:
            raise InvalidInput(
                f"{text[:200]!r} names no place on a hub.", "Write hf:user/name or ms:user/name."
            )
        return cls("hf" if match["hub"] == "hf" else "ms", match["repo"], match["revision"])

    def __str__(self) -> str:
        return f"{self.hub}:{self.repo}" + (f"@{self.revision}" if self.revision else "")


def push(file: Path, place: HubPlace, staging: Path, *, private: bool, quiet: bool = False) -> None:
    """Create the repository if needed, and upload the files of a bundle that it lacks.

    Args:
        staging: A folder that is kept between tries: an upload that broke off goes on.

    Raises:
        InvalidInput: The bundle is none, or the hub does not let this person do it.
        EngineUnavailable, QueueFull, StorageError: See `_in_sentences`.
    """
    folder = staging / "files"
    shutil.rmtree(folder, ignore_errors=True)
    bundle.unfold(file, folder)
    with _in_sentences(place), _quietly(quiet):
        if place.hub == "hf":
            _hf_push(folder, place, private)
        else:
            _ms_push(folder, place, private, staging / "uploaded", quiet)


def pull(place: HubPlace, folder: Path, *, quiet: bool = False) -> Path:
    """The bundle from a repository, reassembled in `folder`, which is kept between attempts.

    Raises:
        NotFound: There is no such repository, or it holds no version of ComfyLoop's.
        InvalidInput: The hub does not let this person do it, or a file came otherwise than it was signed.
        EngineUnavailable, QueueFull, StorageError: See `_in_sentences`.
    """
    files = folder / "files"
    with _in_sentences(place), _quietly(quiet):
        if place.hub == "hf":
            _hf_pull(place, files, sorted(KNOWN))
        else:
            _ms_pull(place, files, sorted(KNOWN))
    name = place.repo.rpartition("/")[2]
    try:
        return bundle.fold(files, folder / f"{name}.comfyloop")
    except NotFound:
        raise NotFound(
            f"{place} holds no version of ComfyLoop's: it has no manifest.", "Name another repository."
        ) from None


def base_model(model: str, cache: Path) -> str | None:
    """What is loaded for a base model that is named with its hub: a hub id for transformers, or the folder of what
    was downloaded, ModelScope's models and those of a `@revision`; None where no hub is named."""
    if not model.startswith(("hf:", "ms:")):
        return None
    place = HubPlace.parse(model)
    if place.hub == "hf":
        return place.repo if place.revision is None else _hf_model(place)
    # A folder for each revision: what is downloaded of one would be taken for the other.
    revision = f"@{place.revision}" if place.revision else ""
    folder = cache / "modelscope" / f"{place.repo}{revision}".replace("/", "--")
    whole = folder / ".whole.json"
    stamp = json.dumps({"repo": place.repo, "revision": place.revision}) + "\n"
    if not whole.is_file() or whole.read_text("utf-8") != stamp:
        with _in_sentences(place):
            _ms_pull(place, folder, None)
            write_whole(whole, stamp)
    return str(folder)


# --- Hugging Face


def _hf_model(place: HubPlace) -> str:
    with _in_sentences(place):
        return str(
            hub_clients.hugging_face().snapshot_download(
                place.repo, revision=place.revision, ignore_patterns=["original/*", "onnx/*"]
            )
        )


def _hf_push(folder: Path, place: HubPlace, private: bool) -> None:
    api = hub_clients.hugging_face()
    api.create_repo(place.repo, private=private, exist_ok=True)
    message = f"{folder.name}: a version of ComfyLoop's"
    api.upload_folder(repo_id=place.repo, folder_path=folder, revision=place.revision, commit_message=message)


def _hf_pull(place: HubPlace, into: Path, names: list[str]) -> None:
    hub_clients.hugging_face().snapshot_download(
        place.repo, revision=place.revision, local_dir=into, allow_patterns=names, max_workers=4
    )


# --- ModelScope


def _ms_push(folder: Path, place: HubPlace, private: bool, tracker: Path, quiet: bool) -> None:
    api = hub_clients.modelscope()
    if not api.repo_exists(place.repo, "model"):
        api.create_repo(place.repo, "model", visibility="private" if private else "public")
    api.upload_folder(
        place.repo, "model", folder, revision=place.revision, tracker_path=tracker, disable_tqdm=quiet
    )


def _ms_pull(place: HubPlace, into: Path, names: list[str] | None) -> None:
    hub_clients.modelscope().download_repo(
        place.repo, "model", revision=place.revision, local_dir=into, allow_patterns=names
    )


# --- what goes wrong


@contextlib.contextmanager
def _quietly(quiet: bool) -> Iterator[None]:
    """Progress is shown by the clients themselves, on standard error, unless nothing is to be."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logging.getLogger("modelscope_hub").setLevel(logging.WARNING)
    if not quiet or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextlib.contextmanager
def _in_sentences(place: HubPlace) -> Iterator[None]:
    """The clients' many errors as ours.

    Raises:
        NotFound: There is no such repository or revision.
        InvalidInput: The hub does not let this person do it.
        QueueFull: It asks to wait.
        EngineUnavailable: It cannot be reached, or the connection broke off.
        StorageError: This machine's disk is full.
    """
    try:
        yield
    except ComfyLoopError:
        raise
    except Exception as error:
        raise _sentence(place, error) from error


def _sentence(place: HubPlace, error: BaseException) -> ComfyLoopError:
    hub, failure = _NAMES[place.hub], hub_clients.understood(error)
    match failure.meaning:
        case Meaning.DISK_FULL | Meaning.LOCAL:
            assert isinstance(failure.cause, OSError)
            return disk_error(Path(failure.cause.filename or "."), failure.cause)
        case Meaning.OFFLINE:
            return InvalidInput("HF_HUB_OFFLINE is set, so no hub is asked.", "Unset it, and start again.")
        case Meaning.NOT_THERE | Meaning.NO_REVISION | Meaning.NO_FILE:
            return NotFound(
                f"{hub} has no {place}, or not for you.", f"Look at the name. {_LOGIN[place.hub]}"
            )
        case Meaning.NOT_ALLOWED | Meaning.GATED:
            return InvalidInput(f"{hub} does not let you do this with {place}.", _LOGIN[place.hub])
        case Meaning.NO_ID:
            return InvalidInput(
                f"{hub} does not take the name {place}: {failure.told}.", "Give another name."
            )
        case Meaning.TOO_OFTEN:
            when = f"in {failure.wait:.0f} seconds" if failure.wait else "in some minutes"
            return QueueFull(
                f"{hub} asks to wait: it was called too often.",
                f"Try again {when}.",
                retry_after=failure.wait or None,
            )
        case Meaning.DAMAGED:
            return InvalidInput(
                f"A file of {place} came otherwise than {hub} says that it is.", "Do it again."
            )
        case _:
            return EngineUnavailable(
                f"{hub} could not be reached, or the connection broke off ({failure.told}).",
                "Do it again: what has gone over stays there.",
            )
