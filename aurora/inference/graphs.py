"""CUDA graphs: one launch for thousands. Shape letters: N frames, M tokens kept per frame, D backbone width."""

import logging
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor, nn

from aurora.model import AuroraModel

T = TypeVar("T")
log = logging.getLogger(__name__)
_capturing = Lock()

WARM_UP_CHUNKS = 8
"""Of one shape before a graph is captured: a short video is over by then."""


def capture(work: Callable[[], T], device: torch.device) -> tuple[torch.cuda.CUDAGraph, T]:
    """`work` as a graph, and what it makes, which every replay overwrites. RuntimeError where it cannot be captured."""
    # from another pool than the streams of those who read meanwhile, which are handed out again and again
    stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    with _capturing:  # one at a time, since it begins by waiting for the device
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(3):  # what is compiled or chosen on first use must not be captured
                work()
        torch.cuda.current_stream(device).wait_stream(stream)
        # by default other threads, which read or answer meanwhile, could not allocate memory
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            made = work()
    return graph, made


def addresses(*modules: nn.Module) -> tuple[int, ...]:
    """Where the weights lie: a graph reads them there."""
    return tuple(weight.data_ptr() for module in modules for weight in module.parameters())


class GraphedEncoder:
    """`model.encode` for one watcher: on a GPU a graph, once so many chunks had the same shape."""

    def __init__(self, model: AuroraModel) -> None:
        self._model, self._parts = model, (model.vision, model.connector)
        self._captured_for: tuple[object, ...] = ()
        self._chunks = 0
        self._graph: tuple[Tensor, torch.cuda.CUDAGraph, Tensor] | None = None  # pixels, and the tokens of them

    @property
    def is_captured(self) -> bool:
        """Whether the next chunk of the same shape is one launch."""
        return self._graph is not None

    def __call__(self, pixels: Tensor, keep: int) -> Tensor:
        """[N, 3, h, w] uint8, M → [N, M, D]."""
        if pixels.device.type != "cuda" or self._is_hooked():
            return self._model.encode(pixels, keep)
        captured_for = (pixels.shape, pixels.device, keep, addresses(*self._parts))
        if captured_for != self._captured_for:
            self._captured_for, self._chunks, self._graph = captured_for, 0, None
        self._chunks += 1
        if self._chunks == WARM_UP_CHUNKS + 1:
            self._capture(pixels.clone(), keep)
        if self._graph is None:
            return self._model.encode(pixels, keep)
        own, graph, tokens = self._graph
        own.copy_(pixels)
        graph.replay()
        return tokens.clone()

    def _capture(self, pixels: Tensor, keep: int) -> None:
        try:
            self._graph = (pixels, *capture(lambda: self._model.encode(pixels, keep), pixels.device))
        except RuntimeError as error:
            log.info("%s cannot be captured: %s", type(self._model.vision).__name__, error)

    def _is_hooked(self) -> bool:
        """A graph does not call the hooks of modules."""
        return any(module._forward_hooks or module._forward_pre_hooks for part in self._parts
                   for module in part.modules())
