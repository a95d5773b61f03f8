"""What several nouns share: the project a call is about, and bounds of numbers in URLs."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import Depends, Path, Query, Request
from fastapi.requests import HTTPConnection

from comfyloop.errors import InvalidInput
from comfyloop.records import ProjectName
from comfyloop.serve.api.services import Svc

Limit = Annotated[int, Query(ge=1, le=1000, description="At most so many.")]


async def whole_characters(connection: HTTPConnection) -> None:
    """Refuse JSON with half a surrogate pair: it is no text, and neither disk nor engine can take it."""
    if not isinstance(connection, Request) or "json" not in connection.headers.get("content-type", ""):
        return
    if b"\\ud" in (await connection.body()).lower():
        try:
            json.dumps(await connection.json(), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InvalidInput(
                "The text holds half a character (a lone UTF-16 surrogate).", "Send whole Unicode characters."
            ) from None


VersionNumber = Annotated[int, Path(ge=0, lt=2**31, description="0 is the base model.")]
Seq = Annotated[int, Query(ge=0, lt=2**63)]


async def _asked_project(
    services: Svc,
    project: Annotated[
        ProjectName | None, Query(description="Default: the service's own project (setting `project`).")
    ] = None,
) -> str:
    return services.router.project(project or services.settings.project).name


AskedProject = Annotated[str, Depends(_asked_project)]
"""The name of a project that exists."""
