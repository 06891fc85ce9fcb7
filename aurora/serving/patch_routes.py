"""`/v1/films/{film}/patches`: a picture of the tokens of a frame; `/v1/settings`: how films are watched here, and what
may be chosen."""

import asyncio
import io
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Response
from PIL import Image

from aurora.figures import draw_groups
from aurora.registry import MERGE, SKIP, SORT
from aurora.serving.errors import ApiError
from aurora.serving.openai import Served

router = APIRouter(prefix="/v1")


@router.get("/films/{film:path}/patches")
async def patches(
    film: str, service: Served, second: Annotated[float, Query(ge=0, le=1e9)] = 0.0,
    depth: Annotated[int | None, Query(ge=0)] = None, keep_ratio: Annotated[float | None, Query(gt=0, le=1)] = None,
    merge: str | None = None, sort: str | None = None, fill: bool = True,
    side: Annotated[int, Query(ge=32, le=1024)] = 384,
) -> Response:
    """A PNG of the frame at a second after `depth` blocks, by default all of them: each token's patches in their mean
    color or, without `fill`, outlined. As the film was watched, but for what is given. Headers tell what it shows."""
    seen = await service.films.open(service.films.find(film))
    figure = await service.figures.of(seen, seen.model.using(keep_ratio=keep_ratio, merge=merge, sort=sort), second)
    blocks = len(figure.groups) - 1
    if depth is not None and depth > blocks:
        raise ApiError(400, f"depth {depth} is more than the encoder's {blocks} blocks", param="depth")
    group = figure.groups[blocks if depth is None else depth]
    drawn = await asyncio.to_thread(draw_groups, figure.pixels, group.owner, figure.grid, side, fill=fill)
    told = {"second": f"{figure.second:g}", "depth": group.blocks, "depths": blocks, "tokens": group.tokens,
            "patches": figure.groups[0].tokens, "source": figure.source}
    headers = {f"X-Aurora-{name.title()}": str(value) for name, value in told.items()}
    return Response(_png(drawn), media_type="image/png", headers={**headers, "Cache-Control": "private, max-age=60"})


@router.get("/settings")
async def settings(service: Served) -> dict[str, Any]:
    """How films are watched unless a request says otherwise, what may be chosen, the limits, the films in memory."""
    model, limits, films = service.model, service.settings, service.films
    return {
        "object": "settings", "model": limits.model_name, "shipped": limits.shipped, "depth": model.model.vision.depth,
        "watched_with": model.settings, "sampling": {key: value for key, value in vars(model.config.sampling).items()
                                                     if value is not None},
        "choices": {slot.name: slot.known() for slot in (MERGE, SORT, SKIP)},
        "limits": {name: getattr(limits, name) for name in ("upload_bytes", "max_frames", "max_fps", "max_new_tokens")},
        "memory": {"films": len(films.memory), "films_bytes": films.memory.bytes, "most_bytes": limits.memory_bytes},
    }


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return file.getvalue()
