"""Checks of files that a person named: a pipe or device may be endless or block forever."""

from __future__ import annotations

import contextlib
import errno
import stat
from pathlib import Path


def regular(path: Path, most: int) -> Path:
    """The path of a regular file of at most `most` bytes.

    Raises:
        OSError: There is none, it is larger, or it is a pipe, a device or a folder.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no file but a pipe, a device or a folder", str(path))
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, more than {most}", str(path))
    return path


def there(name: str) -> Path | None:
    """The file or folder that a person named; None where there is none, or can be none of that name."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # too long, with a NUL, the home of nobody
        path = Path(name).expanduser()
        path.stat()
        return path
    return None
