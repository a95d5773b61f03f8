"""The hubs' own clients, Hugging Face's and ModelScope's: how to create them, and how to interpret their errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple

from comfyloop.errors import InvalidInput

INSTALL = "pip install 'comfyloop[hubs]'"


def hugging_face() -> Any:
    """`HfApi` for the hub of HF_ENDPOINT; it takes its token from HF_TOKEN or `hf auth login`.

    Raises:
        InvalidInput: It is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise InvalidInput("huggingface_hub is not installed.", INSTALL) from None
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


def modelscope() -> Any:
    """`HubApi` for the hub of MODELSCOPE_ENDPOINT, with the token of MODELSCOPE_API_TOKEN.

    Raises:
        InvalidInput: It is not installed.
    """
    try:
        from modelscope_hub import HubApi, HubConfig
    except ImportError:
        raise InvalidInput("modelscope-hub is not installed.", INSTALL) from None
    # Said each time: the client's own configuration is what the environment said when it was first asked.
    names = {"endpoint": "MODELSCOPE_ENDPOINT", "token": "MODELSCOPE_API_TOKEN"}
    return HubApi(
        HubConfig(
            **{name: os.environ[variable] for name, variable in names.items() if os.environ.get(variable)}
        )
    )


class Meaning(StrEnum):
    """What an error of either client is."""

    DISK_FULL = "disk-full"
    OFFLINE = "offline"  # a variable says that no hub is to be asked
    NO_ID = "no-id"  # no name that a repository can have
    GATED = "gated"  # its owner is to be asked first
    NO_REVISION = "no-revision"
    NO_FILE = "no-file"
    NOT_THERE = "not-there"  # or not for this person
    NOT_ALLOWED = "not-allowed"
    TOO_OFTEN = "too-often"
    DAMAGED = "damaged"  # what came is not what the hub says
    LOCAL = "local"  # a file of this machine
    FOR_NOW = "for-now"  # the hub's own fault, or the connection's
    UNKNOWN = "unknown"


class ClientError(NamedTuple):
    """An error of a client, understood.

    Attributes:
        status: HTTP's, 0 where there is none.
        wait: Seconds that the hub asks to wait; 0: it does not say.
        told: What it says, in a line.
        cause: The error among its causes that says so.
    """

    meaning: Meaning
    status: int
    wait: float
    told: str
    cause: BaseException


_NAMES = {
    Meaning.OFFLINE: {"OfflineModeIsEnabled"},
    Meaning.NO_ID: {"HFValidationError", "InvalidParameter"},
    Meaning.GATED: {"GatedRepoError"},
    Meaning.NO_REVISION: {"RevisionNotFoundError"},
    Meaning.NO_FILE: {"EntryNotFoundError", "RemoteEntryNotFoundError"},
    Meaning.NOT_THERE: {"RepositoryNotFoundError", "NotExistError", "NotFoundError"},
    Meaning.NOT_ALLOWED: {"AuthenticationError", "PermissionDeniedError", "LocalTokenNotFoundError"},
    Meaning.TOO_OFTEN: {"RateLimitError"},
    Meaning.DAMAGED: {"FileIntegrityError", "FileSizeMismatchError"},
    Meaning.FOR_NOW: {
        *("LocalEntryNotFoundError", "FileMetadataError", "ServerError", "NetworkError"),
        *("RequestTimeoutError", "StorageError", "FileDownloadError"),
    },
}
"""By the names of the clients' errors, which are imported with the clients alone; the first that fits counts."""
_AFTER_STATUS = frozenset({Meaning.TOO_OFTEN, Meaning.DAMAGED, Meaning.FOR_NOW})
"""A status says more than these names."""
_STATUSES = {
    401: Meaning.NOT_ALLOWED,
    403: Meaning.NOT_ALLOWED,
    404: Meaning.NOT_THERE,
    429: Meaning.TOO_OFTEN,
}


def understood(error: BaseException) -> ClientError:
    """Classify an error of a client by itself and its causes."""
    causes = list(_causes(error))
    status = next(filter(None, map(_status, causes)), 0)
    wait = max(_wait(cause) for cause in causes)
    message = (str(causes[-1]) or type(causes[-1]).__name__).partition("\n")[0][:200]
    meaning, cause = _meaning(error, causes, status)
    return ClientError(meaning, status, wait, f"status {status}" if status else message, cause)


def _meaning(error: BaseException, causes: list[BaseException], status: int) -> tuple[Meaning, BaseException]:
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return Meaning.DISK_FULL, cause
    names = {type(cause).__name__ for cause in causes}
    meaning_by_name = next(
        (meaning for meaning, names_of_meaning in _NAMES.items() if names & names_of_meaning), None
    )
    if meaning_by_name is not None and meaning_by_name not in _AFTER_STATUS:
        return meaning_by_name, error
    if status in _STATUSES:
        return _STATUSES[status], error
    if meaning_by_name is not None:
        return meaning_by_name, error
    if any("onsistency check failed" in str(cause) for cause in causes):
        return Meaning.DAMAGED, error
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return Meaning.LOCAL, error
    import httpx

    if status >= 500 or any(isinstance(cause, httpx.HTTPError | OSError) for cause in causes):
        return Meaning.FOR_NOW, error
    return Meaning.UNKNOWN, error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    ids: set[int] = set()
    waiting = [error]
    while waiting:
        cause = waiting.pop(0)
        if cause is None or id(cause) in ids:
            continue
        ids.add(id(cause))
        yield cause
        failed = getattr(cause, "failed_files", None)  # modelscope-hub's, of several files
        waiting += [
            *(failed.values() if isinstance(failed, dict) else ()),
            cause.__cause__,
            cause.__context__,
        ]


def _status(error: BaseException) -> int:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None) or getattr(error, "status_code", None)
    return int(status) if isinstance(status, int) else 0


def _wait(error: BaseException) -> float:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return float(headers.get("retry-after") or headers.get("Retry-After") or 0)
    except (TypeError, ValueError):
        return 0.0
