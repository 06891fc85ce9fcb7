"""What each connector computes."""

import pytest
import torch

from aurora.errors import AuroraError
from aurora.registry import CONNECTOR
from aurora.types import VisualTokens


def frame(features: torch.Tensor, sizes: list[float]) -> VisualTokens:
    size = torch.tensor([sizes])
    return VisualTokens(features, size, torch.arange(len(sizes)).repeat_interleave(size[0].long())[None])


def test_linear_is_one_affine_map() -> None:
    connector, x = CONNECTOR.build({"name": "linear"}, in_width=6, out_width=4), torch.randn(2, 3, 6)
    tokens = VisualTokens(x, torch.ones(2, 3), torch.arange(3).expand(2, -1))
    torch.testing.assert_close(connector(tokens), x @ connector.project.weight.T + connector.project.bias)


@pytest.mark.parametrize(("hidden", "expected"), [(None, 6 * 4 + 4 + 4 * 4 + 4), (9, 6 * 9 + 9 + 9 * 4 + 4)])
def test_the_mlp_is_as_wide_inside_as_asked_or_as_the_backbone(hidden: int | None, expected: int) -> None:
    connector = CONNECTOR.build({"name": "mlp", "hidden": hidden}, in_width=6, out_width=4)
    assert sum(weight.numel() for weight in connector.parameters()) == expected


def test_the_mlp_bends_with_the_exact_gelu() -> None:
    connector, x = CONNECTOR.build({"name": "mlp"}, in_width=6, out_width=4), torch.randn(1, 3, 6)
    first, _, second = connector.project
    hidden = x @ first.weight.T + first.bias
    bent = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(connector(frame(x, [1, 1, 1])), bent @ second.weight.T + second.bias)


@pytest.mark.parametrize(("name", "context"), [("linear", False), ("mlp", False), ("resampler", True)])
def test_only_the_resampler_lets_a_token_know_its_frame(name: str, context: bool) -> None:
    torch.manual_seed(0)
    connector, x = CONNECTOR.build({"name": name}, in_width=16, out_width=4), torch.randn(1, 3, 16)
    changed = x.clone()
    changed[:, 2] += 1
    before, after = connector(frame(x, [1, 1, 1])), connector(frame(changed, [1, 1, 1]))
    assert torch.equal(before[:, :2], after[:, :2]) is not context


def test_to_the_resampler_a_token_of_size_two_is_two_tokens() -> None:
    torch.manual_seed(0)
    connector, x = CONNECTOR.build({"name": "resampler"}, in_width=16, out_width=4), torch.randn(1, 3, 16)
    merged = connector(frame(x, [1, 2, 1]))
    apart = connector(frame(x[:, [0, 1, 1, 2]], [1, 1, 1, 1]))
    torch.testing.assert_close(merged, apart[:, [0, 1, 3]])


def test_the_resampler_refuses_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(AuroraError, match="width 20 is not a multiple of 8 heads"):
        CONNECTOR.build({"name": "resampler"}, in_width=20, out_width=4)


@pytest.mark.parametrize(
    ("name", "option"), [("mlp", {"hidden": 0}), ("resampler", {"latents": 0}), ("resampler", {"heads": 1.5})]
)
def test_a_wrong_option_is_refused(name: str, option: dict) -> None:
    with pytest.raises(AuroraError, match=f"connector '{name}': {next(iter(option))}"):
        CONNECTOR.build({"name": name, **option}, in_width=16, out_width=4)
