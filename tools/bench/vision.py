"""The bench `vision`: SigLIP-L/16-384, unmerged and merged, and a whole model that reads frames."""

from __future__ import annotations

from functools import partial

from tools.bench import towers, whole
from tools.bench.case import ROUNDED, Case, Contestant, Outcome, Settings
from tools.bench.machine import DTYPES, Cost, missing
from tools.bench.timing import Work
from tools.bench.towers import FULL, QUICK, TowerSize, over_patches

FRAMES, GPU_FRAMES, QUICK_FRAMES = 4, 64, 2
RATIO = 0.1
TOLERANCE = {"float32": 1e-3, "bfloat16": ROUNDED}


def vision(settings: Settings) -> list[Case]:
    """The tower unmerged, the tower merged, and the whole model, which in float32 would say nothing new."""
    size = QUICK if settings.quick else FULL
    frames = QUICK_FRAMES if settings.quick else GPU_FRAMES if settings.gpu else FRAMES
    dtypes = settings.wanted(*TOLERANCE)
    return [
        *(_unmerged(settings, size, frames, dtype) for dtype in dtypes),
        *(_merged(settings, size, frames, dtype) for dtype in dtypes),
        *(whole.case(settings, size, frames, RATIO, dtype) for dtype in settings.wanted("bfloat16")),
    ]


def _unmerged(settings: Settings, size: TowerSize, frames: int, dtype: str) -> Case:
    ours = partial(_contestant, settings, size, frames, dtype)

    def peer(attention: str) -> Contestant:
        return Contestant(f"transformers {attention}", lambda: _theirs(settings, size, frames, dtype, attention),
                          missing("transformers"), partial(towers.random_tower, settings.folder, size), result="1.0")

    return Case(
        f"SigLIP-L/16-384 unmerged, {frames} frames, {dtype}",
        [ours("aurora", 1.0), peer("eager"), peer("sdpa")],
        towers.cost(size, frames, dtype), TOLERANCE[dtype], partial(_exact, settings, size, frames, dtype),
        items=frames, unit="frames", heavy=True,
    )


def _merged(settings: Settings, size: TowerSize, frames: int, dtype: str) -> Case:
    ours = partial(_contestant, settings, size, frames, dtype)
    less = towers.cost(size, frames, dtype, towers.merged_tokens(size, RATIO))
    return Case(
        f"SigLIP-L/16-384 keeping {RATIO}, {frames} frames, {dtype}",
        [ours(f"aurora, tome {RATIO}", RATIO, less), ours("aurora, unmerged", 1.0)],
        towers.cost(size, frames, dtype), TOLERANCE[dtype], partial(_exact, settings, size, frames, dtype),
        items=frames, unit="frames", heavy=True,
    )


def _contestant(settings: Settings, size: TowerSize, frames: int, dtype: str, name: str, ratio: float,
                cost: Cost | None = None) -> Contestant:
    return Contestant(name, partial(_ours, settings, size, frames, dtype, ratio), None,
                      partial(towers.random_tower, settings.folder, size), cost, result=str(ratio))


def _ours(settings: Settings, size: TowerSize, frames: int, dtype: str, ratio: float) -> Work:
    path, kind = towers.random_tower(settings.folder, size), DTYPES[dtype]
    encode = towers.ours(towers.load_tower(path, size, kind, settings.device), size.patches, ratio)
    pixels = size.pixels(frames, kind, settings.device)
    if ratio == 1:
        return lambda: encode(pixels).features
    return lambda: over_patches(encode(pixels))


def _theirs(settings: Settings, size: TowerSize, frames: int, dtype: str, attention: str) -> Work:
    path, kind = towers.random_tower(settings.folder, size), DTYPES[dtype]
    encode = towers.theirs(path, attention, kind, settings.device)
    pixels = size.pixels(frames, kind, settings.device)
    return lambda: encode(pixels)


def _exact(settings: Settings, size: TowerSize, frames: int, dtype: str, ratio: str) -> Outcome | None:
    """What merged frames are in float64, and unmerged ones in float32; in float32 these are checked against
    `transformers`."""
    if float(ratio) == 1 and dtype == "float32":
        return None
    return _ours(settings, size, frames, "float32" if float(ratio) == 1 else "float64", float(ratio))()
