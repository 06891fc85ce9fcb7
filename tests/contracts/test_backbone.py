"""Every registered backbone keeps the contract of `aurora.testing.backbone`."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from aurora.errors import AuroraError
from aurora.interfaces import Backbone
from aurora.registry import BACKBONE
from aurora.testing.backbone import LENGTHS, VOCAB, BackboneContract, Options, Tolerance, bounds, build, row

SIZES = {"hidden_size": 64, "layers": 2, "head_size": 32}


@pytest.fixture(scope="module", params=BACKBONE.known())
def options(request: pytest.FixtureRequest) -> Options:
    return {"name": request.param, **SIZES}


@pytest.fixture
def tolerance(options: Options) -> Tolerance:
    # models of transformers compute norms, gates and angles in float32
    return {"rtol": 1e-3, "atol": 1e-5} if options["name"] in ("hf", "transformer") else {}


class TestBackbone(BackboneContract):
    @pytest.fixture
    def tolerance(self, tolerance: Tolerance) -> Tolerance:
        return tolerance


@pytest.mark.parametrize("option", [{"hidden_size": 40}, {"layers": 0}, {"head_size": 0}], ids=str)
def test_sizes_that_do_not_fit_are_refused(options: Options, option: dict[str, int]) -> None:
    with pytest.raises(AuroraError, match=str(next(iter(option.values())))):
        BACKBONE.build({**options, **option}, vocab_size=VOCAB)


def gradients(backbone: Backbone, x: Tensor, *, mixed: bool = False) -> list[Tensor]:
    """Of a loss that every position and every final state has a part in, with regard to x and all parameters; their
    whole where they are sharded."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        hidden, state = backbone(x, bounds(*LENGTHS), return_state=True)
    (hidden.square().sum() + sum(tensor.float().square().sum() for tensor in state.values())).backward()
    found = [x.grad, *(parameter.grad for parameter in backbone.parameters() if parameter.grad is not None)]
    backbone.zero_grad()
    return [getattr(gradient, "full_tensor", lambda gradient=gradient: gradient)() for gradient in found]


def test_gradients_flow_through_a_carried_state(options: Options, tolerance: Tolerance) -> None:
    backbone = build(options)
    whole, rest = (row(backbone, 20).requires_grad_() for _ in range(2))
    backbone(whole, bounds(20))[0].square().sum().backward()
    head, state = backbone(rest[:13], bounds(13), return_state=True)
    tail, _ = backbone(rest[13:], bounds(7), state)
    (head.square().sum() + tail.square().sum()).backward()
    torch.testing.assert_close(rest.grad, whole.grad, **tolerance)


@pytest.mark.slow
def test_mixed_precision_is_close_to_full(options: Options) -> None:
    backbone = build(options).float()
    x = row(backbone).float()
    expected = gradients(backbone, x)
    actual = gradients(backbone, x, mixed=True)
    assert (actual[0] - expected[0]).norm() <= 0.1 * expected[0].norm()
    assert all(gradient.isfinite().all() for gradient in actual)


@pytest.mark.slow
def test_blocks_that_are_computed_again_give_the_same_gradients(options: Options, tolerance: Tolerance) -> None:
    backbone = build(options)
    expected = gradients(backbone, row(backbone))
    for block in blocks(backbone):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    for actual, same in zip(gradients(backbone, row(backbone)), expected, strict=True):
        torch.testing.assert_close(actual, same, **tolerance)


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield DeviceMesh("cpu", [0])
    dist.destroy_process_group()


# nothing writes into what a block returns
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view:UserWarning")
def test_blocks_that_are_sharded_give_the_same_gradients(
    options: Options, tolerance: Tolerance, mesh: DeviceMesh
) -> None:
    backbone = build(options)
    expected = gradients(backbone, row(backbone))
    for block in blocks(backbone):
        fully_shard(block, mesh=mesh)
    fully_shard(backbone, mesh=mesh)
    for actual, same in zip(gradients(backbone, row(backbone)), expected, strict=True):
        torch.testing.assert_close(actual, same, **tolerance)


def blocks(backbone: Backbone) -> list[torch.nn.Module]:
    return [module for module in backbone.modules() if isinstance(module, backbone.block_class)]
