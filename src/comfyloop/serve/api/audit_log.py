"""Who changed what through the API, and when: lines of `audit.jsonl` in the home directory."""

from __future__ import annotations

import json
import logging
import os
import threading
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

log = logging.getLogger(__name__)

FILE, BEFORE = "audit.jsonl", "audit.1.jsonl"
MAX_BYTES = 4 * 2**20
"""Of a file; then it becomes the one before, of which there is one."""
WHO = "comfyloop.who"
"""Where in a request's scope it stands who was let in."""


class AuditLine(BaseModel):
    """A change that was asked for.

    Attributes:
        who: `token` (a program that sent it), `browser` (a session of the pages); empty: nobody is asked for a token.
        address: From which the request came.
        call: The route, as the reference names it.
        path: What was asked for exactly.
        status: As HTTP has it: 2xx was done, all else was refused or failed.
    """

    at: datetime
    who: str = ""
    address: str = ""
    call: str
    path: str
    status: int

    @property
    def is_done(self) -> bool:
        return self.status < 400


class AuditLog:
    """Lines appended to a file, which is bounded."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()

    def add(self, line: AuditLine) -> None:
        """A disk that refuses stops nobody's work: it is logged."""
        written = (line.model_dump_json() + "\n").encode()
        file = self._home / FILE
        try:
            with self._lock:
                if file.exists() and file.stat().st_size + len(written) > MAX_BYTES:
                    file.replace(self._home / BEFORE)
                descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                try:
                    os.write(descriptor, written)
                finally:
                    os.close(descriptor)
        except OSError as error:
            log.warning("A change could not be written into %s: %s", file, error)

    def newest(self, most: int) -> list[AuditLine]:
        """The newest first; a line that was cut off is left out."""
        found: list[AuditLine] = []
        for name in (FILE, BEFORE):
            try:
                lines = (self._home / name).read_bytes().splitlines()
            except OSError:
                continue
            for line in reversed(lines):
                if len(found) == most:
                    return found
                try:
                    found.append(AuditLine.model_validate(json.loads(line)))
                except (ValueError, ValidationError):
                    continue
        return found
