"""What every registered connector must show."""

import pytest
import torch

from aurora.registry import CONNECTOR
from aurora.types import VisualTokens

NAMES = pytest.mark.parametrize("name", CONNECTOR.known())


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return CONNECTOR.build({"name": name}, in_width=16, out_width=10)


def some_tokens(frames: int, kept: int) -> VisualTokens:
    generator = torch.Generator().manual_seed(kept)
    size = torch.randint(1, 4, (frames, kept), generator=generator)
    owner = torch.stack([torch.arange(kept).repeat_interleave(row)[:kept] for row in size])
    return VisualTokens(torch.randn(frames, kept, 16, generator=generator), size.float(), owner)


@NAMES
@pytest.mark.parametrize(("frames", "kept"), [(1, 1), (3, 7), (2, 40)])
def test_the_number_of_tokens_stays(name: str, frames: int, kept: int) -> None:
    assert build(name)(some_tokens(frames, kept)).shape == (frames, kept, 10)


@NAMES
def test_frames_do_not_influence_each_other(name: str) -> None:
    connector, tokens = build(name), some_tokens(3, 7)
    together = connector(tokens)
    for index in range(3):
        alone = connector(VisualTokens(*(part[index : index + 1] for part in tokens)))
        torch.testing.assert_close(together[index], alone[0])


@NAMES
def test_the_order_of_the_tokens_is_the_order_of_the_output(name: str) -> None:
    connector, tokens = build(name), some_tokens(2, 7)
    flipped = VisualTokens(tokens.features.flip(1), tokens.size.flip(1), 6 - tokens.owner)
    torch.testing.assert_close(connector(flipped), connector(tokens).flip(1))


@NAMES
def test_every_weight_and_every_token_gets_a_gradient(name: str) -> None:
    connector, tokens = build(name), some_tokens(2, 7)
    features = tokens.features.requires_grad_()
    connector(tokens).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in connector.parameters())
    assert (features.grad.abs().sum(-1) > 0).all()


@NAMES
def test_half_precision_stays_half_precision(name: str) -> None:
    tokens = some_tokens(2, 7)
    out = build(name).bfloat16()(tokens._replace(features=tokens.features.bfloat16()))
    assert out.dtype is torch.bfloat16
    assert out.isfinite().all()


@NAMES
def test_products_in_float16_teach_what_those_in_float32_do(name: str) -> None:
    connector, tokens, found = build(name), some_tokens(2, 7), []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.float16, enabled=mixed):
            loss = connector(tokens).float().square().mean()
        loss.backward()
        found.append(torch.cat([weight.grad.flatten() for weight in connector.parameters()]))
        connector.zero_grad()
    assert (found[1] - found[0]).norm() <= 0.01 * found[0].norm()
