"""`/v1/files`: large videos are uploaded once, and named in requests by their ids."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request, UploadFile
from fastapi.responses import StreamingResponse

from aurora.serving.errors import ApiError
from aurora.serving.files import blocks
from aurora.serving.film_uploads import require_single
from aurora.serving.openai import Served

router = APIRouter(prefix="/v1/files")


@router.post("")
async def upload(request: Request, file: UploadFile, service: Served,
                 purpose: Annotated[str, Form(max_length=64)] = "user_data") -> dict[str, Any]:
    """Keeps a file under an id that the server makes; its name is only a label. It never expires."""
    form = await request.form()
    require_single(form)
    for field in form.keys() - {"file", "purpose"}:
        raise ApiError(400, f"{field} is not supported by this server", param=field, code="unsupported_field")
    kept = await asyncio.to_thread(service.files.add, file.file, file.filename or "", purpose,
                                   service.settings.upload_bytes)
    return kept.shown()


@router.get("")
async def list_files(
    service: Served, purpose: str | None = None, after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000, order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """All files, the newest first unless told otherwise."""
    found = [file for file in service.files.all() if purpose in (None, file.purpose)]
    found = found if order == "asc" else found[::-1]
    if after is not None:
        ids = [file.id for file in found]
        if after not in ids:
            raise ApiError(404, f"there is no file {after[:64]!r}", param="after")
        found = found[ids.index(after) + 1:]
    shown = [file.shown() for file in found[:limit]]
    return {"object": "list", "data": shown, "has_more": len(found) > limit,
            "first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}


@router.get("/{file_id}")
async def get_file(file_id: str, service: Served) -> dict[str, Any]:
    """What is known of a file."""
    return service.files.get(file_id).shown()


@router.get("/{file_id}/content")
async def get_content(file_id: str, service: Served) -> StreamingResponse:
    """The bytes of a file."""
    size = service.files.get(file_id).bytes
    return StreamingResponse(blocks(service.files.path(file_id).open("rb")), media_type="application/octet-stream",
                             headers={"Content-Length": str(size)})


@router.delete("/{file_id}")
async def delete_file(file_id: str, service: Served) -> dict[str, Any]:
    """Deletes a file; whoever watches it goes on."""
    service.files.remove(file_id)
    return {"id": file_id, "object": "file", "deleted": True}
