"""CUDA graphs: one launch for thousands. Shape letters: N frames, M tokens kept per frame, D backbone width."""

import logging
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

from aurora.model import AuroraModel

T = TypeVar("T")
log = logging.getLogger(__name__)
_capturing = Lock()

CHUNKS = 8
"""Chunks of one shape before a graph is captured: a short video is over by then."""


def capture(work: Callable[[], T], device: torch.device) -> tuple[torch.cuda.CUDAGraph, T]:
    """`work` as a graph, and what it makes, which every replay overwrites. RuntimeError where it cannot be captured."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):  # what is compiled or chosen on first use must not be captured
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # One at a time, since it begins by waiting for the device. By default other threads, which read or answer
    # meanwhile, could not allocate memory.
    with _capturing, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        made = work()
    return graph, made


class GraphedEncoder:
    """`model.encode` for one watcher: on a GPU a graph, once so many chunks had the same shape."""

    def __init__(self, model: AuroraModel) -> None:
        self._model = model
        self._shape: tuple[object, ...] = ()
        self._chunks = 0
        self._pixels: Tensor | None = None
        self._graph: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    @property
    def is_captured(self) -> bool:
        """Whether the next chunk of the same shape is one launch."""
        return self._graph is not None

    def __call__(self, pixels: Tensor, keep: int) -> Tensor:
        """[N, 3, h, w] uint8, M → [N, M, D]."""
        shape = (*pixels.shape, pixels.dtype, keep)
        if shape != self._shape:
            self._shape, self._chunks, self._graph = shape, 0, None
        self._chunks += 1
        if self._chunks == CHUNKS + 1 and pixels.device.type == "cuda" and not self._is_hooked():
            self._capture(pixels, keep)
        if self._graph is None or self._pixels is None:
            return self._model.encode(pixels, keep)
        self._pixels.copy_(pixels)
        graph, tokens = self._graph
        graph.replay()
        return tokens.clone()

    def _capture(self, pixels: Tensor, keep: int) -> None:
        own = self._pixels = pixels.clone()
        try:
            self._graph = capture(lambda: self._model.encode(own, keep), pixels.device)
        except RuntimeError as error:
            log.info("%s cannot be captured: %s", type(self._model.vision).__name__, error)

    def _is_hooked(self) -> bool:
        """A graph does not call the hooks of modules."""
        parts = (self._model.vision, self._model.connector)
        return any(module._forward_hooks or module._forward_pre_hooks for part in parts for module in part.modules())
