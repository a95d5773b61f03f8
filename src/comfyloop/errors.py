"""The exceptions of ComfyLoop, one tree.

Every message is a sentence that says what is wrong, followed by how to mend it::

    ComfyLoopError
    ├── InvalidInput            400  what was sent cannot be used as it is
    │   └── TooLarge            413  more bytes, pixels or items than the limit
    ├── NotFound                404  a project, generation, version, run ... that does not exist
    ├── Conflict                409  it exists already, or its state does not allow this
    ├── QueueFull               429  the queue is full; try again later
    ├── EngineUnavailable       503  the inference engine is down or restarting
    ├── DamagedVersion          503  a version's files are gone, or not those that were judged
    ├── StorageError            507  the database or the disk refused
    │   └── DamagedBlob      507  stored bytes are not those that were put
    ├── StarterError            500  the embedded starter cannot be put together
    ├── UnusableEnvironment     500  an engine's own Python environment cannot be made, or does not work
    ├── ModelError              500  a model directory or hub id cannot be loaded as one
    ├── DataError               422  a data set has lines that cannot be trained on
    └── RunFailed               500  a training run ended without an adapter
"""

from __future__ import annotations


class ComfyLoopError(Exception):
    """Base of all errors that ComfyLoop raises on purpose.

    Args:
        message: What is wrong, as a sentence.
        hint: How to mend it, as a sentence; empty when the message says it.
        retry_after: Seconds after which the same call may succeed, where that is known.
    """

    status = 500
    code = "error"
    exit_code = 1

    def __init__(self, message: str, hint: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint
        self.retry_after = retry_after


class InvalidInput(ComfyLoopError):
    status, code, exit_code = 400, "invalid_input", 2


class TooLarge(InvalidInput):
    status, code = 413, "too_large"


class NotFound(ComfyLoopError):
    status, code, exit_code = 404, "not_found", 3


class Conflict(ComfyLoopError):
    status, code, exit_code = 409, "conflict", 4


class QueueFull(ComfyLoopError):
    status, code, exit_code = 429, "busy", 5


class EngineUnavailable(ComfyLoopError):
    status, code, exit_code = 503, "engine_unavailable", 6


class DamagedVersion(ComfyLoopError):
    status, code, exit_code = 503, "damaged_version", 7


class StorageError(ComfyLoopError):
    status, code, exit_code = 507, "storage", 7


class DamagedBlob(StorageError):
    pass


class StarterError(ComfyLoopError):
    code, exit_code = "starter", 8


class UnusableEnvironment(ComfyLoopError):
    code, exit_code = "environment", 8


class ModelError(ComfyLoopError):
    code, exit_code = "model", 8


class DataError(ComfyLoopError):
    status, code, exit_code = 422, "data", 9


class RunFailed(ComfyLoopError):
    code, exit_code = "run_failed", 10


def error_for(
    code: str, status: int, message: str, hint: str = "", retry_after: float | None = None
) -> ComfyLoopError:
    """The error that a service's answer stands for: by its code, else by its HTTP status."""
    tree = [ComfyLoopError]
    for kind in tree:
        tree.extend(kind.__subclasses__())
    kinds = [k for k in tree if k.code == code] or [k for k in tree if k.status == status and status != 500]
    return (kinds or [ComfyLoopError])[0](message, hint, retry_after=retry_after)
