"""What every backbone must do, with weights that are nowhere zero.

A test file of any package holds its own backbone to it with a fixture `options` and a class:

    @pytest.fixture(scope="module")
    def options() -> Options:
        return {"name": "mine", "hidden_size": 64, "layers": 2}

    class TestMine(BackboneContract):
        pass

Shape letters: T packed positions, S sequences, D width.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aurora.errors import AuroraError
from aurora.interfaces import Backbone
from aurora.registry import BACKBONE
from aurora.types import State, join_states, map_state, select_state, state_bytes

VOCAB = 97
LENGTHS = (19, 1, 33, 4)

Options = Mapping[str, Any]
"""A backbone's name and small sizes, as a config says them."""

Tolerance = Mapping[str, Any]
"""`rtol` and `atol` of comparisons; empty for those of float64."""


def build(options: Options) -> Backbone:
    """A backbone in float64, disturbed so that no branch starts out silent."""
    torch.manual_seed(0)
    model = BACKBONE.build(options, vocab_size=VOCAB).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def bounds(*lengths: int) -> Tensor:
    """cu_seqlens of sequences of these lengths."""
    return torch.tensor([0, *lengths]).cumsum(0)


def row(backbone: Backbone, positions: int = sum(LENGTHS)) -> Tensor:
    """[T, D] float64, the same at every call."""
    return torch.randn(positions, backbone.hidden_size, generator=torch.Generator().manual_seed(1)).double()


def some_state(backbone: Backbone, sequences: int) -> State:
    """What sequences that have read something remember."""
    return backbone.prefill(row(backbone, 9 * sequences).flip(0), bounds(*[9] * sequences))[1]


def assert_states_equal(actual: State, expected: State, tolerance: Tolerance) -> None:
    """The same names and shapes and, up to rounding, the same values."""
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].shape == expected[name].shape, name
        torch.testing.assert_close(actual[name], expected[name], msg=partial("{}: {}".format, name), **tolerance)


def _gradient(backbone: Backbone, *, mixed: bool) -> Tensor:
    """Of a loss of all logits with regard to all parameters, as one vector; with products in float16 if `mixed`."""
    with torch.autocast("cpu", torch.float16, enabled=mixed):
        hidden, _ = backbone(row(backbone).float(), bounds(*LENGTHS))
        loss = backbone.logits(hidden).float().square().mean()
    scale = 2.0**10 if mixed else 1.0  # without one, small gradients would not be there
    torch.autograd.backward(loss * scale)
    found = torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None]) / scale
    backbone.zero_grad()
    return found


