"""/v1/datasets: data from elsewhere, looked at first, and taken in one transaction."""

from __future__ import annotations

import hashlib
from itertools import islice
from secrets import token_hex
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from filelock import Timeout
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from comfyloop.datasets import DataSet, DataSetFolder, DataSetState, Request, SentFile, open_place, places
from comfyloop.datasets.importing import ids_of, preview
from comfyloop.datasets.place import new_place
from comfyloop.datasets.record import Preview
from comfyloop.errors import Conflict
from comfyloop.records import Author, ProjectName
from comfyloop.serve.api.common import AskedProject, Limit
from comfyloop.serve.api.services import Services, Svc
from comfyloop.sources.builtin import BUILTIN
from comfyloop.sources.fetching import check_source
from comfyloop.store import feedback

router = APIRouter(tags=["datasets"])


class NewDataSet(BaseModel):
    model_config = ConfigDict(extra="forbid")
    project: ProjectName | None = None
    name: str = Field(min_length=1, max_length=300)
    author: Author = "local"
    source: str = Field(
        default="upload",
        max_length=300,
        description="`upload`: its files are sent; `builtin:NAME`, or a hub's `hf:ID`, `hf:ID@REVISION`, `ms:ID`.",
    )
    licence: str = Field(default="", max_length=200)
    key: str = Field(
        default="",
        max_length=200,
        description="Made by the client of what it sends: with the same one, an upload that was broken off goes on.",
    )


class BuiltinSet(BaseModel):
    """A data set that comes with ComfyLoop, or is put together from registry packages."""

    model_config = ConfigDict(from_attributes=True)
    name: str
    what: str
    licence: str
    rows: int
    bytes: int = Field(description="What is downloaded or copied for it, about.")
    modalities: tuple[str, ...]
    languages: tuple[str, ...]


class DataSetList(BaseModel):
    items: list[DataSet]
    builtin: list[BuiltinSet]


class FileList(BaseModel):
    items: list[SentFile]
    next_after: int | None = None


class PreviewRequest(Request):
    rows: int = Field(default=5, ge=1, le=100, description="Rows to show.")


class Removed(BaseModel):
    removed: str
    deleted: int = Field(default=0, description="Pieces of feedback.")
    versions: list[int] = Field(default=[], description="Withdrawn: they had learned it.")


def _place(services: Services, project: str, id: str) -> DataSetFolder:
    return open_place(services.settings, project, id)


@router.get(
    "/v1/datasets", summary="List data sets: those that were added, and those that come with ComfyLoop"
)
def list_datasets(services: Svc, project: AskedProject) -> DataSetList:
    """Newest first."""
    found = [services.imports.state(place) for place in places(services.settings, project)]
    found.sort(key=lambda dataset: dataset.created_at, reverse=True)
    return DataSetList(items=found, builtin=list(map(BuiltinSet.model_validate, BUILTIN.values())))


@router.post("/v1/datasets", summary="Begin to add a data set", status_code=201)
def add_dataset(body: NewDataSet, services: Svc) -> DataSet:
    """Nothing is read yet: send its files, look at its preview, then import it."""
    project = services.router.project(body.project or services.settings.project).name
    check_source(body.source)
    id = f"ds_{token_hex(12)}"
    if body.key:
        told = "\0".join((project, body.author, body.source, body.key))
        id = f"ds_{hashlib.sha256(told.encode()).hexdigest()[:24]}"
        known = {place.folder.name: place for place in places(services.settings, project)}
        if id in known:
            dataset = services.imports.state(known[id])
            if dataset.state is not DataSetState.DONE:
                return dataset
            id = f"ds_{token_hex(12)}"
    licence = body.licence
    if body.source.startswith("builtin:"):
        licence = BUILTIN[body.source.removeprefix("builtin:")].licence
    dataset = DataSet(
        id=id, project=project, author=body.author, name=body.name, source=body.source, licence=licence
    )
    new_place(services.settings, dataset)
    return dataset


