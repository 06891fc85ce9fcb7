"""The encoder of a watcher, with and without a captured graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aurora.inference.graphs import WARM_UP_CHUNKS, GraphedEncoder
from aurora.model import AuroraModel
from tools.tiny_training import tiny_model

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need CUDA")


def chunk(seed: int, frames: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (frames, 3, 32, 32), dtype=torch.uint8, generator=generator)


def model_on(device: str) -> tuple[AuroraModel, int]:
    """A tiny model, and how many tokens of a frame it keeps."""
    torch.manual_seed(0)
    model = tiny_model(vision={"name": "siglip", "image_size": 32, "patch_size": 8, "width": 32, "layers": 3,
                               "heads": 2, "mlp_width": 64}, merge={"name": "tome"}, sort={"name": "size"})
    return model.to(device).eval(), 5


@torch.inference_mode()
def check(device: str) -> GraphedEncoder:
    model, keep = model_on(device)
    encoder = GraphedEncoder(model)
    for number in range(WARM_UP_CHUNKS + 4):
        pixels = chunk(number).to(device)
        tokens = encoder(pixels, keep)
        encoder(chunk(99).to(device), keep)  # what was given stays as it was
        torch.testing.assert_close(tokens, model.encode(pixels, keep))
    return encoder


def test_a_cpu_has_no_graph() -> None:
    assert not check("cpu").is_captured


@on_cuda
def test_tokens_of_a_graph_are_those_of_the_model() -> None:
    assert check("cuda").is_captured


@on_cuda
@pytest.mark.parametrize(("frames", "more"), [(3, 0), (8, 1)])
@torch.inference_mode()
def test_another_shape_is_not_read_by_the_graph_of_the_first(frames: int, more: int) -> None:
    encoder = check("cuda")
    model, keep = model_on("cuda")
    pixels = chunk(1, frames).cuda()
    torch.testing.assert_close(encoder(pixels, keep + more), model.encode(pixels, keep + more))
    assert not encoder.is_captured


@on_cuda
@torch.inference_mode()
def test_weights_that_moved_are_not_read_where_they_lay() -> None:
    model, keep = model_on("cuda")
    encoder, pixels = GraphedEncoder(model), chunk(1).cuda()
    for _ in range(WARM_UP_CHUNKS + 1):
        encoder(pixels, keep)
    first = next(model.vision.parameters())
    first.data = first.data + 1
    torch.testing.assert_close(encoder(pixels, keep), model.encode(pixels, keep))


@on_cuda
@torch.inference_mode()
def test_hooks_are_called_in_every_chunk() -> None:
    model, keep = model_on("cuda")
    encoder, calls = GraphedEncoder(model), []
    model.vision.register_forward_hook(lambda *_: calls.append(1))
    for number in range(WARM_UP_CHUNKS + 3):
        encoder(chunk(number).cuda(), keep)
    assert len(calls) == WARM_UP_CHUNKS + 3
