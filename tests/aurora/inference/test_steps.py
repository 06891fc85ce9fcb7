"""Steps of generation, with and without a captured graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aurora.inference.reading import Memory
from aurora.inference.steps import WARM_UP, StepGraph, Steps
from aurora.interfaces import Backbone
from aurora.registry import BACKBONE

SEQUENCES = 3
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need CUDA")


def backbone(device: str) -> Backbone:
    torch.manual_seed(0)
    config = {"name": "rwkv6", "hidden_size": 64, "layers": 2, "head_size": 32}
    return BACKBONE.build(config, vocab_size=97).to(device).eval()


def read(model: Backbone, device: str) -> Memory:
    x = torch.randn(SEQUENCES * 5, 64, generator=torch.Generator().manual_seed(1)).to(device)
    return Memory(*model.prefill(x, torch.arange(SEQUENCES + 1) * 5))


def tokens(step: int, device: str) -> Tensor:
    return (torch.arange(SEQUENCES) * 7 + step).to(device) % 97


def plainly(model: Backbone, memory: Memory, steps: int, device: str) -> list[Tensor]:
    logits = []
    for step in range(steps):
        memory = Memory(*model.step(model.embed(tokens(step, device)), memory.state))
        logits.append(model.logits(memory.last_hidden()))
    return logits


@torch.inference_mode()
def check(device: str) -> None:
    model = backbone(device)
    memory = read(model, device)
    expected = plainly(model, memory, 2 * WARM_UP, device)
    several = [Steps(model.runner(), memory), Steps(model.runner(), memory)]  # two answers at a time do not meet
    for step, logits in enumerate(expected):
        for steps in several:
            steps.read(tokens(step, device))
            torch.testing.assert_close(steps.logits, logits)
    several[0].keep([2, 0])
    torch.testing.assert_close(several[0].logits, expected[-1][[2, 0]])
    torch.testing.assert_close(several[1].logits, expected[-1])


def test_steps_are_those_of_the_backbone() -> None:
    check("cpu")


@on_cuda
def test_steps_of_a_graph_are_those_of_the_backbone() -> None:
    check("cuda")


@on_cuda
@torch.inference_mode()
def test_a_graph_is_captured_again_when_weights_move() -> None:
    model = backbone("cuda")
    graph = StepGraph(model, SEQUENCES)
    assert graph.fits(model, SEQUENCES) and not graph.fits(model, 1)
    model.emb.weight = torch.nn.Parameter(model.emb.weight.clone())
    assert not graph.fits(model, SEQUENCES)
