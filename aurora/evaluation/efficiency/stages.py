"""What every stage costs from the file to the answer: of a model that reads frame by frame, and of a transformer.

Shape letters: N frames, M tokens of a frame, T positions, D backbone width.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aurora.assemble import build_model
from aurora.config import ModelConfig, load_config, named_part, read_config
from aurora.errors import AuroraError
from aurora.evaluation.efficiency.point import BASELINES, QUESTION, STAGES, Meter, Point
from aurora.inference.models import random_model, saved_model, use
from aurora.inference.reading import Memory, frames_per_chunk, read_texts, tokenize
from aurora.inference.steps import Steps
from aurora.inference.video_model import VideoModel
from aurora.interfaces import Sampling, Turn
from aurora.model import AuroraModel
from aurora.types import state_bytes


@torch.inference_mode()
def read_along(point: Point) -> dict[str, Any]:
    """Frames go through all stages in chunks; only the state is kept."""
    model, config = loaded(point)
    watcher = VideoModel(model, config)
    keep, together = watcher.layout.tokens(*_frame_size(watcher, point)), frames_at_once(watcher, point)
    leading, trailing = _texts(watcher)

    def read(frames: int, meter: Meter) -> tuple[Memory, float]:
        memory, began = watcher.blank().now.memory, time.perf_counter()
        memory = read_texts(watcher.runner, memory, [leading])
        for pixels in _chunks(watcher, point, frames, together, meter):
            x = _encode(model, pixels, keep, meter)
            with meter.stage("prefill"):
                memory = watcher.prefill(memory, x)
        return memory, time.perf_counter() - began

    def answer(memory: Memory, tokens: int, meter: Meter) -> None:
        with meter.stage("first token"):
            steps = Steps(watcher.runner, read_texts(watcher.runner, memory, [trailing]))
            token = steps.logits.argmax(-1)
        with meter.stage("per token"):
            for _ in range(tokens):
                steps.read(token)
                token = steps.logits.argmax(-1)
            token.tolist()  # waits for a GPU

    return _measured(point, keep, read, answer, lambda memory: state_bytes(memory.state))


@torch.inference_mode()
def read_whole(point: Point) -> dict[str, Any]:
    """The baseline: frames are encoded chunk by chunk, and then read in one row into a cache of keys and values.

    Attention and cache are those of `transformers`, as such models are used; ours would copy the cache for every row.
    """
    from transformers import DynamicCache

    model, config = loaded(point)
    watcher = VideoModel(model, config)
    body: Any = model.backbone.body
    body.set_attn_implementation(BASELINES[point.series])
    keep = min(point.baseline_tokens, watcher.model.visual_layout(1.0).tokens(*_frame_size(watcher, point)))
    together = frames_at_once(watcher, point)
    leading, trailing = _texts(watcher)
    device = torch.device(point.device)

    def run(x: Tensor, cache: Any) -> Tensor:
        hidden: Tensor = body(inputs_embeds=x[None], past_key_values=cache, use_cache=True).last_hidden_state[0, -1:]
        return model.backbone.logits(hidden)

    def embed(ids: Any) -> Tensor:
        return model.backbone.embed(torch.as_tensor(ids, device=device))

    def read(frames: int, meter: Meter) -> tuple[Any, float]:
        cache, began = DynamicCache(config=body.config), time.perf_counter()
        parts = [embed(leading)]
        parts += [_encode(model, pixels, keep, meter) for pixels in _chunks(watcher, point, frames, together, meter)]
        with meter.stage("prefill"):
            run(torch.cat(parts), cache)
        return cache, time.perf_counter() - began

    def answer(cache: Any, tokens: int, meter: Meter) -> None:
        with meter.stage("first token"):
            token = run(embed(trailing), cache).argmax(-1)
        with meter.stage("per token"):
            for _ in range(tokens):
                token = run(embed(token), cache).argmax(-1)
            token.tolist()

    def cached(cache: Any) -> int:
        return sum(tensor.numel() * tensor.element_size() for layer in cache.layers
                   for tensor in (layer.keys, layer.values))

    return _measured(point, keep, read, answer, cached)


def _measured(point: Point, keep: int, read: Callable[[int, Meter], tuple[Any, float]],
              answer: Callable[[Any, int, Meter], None], size: Callable[[Any], int]) -> dict[str, Any]:
    memory, _ = read(1, Meter(point.device))  # what is compiled or chosen on first use is not measured
    answer(memory, 2, Meter(point.device))
    del memory
    gc.collect()
    meter = Meter(point.device)
    memory, seconds = read(point.frames, meter)
    held = size(memory)
    answer(memory, point.new_tokens, meter)
    known = [peak for peak in meter.peaks.values() if peak is not None]
    stages = {name: {"seconds": meter.seconds[name] / (point.new_tokens if name == "per token" else 1),
                     "peak_bytes": meter.peaks[name]} for name in STAGES}
    return {"fits": True, "tokens_per_frame": keep, "watch_seconds": seconds, "memory_bytes": held,
            "rest_bytes": meter.rest_bytes, "peak_bytes": max(known) if known else None, "stages": stages}


def _chunks(watcher: VideoModel, point: Point, frames: int, together: int, meter: Meter) -> Iterator[Tensor]:
    """[N, 3, h, w] uint8, N ≤ `together`, on the device."""
    source = islice(looped(watcher, point.video, _fps(watcher)), frames)
    for first in range(0, frames, together):
        with meter.stage("decode"):
            chunk = islice(source, min(together, frames - first))
            pixels = torch.stack([watcher.layout.prepare(frame) for _, frame in chunk]).to(point.device)
        yield pixels


def _encode(model: AuroraModel, pixels: Tensor, keep: int, meter: Meter) -> Tensor:
    """[N, 3, h, w] → [N · M, D]."""
    with meter.stage("vision"):
        tokens = model.vision(pixels, merge=model.merge, sort=model.sort, keep=keep)
    with meter.stage("connector"):
        x: Tensor = model.connector(tokens).flatten(0, 1)
    return x


def looped(watcher: VideoModel, video: str, fps: float) -> Iterator[tuple[float, Any]]:
    """(seconds, [H, W, 3] uint8) at `fps` without an end: the file is read again and again, never held."""
    number = count()
    while True:
        for _, frame in watcher.reader.read(video, Sampling(fps=fps)):
            yield next(number) / fps, frame


def _fps(watcher: VideoModel) -> float:
    return watcher.config.sampling.fps or 1.0


def frames_at_once(watcher: VideoModel, point: Point) -> int:
    """How many frames of the video make a chunk."""
    return frames_per_chunk(*watcher.layout.prepare.shape(*_frame_size(watcher, point)))


def _frame_size(watcher: VideoModel, point: Point) -> tuple[int, int]:
    frame = next(looped(watcher, point.video, _fps(watcher)))[1]
    return frame.shape[0], frame.shape[1]


def _texts(watcher: VideoModel) -> tuple[list[int], list[int]]:
    """The ids before and after the video."""
    shared = watcher.blank().model  # with a prompt that does not begin with the question
    pieces = tokenize(shared.model.tokenizer, shared.model.prompt.layout([Turn(QUESTION)], visual=True))
    end = watcher.model.tokenizer.end_of_text  # something is read before the first token in any case
    return list(pieces.leading) or [end], list(pieces.trailing) or [end]


def loaded(point: Point) -> tuple[AuroraModel, ModelConfig]:
    machine: dict[str, Any] = {"device": point.device, "threads": point.threads}
    if point.series in BASELINES:
        return _baseline(point)
    if point.model is not None:
        return saved_model(Path(point.model), point.overrides, **machine)
    return random_model(point.overrides, **machine)[:2]


def _baseline(point: Point) -> tuple[AuroraModel, ModelConfig]:
    """The same tower with a transformer of the same width and depth behind it, and frames that are pooled once, after
    the tower: nothing is merged inside of it. Memory and time do not depend on weights, which are random."""
    use(point.device, point.threads)
    ours = config_of(point)
    backbone = {**named_part("backbone", "transformer"), **sizes_like(ours, point.baseline), **point.baseline}
    config = replace(ours, backbone=backbone, merge=named_part("merge", "pool"), sort=named_part("sort", "raster"),
                     quantize=None)
    return build_model(config).to(point.device).eval(), config


def config_of(point: Point) -> ModelConfig:
    """The config that is measured. AuroraError for what is wrong in it."""
    if point.model is not None:
        return read_config(point.model).override(point.overrides)
    return load_config(*point.overrides).model


def sizes_like(config: ModelConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a transformer as wide and deep as a backbone, in the shape of InternLM2-1.8B, the language model of
    InternVL-1.5 2B: an MLP of four times the width, and one head of keys and values for two of queries.

    AuroraError where the backbone does not say how deep it is, and it is not given either.
    """
    layers = given.get("layers", config.backbone.get("layers"))
    if not isinstance(layers, int):
        raise AuroraError(f"the baseline needs a number of layers, which backbone {config.backbone['name']!r} does not "
                          "say; give --baseline-option layers=24")
    with torch.device("meta"):
        width = given.get("hidden_size", build_model(config).backbone.hidden_size)
    heads = max(1, width // 128)
    while width % heads:
        heads -= 1
    return {"hidden_size": width, "layers": layers, "head_size": width // heads,
            "config": {"intermediate_size": 4 * width, "num_key_value_heads": heads // 2 if heads % 2 == 0 else heads,
                       "max_position_embeddings": 2**24}}