class BackboneContract:
    """One property per test; `options` is a fixture of the file that inherits them."""

    without_gradient: tuple[str, ...] = ()
    """Tensors of the state that the tests' sequences pass no gradient to, because a bound holds there."""

    @pytest.fixture
    def backbone(self, options: Options) -> Backbone:
        return build(options)

    @pytest.fixture
    def tolerance(self) -> Tolerance:
        """Overridden where something inside computes in float32 whatever it is given."""
        return {}

    @torch.no_grad()
    def test_packing_changes_nothing(self, backbone: Backbone, tolerance: Tolerance) -> None:
        x = row(backbone)
        packed, _ = backbone(x, bounds(*LENGTHS))
        alone = [backbone(part, bounds(len(part)))[0] for part in torch.split(x, [*LENGTHS])]
        torch.testing.assert_close(packed, torch.cat(alone), **tolerance)

    @torch.no_grad()
    def test_step_equals_forward(self, backbone: Backbone, tolerance: Tolerance) -> None:
        x = row(backbone, 12).view(3, 4, -1)  # three sequences of four positions
        whole, end = backbone(x.flatten(0, 1), bounds(4, 4, 4), some_state(backbone, 3), return_state=True)
        state = some_state(backbone, 3)
        steps = []
        for t in range(4):
            hidden, state = backbone.step(x[:, t], state)
            steps.append(hidden)
        torch.testing.assert_close(torch.stack(steps, dim=1).flatten(0, 1), whole, **tolerance)
        assert_states_equal(state, end, tolerance)

    @pytest.mark.parametrize("cut", [1, 7, 16, 29])
    @torch.no_grad()
    def test_a_prefill_may_be_cut_anywhere(self, backbone: Backbone, cut: int, tolerance: Tolerance) -> None:
        x = row(backbone, 30)
        last, end = backbone.prefill(x, bounds(30))
        _, state = backbone.prefill(x[:cut], bounds(cut))
        hidden, state = backbone.prefill(x[cut:], bounds(30 - cut), state)
        torch.testing.assert_close(hidden, last, **tolerance)
        assert_states_equal(state, end, tolerance)

    @torch.no_grad()
    def test_a_continuation_of_several_packed_sequences_equals_the_whole(
        self, backbone: Backbone, tolerance: Tolerance
    ) -> None:
        sequences = [*torch.split(row(backbone), [*LENGTHS])]
        cuts = (5, 1, 17, 1)  # the second one ends at its cut, and goes on with other text
        sequences = [sequences[0], torch.cat([sequences[1]] * 3), *sequences[2:]]
        heads = [x[:cut] for x, cut in zip(sequences, cuts, strict=True)]
        tails = [x[cut:] for x, cut in zip(sequences, cuts, strict=True)]
        _, state = backbone(torch.cat(heads), bounds(*map(len, heads)), return_state=True)
        rest, end = backbone(torch.cat(tails), bounds(*map(len, tails)), state, return_state=True)
        whole, whole_end = backbone(torch.cat(sequences), bounds(*map(len, sequences)), return_state=True)
        expected = [part[cut:] for part, cut in zip(torch.split(whole, [len(x) for x in sequences]), cuts, strict=True)]
        torch.testing.assert_close(rest, torch.cat(expected), **tolerance)
        assert_states_equal(end, whole_end, tolerance)

    @torch.no_grad()
    def test_states_of_packed_sequences_are_their_own(self, backbone: Backbone, tolerance: Tolerance) -> None:
        x = row(backbone)
        given = some_state(backbone, len(LENGTHS))
        _, packed = backbone(x, bounds(*LENGTHS), given, return_state=True)
        alone = [
            backbone(part, bounds(len(part)), select_state(given, [s]), return_state=True)[1]
            for s, part in enumerate(torch.split(x, [*LENGTHS]))
        ]
        assert_states_equal(packed, join_states(alone), tolerance)

    @torch.no_grad()
    def test_no_state_means_the_initial_one(self, backbone: Backbone, tolerance: Tolerance) -> None:
        x, cut = row(backbone), bounds(*LENGTHS)
        given, end = backbone(x, cut, backbone.init_state(len(LENGTHS)), return_state=True)
        none, none_end = backbone(x, cut, return_state=True)
        torch.testing.assert_close(given, none, **tolerance)
        assert_states_equal(end, none_end, tolerance)

    @torch.no_grad()
    def test_state_size_does_not_depend_on_length_unless_the_backbone_says_so(self, backbone: Backbone) -> None:
        read = [backbone.prefill(row(backbone, length), bounds(length))[1] for length in (1, 40)]
        empty, short, long = map(state_bytes, [backbone.init_state(1), *read])
        assert empty == short == long if backbone.constant_state else empty < short < long

    @torch.no_grad()
    def test_the_initial_state_looks_like_any_other(self, backbone: Backbone) -> None:
        empty, full = backbone.init_state(2), some_state(backbone, 2)
        kept = None if backbone.constant_state else 2  # memory that grows does so in the dimensions after [L, S]
        assert {name: (x.shape[:kept], x.dtype) for name, x in empty.items()} == {
            name: (x.shape[:kept], x.dtype) for name, x in full.items()
        }

    def test_gradients_stay_inside_a_sequence(self, backbone: Backbone) -> None:
        x = row(backbone).requires_grad_()
        state = map_state(Tensor.detach, some_state(backbone, len(LENGTHS)))
        floating = {name: tensor.requires_grad_() for name, tensor in state.items() if tensor.is_floating_point()}
        hidden, _ = backbone(x, bounds(*LENGTHS), state)
        own = slice(LENGTHS[0] + LENGTHS[1], sum(LENGTHS[:3]))  # the third sequence
        gradients = torch.autograd.grad(hidden[own].square().sum(), [x, *floating.values()])
        touched = gradients[0].abs().sum(-1) > 0
        assert touched[own].all() and touched.sum() == LENGTHS[2]
        for name, gradient in zip(floating, gradients[1:], strict=True):
            reached = gradient.abs().flatten(2).sum((0, 2)) > 0
            assert reached.tolist() == [False, False, name not in self.without_gradient, False], name

    def test_a_later_position_never_reaches_an_earlier_one(self, backbone: Backbone) -> None:
        x = row(backbone, 20).requires_grad_()
        hidden, _ = backbone(x, bounds(20))
        (gradient,) = torch.autograd.grad(hidden[11].sum(), x)
        assert gradient[:12].abs().sum(-1).all() and not gradient[12:].any()

    @torch.no_grad()
    def test_the_given_state_is_left_alone(self, backbone: Backbone) -> None:
        state = some_state(backbone, len(LENGTHS))
        kept = map_state(Tensor.clone, state)
        backbone.step(row(backbone, len(LENGTHS)), state)
        backbone(row(backbone), bounds(*LENGTHS), state, return_state=True)
        assert all(torch.equal(state[name], kept[name]) for name in state)

    @torch.no_grad()
    def test_a_state_saved_and_loaded_continues_bit_for_bit(self, backbone: Backbone, tmp_path: Path) -> None:
        state = some_state(backbone, 2)
        torch.save(dict(state), tmp_path / "state.pt")
        loaded = torch.load(tmp_path / "state.pt", weights_only=True)
        assert torch.equal(backbone.step(row(backbone, 2), state)[0], backbone.step(row(backbone, 2), loaded)[0])

    @torch.no_grad()
    def test_a_state_is_given_back_only_when_asked_for(self, backbone: Backbone) -> None:
        assert backbone(row(backbone), bounds(*LENGTHS))[1] is None

    def test_gradients_reach_every_parameter(self, backbone: Backbone) -> None:
        tokens = torch.randint(0, VOCAB, (sum(LENGTHS),), generator=torch.Generator().manual_seed(2))
        hidden, _ = backbone(backbone.embed(tokens), bounds(*LENGTHS))
        parameters = dict(backbone.named_parameters())
        loss = backbone.logits(hidden).log_softmax(-1).square().sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        missed = [name for name, g in zip(parameters, gradients, strict=True) if g is None or not g.any()]
        assert missed == []

    def test_it_trains_in_bfloat16(self, options: Options) -> None:
        model = build(options).bfloat16()
        x, cut = model.embed(torch.arange(sum(LENGTHS))), bounds(*LENGTHS)
        hidden, state = model(x, cut, return_state=True)
        torch.autograd.backward(model.logits(hidden).float().square().mean())
        stepped, _ = model.step(x[: len(LENGTHS)], state)
        assert hidden.dtype is stepped.dtype is torch.bfloat16
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    @torch.no_grad()
    def test_bfloat16_is_close_to_float64(self, options: Options, backbone: Backbone) -> None:
        narrow = BACKBONE.build(options, vocab_size=VOCAB).bfloat16()
        narrow.load_state_dict(backbone.state_dict())
        wide = BACKBONE.build(options, vocab_size=VOCAB).double()
        wide.load_state_dict(narrow.state_dict())
        x = row(backbone).bfloat16()
        got, expected = narrow(x, bounds(*LENGTHS))[0].double(), wide(x.double(), bounds(*LENGTHS))[0]
        assert (got - expected).norm() <= 0.05 * expected.norm()

    def test_products_in_float16_teach_what_those_in_float32_do(self, options: Options) -> None:
        model = build(options).float()
        right, found = (_gradient(model, mixed=mixed) for mixed in (False, True))
        assert found.isfinite().all() and (found - right).norm() <= 0.03 * right.norm()

    @torch.no_grad()
    def test_products_in_float16_tell_the_same_where_nothing_is_learned(self, options: Options) -> None:
        model, cut = build(options).float(), bounds(*LENGTHS)
        x = row(model).float()
        expected, state = model(x, cut, return_state=True)
        with torch.autocast("cpu", torch.float16):
            hidden, after = model(x, cut, return_state=True)
        for got, right in ((hidden, expected), *((after[name], state[name]) for name in state)):
            assert (got - right).float().norm() <= 0.01 * right.float().norm()

    @pytest.mark.parametrize("ending", [".pth", ".safetensors"])
    def test_saved_weights_are_read_back(self, options: Options, ending: str, tmp_path: Path) -> None:
        model, other = build(options), BACKBONE.build(options, vocab_size=VOCAB).double()
        path = str(tmp_path / f"model{ending}")
        model.save_base(path)
        other.load_base(path)
        for key, tensor in model.state_dict().items():
            assert torch.equal(other.state_dict()[key], tensor), key

    def test_weights_of_another_size_are_refused(self, options: Options, tmp_path: Path) -> None:
        path = str(tmp_path / "model.safetensors")
        BACKBONE.build(options, vocab_size=VOCAB + 1).save_base(path)
        with pytest.raises(AuroraError, match=r"98.* instead of .*97"):
            build(options).load_base(path)

    def test_it_is_built_on_meta(self, options: Options) -> None:
        with torch.device("meta"):
            model = BACKBONE.build(options, vocab_size=VOCAB)
            state = model.init_state(3)
        assert all(p.is_meta for p in model.parameters()) and all(x.is_meta for x in state.values())

    def test_memory_given_after_meta_can_be_filled(self, options: Options) -> None:
        with torch.device("meta"):
            model = BACKBONE.build(options, vocab_size=VOCAB)
        model.to_empty(device="cpu")
        for tensor in model.state_dict().values():
            tensor.fill_(float("nan"))
        model.reset_parameters()
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())

    def test_a_fresh_model_learns(self, options: Options) -> None:
        torch.manual_seed(0)
        model = BACKBONE.build(options, vocab_size=VOCAB)
        tokens = torch.randint(0, VOCAB, (24,))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(30):
            hidden, _ = model(model.embed(tokens[:-1]), bounds(len(tokens) - 1))
            loss = torch.nn.functional.cross_entropy(model.logits(hidden), tokens[1:])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.2 * losses[0]

    @torch.no_grad()
    def test_empty_sequences_are_refused(self, backbone: Backbone) -> None:
        with pytest.raises(ValueError, match="empty"):
            backbone(row(backbone, 5), torch.tensor([0, 3, 3, 5]))