@router.get("/v1/datasets/{id}", summary="Get a data set, and how far it is")
def get_dataset(id: str, services: Svc, project: AskedProject) -> DataSet:
    return services.imports.state(_place(services, project, id))


@router.get("/v1/datasets/{id}/files", summary="List the files of an upload that have come")
def list_files(
    id: str,
    services: Svc,
    project: AskedProject,
    after: Annotated[int, Query(ge=0, lt=2**31, description="`next_after` of the last page.")] = 0,
    limit: Limit = 1000,
) -> FileList:
    """Those without a `sha256` have come in part: go on at `bytes`."""
    place = _place(services, project, id)
    found = list(islice(_files(place), after, after + limit))
    return FileList(items=found, next_after=after + limit if len(found) == limit else None)


def _files(place: DataSetFolder) -> list[SentFile]:
    return [*place.partial(), *place.sent()]


@router.put(
    "/v1/datasets/{id}/files/{path:path}",
    summary="Send a file of an upload, or a piece of it",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_file(
    id: str,
    path: str,
    request: HttpRequest,
    services: Svc,
    project: AskedProject,
    size: Annotated[int, Query(ge=0, lt=2**63, description="Bytes of the whole file.")],
    sha256: Annotated[str, Query(pattern="^[0-9a-f]{64}$", description="Of the whole file.")],
    offset: Annotated[int, Query(ge=0, lt=2**63, description="Where in the file the piece begins.")] = 0,
) -> SentFile:
    """Pieces follow each other; with the last one the file is checked against its hash."""
    data = await request.body()

    def receive() -> SentFile:
        place = _place(services, project, id)
        state = services.imports.state(place).state
        if state is DataSetState.DONE or state.is_under_way:
            raise Conflict(f"The data set {id} takes no more files.", "Add another one.")
        return place.receive(path, data, offset, size, sha256, services.settings.max_dataset_bytes)

    return await run_in_threadpool(receive)


@router.post("/v1/datasets/{id}/preview", summary="Look at a data set before it is taken")
def preview_dataset(id: str, body: PreviewRequest, services: Svc, project: AskedProject) -> Preview:
    """What it is found to be, what its columns are taken for, and its first rows as they would be taken."""
    place = _place(services, project, id)
    request = Request.model_validate(body.model_dump(exclude={"rows"}))
    with services.heavily(f"a preview of {id}"):
        try:
            with place.lock():
                return preview(services.settings, place, request, body.rows)
        except Timeout:
            raise Conflict(f"The data set {id} is being taken.", "Wait for it.") from None


@router.post("/v1/datasets/{id}/import", summary="Take a data set", status_code=202)
def import_dataset(id: str, body: Request, services: Svc, project: AskedProject) -> DataSet:
    """In the background: `GET /v1/datasets/{id}` and events of the type `dataset.progress` say how far it is. All
    of its rows become feedback at once, or none. What was broken off goes on where it was."""
    return services.imports.start(_place(services, project, id), body)


@router.delete("/v1/datasets/{id}", summary="Give a data set up, or take it back")
def remove_dataset(
    id: str,
    services: Svc,
    project: AskedProject,
    samples: Annotated[
        Literal["keep", "delete", "forget"],
        Query(
            description="Of a data set that was stored, what becomes of its samples: `keep`; `delete`: the next "
            "snapshot no longer holds them; `forget`: versions that learned them are withdrawn, too."
        ),
    ] = "keep",
) -> Removed:
    """Stops taking it, and leaves nothing of it. One that was stored and is taken back may be added anew; samples that
    another data set has, too, stay."""
    place = _place(services, project, id)
    removed = Removed(removed=id)
    if samples != "keep" and services.imports.state(place).state is DataSetState.DONE:
        ids = ids_of(place, places(services.settings, project))
        if samples == "forget":
            done = services.controller.forget_rows(project, ids)
            removed = Removed(removed=id, deleted=len(done.feedback), versions=list(done.versions))
        else:
            with services.store.begin() as conn:
                deleted = feedback.delete_some(conn, project, ids, remember=False)
            removed = Removed(removed=id, deleted=len(deleted))
    services.imports.remove(place)
    return removed
