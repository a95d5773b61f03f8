"""What several nouns share: the project a call is about, and bounds of numbers in URLs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Query, Request
from fastapi.requests import HTTPConnection
from fastapi.routing import APIRoute

from comfyloop.errors import InvalidInput
from comfyloop.records import ProjectName
from comfyloop.serve.api.edge import BYTES_PATHS, FILE_PATHS
from comfyloop.serve.api.services import Svc

Limit = Annotated[int, Query(ge=1, le=1000, description="At most so many.")]


async def whole_characters(connection: HTTPConnection) -> None:
    """Refuse an address that is no text; that the body is one, `edge.Limited` sees while it is read. A body that nobody
    would read is refused, too: what it asks for would be done otherwise without a word."""
    if "\0" in connection.scope["path"] or any("\0" in value for value in connection.query_params.values()):
        raise InvalidInput("The address holds the character NUL.", "Leave it out.")
    path = connection.url.path
    if isinstance(connection, Request) and path not in ("/v1/images", *FILE_PATHS):
        body = await connection.body()
        route = connection.scope.get("route")
        json_call = path.startswith("/v1/") and not BYTES_PATHS.fullmatch(path)
        unread = json_call and isinstance(route, APIRoute) and route.body_field is None
        if unread and body.strip() not in (b"", b"{}", b"null"):
            raise InvalidInput(
                "This call takes no body, and one was sent.",
                "Say it in the address, as ?project=acme; GET /docs shows what each call takes.",
            )


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
