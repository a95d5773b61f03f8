"""/v1/images: uploads by content. The same image twice is one."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from comfyloop.capture import images
from comfyloop.errors import InvalidInput, NotFound
from comfyloop.media import data_urls
from comfyloop.serve.api.chat_images import UPLOAD
from comfyloop.serve.api.services import Svc

router = APIRouter(tags=["images"])


class UploadedImage(BaseModel):
    sha256: str
    url: str
    """For `image_url.url` in a chat."""
    media_type: str
    width: int
    height: int
    bytes: int


@router.post(
    "/v1/images",
    summary="Upload an image",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "image/*": {"schema": {"type": "string", "format": "binary"}},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file"],
                        "properties": {"file": {"type": "string", "format": "binary"}},
                    }
                },
            },
        }
    },
)
async def upload_image(request: Request, services: Svc) -> UploadedImage:
    """PNG, JPEG, WebP, GIF or BMP: the file's bytes as the body, or as the field `file` of a form."""
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        async with request.form(max_files=1, max_fields=10) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise InvalidInput("The form has no field `file` with an image.", "Send the image as `file`.")
            data = await file.read()
    else:
        data = await request.body()
    info = await run_in_threadpool(images.store_image, services.store, data, services.settings)
    return UploadedImage(
        sha256=info.sha256,
        url=f"{UPLOAD}{info.sha256}",
        media_type=info.media_type,
        width=info.width,
        height=info.height,
        bytes=info.bytes,
    )


@router.get(
    "/v1/images/{sha256}",
    summary="Get an image",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}, "description": "The bytes as they were uploaded."}},
)
def get_image(sha256: str, services: Svc) -> Response:
    if len(sha256) != 64 or not services.store.blobs.exists(sha256):
        raise NotFound(f"There is no image {sha256[:80]!r}.", "POST /v1/images uploads one.")
    data = services.store.blobs.get(sha256)
    return Response(
        data,
        media_type=data_urls.media_type(data) or "application/octet-stream",
        headers={"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"},
    )
