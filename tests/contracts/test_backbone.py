"""What every backbone must do, with weights that are nowhere zero.

Shape letters: T packed positions, S sequences, D width.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from aurora.errors import AuroraError
from aurora.interfaces import Backbone
from aurora.registry import BACKBONE
from aurora.types import State, join_states, map_state, select_state, state_bytes

SIZES = {"hidden_size": 64, "layers": 2, "head_size": 32}
VOCAB = 97
LENGTHS = (19, 1, 33, 4)


def build(name: str) -> Backbone:
    """A backbone in float64, disturbed so that no branch starts out silent."""
    torch.manual_seed(0)
    model = BACKBONE.build({"name": name, **SIZES}, vocab_size=VOCAB).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=BACKBONE.known())
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return build(request.param)


def bounds(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def row(positions: int = sum(LENGTHS)) -> Tensor:
    return torch.randn(positions, SIZES["hidden_size"], generator=torch.Generator().manual_seed(1)).double()


def some_state(backbone: Backbone, sequences: int) -> State:
    """What sequences that have read something remember."""
    return backbone.prefill(row(9 * sequences).flip(0), bounds(*[9] * sequences))[1]


def assert_states_equal(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_packing_changes_nothing(backbone: Backbone) -> None:
    x = row()
    packed, _ = backbone(x, bounds(*LENGTHS))
    alone = [backbone(part, bounds(len(part)))[0] for part in x.split(LENGTHS)]
    torch.testing.assert_close(packed, torch.cat(alone))


@torch.no_grad()
def test_step_equals_forward(backbone: Backbone) -> None:
    x = row(12).view(3, 4, -1)  # three sequences of four positions
    whole, end = backbone(x.flatten(0, 1), bounds(4, 4, 4), some_state(backbone, 3), return_state=True)
    state = some_state(backbone, 3)
    steps = []
    for t in range(4):
        hidden, state = backbone.step(x[:, t], state)
        steps.append(hidden)
    torch.testing.assert_close(torch.stack(steps, dim=1).flatten(0, 1), whole)
    assert_states_equal(state, end)


@pytest.mark.parametrize("cut", [1, 7, 16, 29])
@torch.no_grad()
def test_a_prefill_may_be_cut_anywhere(backbone: Backbone, cut: int) -> None:
    x = row(30)
    last, end = backbone.prefill(x, bounds(30))
    _, state = backbone.prefill(x[:cut], bounds(cut))
    hidden, state = backbone.prefill(x[cut:], bounds(30 - cut), state)
    torch.testing.assert_close(hidden, last)
    assert_states_equal(state, end)


@torch.no_grad()
def test_a_continuation_of_several_packed_sequences_equals_the_whole(backbone: Backbone) -> None:
    sequences = row().split(LENGTHS)
    cuts = (5, 1, 17, 1)  # the second one ends at its cut, and goes on with other text
    sequences = [sequences[0], torch.cat([sequences[1]] * 3), *sequences[2:]]
    heads = [x[:cut] for x, cut in zip(sequences, cuts, strict=True)]
    tails = [x[cut:] for x, cut in zip(sequences, cuts, strict=True)]
    _, state = backbone(torch.cat(heads), bounds(*map(len, heads)), return_state=True)
    rest, end = backbone(torch.cat(tails), bounds(*map(len, tails)), state, return_state=True)
    whole, whole_end = backbone(torch.cat(sequences), bounds(*map(len, sequences)), return_state=True)
    expected = [part[cut:] for part, cut in zip(whole.split([len(x) for x in sequences]), cuts, strict=True)]
    torch.testing.assert_close(rest, torch.cat(expected))
    assert_states_equal(end, whole_end)


@torch.no_grad()
def test_states_of_packed_sequences_are_their_own(backbone: Backbone) -> None:
    x = row()
    given = some_state(backbone, len(LENGTHS))
    _, packed = backbone(x, bounds(*LENGTHS), given, return_state=True)
    alone = [
        backbone(part, bounds(len(part)), select_state(given, [s]), return_state=True)[1]
        for s, part in enumerate(x.split(LENGTHS))
    ]
    assert_states_equal(packed, join_states(alone))


@torch.no_grad()
def test_no_state_means_the_initial_one(backbone: Backbone) -> None:
    x, cut = row(), bounds(*LENGTHS)
    given, end = backbone(x, cut, backbone.init_state(len(LENGTHS)), return_state=True)
    none, none_end = backbone(x, cut, return_state=True)
    torch.testing.assert_close(given, none)
    assert_states_equal(end, none_end)


@torch.no_grad()
def test_state_size_does_not_depend_on_length(backbone: Backbone) -> None:
    sizes = {state_bytes(backbone.prefill(row(length), bounds(length))[1]) for length in (1, 40)}
    assert sizes == {state_bytes(backbone.init_state(1))}


@torch.no_grad()
def test_the_initial_state_looks_like_any_other(backbone: Backbone) -> None:
    empty, full = backbone.init_state(2), some_state(backbone, 2)
    assert {name: (x.shape, x.dtype) for name, x in empty.items()} == {
        name: (x.shape, x.dtype) for name, x in full.items()
    }


def test_gradients_stay_inside_a_sequence(backbone: Backbone) -> None:
    x = row().requires_grad_()
    state = map_state(lambda tensor: tensor.detach().requires_grad_(), some_state(backbone, len(LENGTHS)))
    hidden, _ = backbone(x, bounds(*LENGTHS), state)
    own = slice(LENGTHS[0] + LENGTHS[1], sum(LENGTHS[:3]))  # the third sequence
    gradients = torch.autograd.grad(hidden[own].square().sum(), [x, *state.values()])
    touched = gradients[0].abs().sum(-1) > 0
    assert touched[own].all() and touched.sum() == LENGTHS[2]
    for name, gradient in zip(state, gradients[1:], strict=True):
        reached = gradient.abs().flatten(2).sum((0, 2)) > 0
        assert reached.tolist() == [False, False, True, False], name


def test_a_later_position_never_reaches_an_earlier_one(backbone: Backbone) -> None:
    x = row(20).requires_grad_()
    hidden, _ = backbone(x, bounds(20))
    (gradient,) = torch.autograd.grad(hidden[11].sum(), x)
    assert gradient[:12].abs().sum(-1).all() and not gradient[12:].any()


@torch.no_grad()
def test_step_leaves_the_given_state_alone(backbone: Backbone) -> None:
    state = some_state(backbone, 2)
    kept = map_state(Tensor.clone, state)
    backbone.step(row(2), state)
    assert all(torch.equal(state[name], kept[name]) for name in state)


@torch.no_grad()
def test_forward_leaves_the_given_state_alone(backbone: Backbone) -> None:
    state = some_state(backbone, len(LENGTHS))
    kept = map_state(Tensor.clone, state)
    backbone(row(), bounds(*LENGTHS), state, return_state=True)
    assert all(torch.equal(state[name], kept[name]) for name in state)


@torch.no_grad()
def test_a_state_saved_and_loaded_continues_bit_for_bit(backbone: Backbone, tmp_path: Path) -> None:
    state = some_state(backbone, 2)
    torch.save(dict(state), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(backbone.step(row(2), state)[0], backbone.step(row(2), loaded)[0])


@torch.no_grad()
def test_a_state_is_given_back_only_when_asked_for(backbone: Backbone) -> None:
    assert backbone(row(), bounds(*LENGTHS))[1] is None


def test_gradients_reach_every_parameter(backbone: Backbone) -> None:
    tokens = torch.randint(0, VOCAB, (sum(LENGTHS),), generator=torch.Generator().manual_seed(2))
    hidden, _ = backbone(backbone.embed(tokens), bounds(*LENGTHS))
    parameters = dict(backbone.named_parameters())
    loss = backbone.logits(hidden).log_softmax(-1).square().sum()
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    missed = [name for name, g in zip(parameters, gradients, strict=True) if g is None or not g.any()]
    assert missed == []


@pytest.mark.parametrize("name", BACKBONE.known())
def test_it_trains_in_bfloat16(name: str) -> None:
    model = build(name).bfloat16()
    x, cut = model.embed(torch.arange(sum(LENGTHS))), bounds(*LENGTHS)
    hidden, state = model(x, cut, return_state=True)
    model.logits(hidden).float().square().mean().backward()
    stepped, _ = model.step(x[: len(LENGTHS)], state)
    assert hidden.dtype is stepped.dtype is torch.bfloat16
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_bfloat16_is_close_to_float64(backbone: Backbone) -> None:
    narrow = BACKBONE.build({"name": _name(backbone), **SIZES}, vocab_size=VOCAB).bfloat16()
    narrow.load_state_dict(backbone.state_dict())
    wide = BACKBONE.build({"name": _name(backbone), **SIZES}, vocab_size=VOCAB).double()
    wide.load_state_dict(narrow.state_dict())
    x = row().bfloat16()
    got, expected = narrow(x, bounds(*LENGTHS))[0].double(), wide(x.double(), bounds(*LENGTHS))[0]
    assert (got - expected).norm() <= 0.05 * expected.norm()


def _name(backbone: Backbone) -> str:
    return type(backbone).__module__.rpartition(".")[2]


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", BACKBONE.known())
def test_saved_weights_are_read_back(name: str, ending: str, tmp_path: Path) -> None:
    model, other = build(name), BACKBONE.build({"name": name, **SIZES}, vocab_size=VOCAB).double()
    path = str(tmp_path / f"model{ending}")
    model.save_base(path)
    other.load_base(path)
    for key, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", BACKBONE.known())
def test_weights_of_another_size_are_refused(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / "model.safetensors")
    BACKBONE.build({"name": name, **SIZES}, vocab_size=VOCAB + 1).save_base(path)
    with pytest.raises(AuroraError, match=r"98.* instead of .*97"):
        build(name).load_base(path)


@pytest.mark.parametrize("name", BACKBONE.known())
def test_it_is_built_on_meta(name: str) -> None:
    with torch.device("meta"):
        model = BACKBONE.build({"name": name, **SIZES}, vocab_size=VOCAB)
        state = model.init_state(3)
    assert all(p.is_meta for p in model.parameters()) and all(x.is_meta for x in state.values())


@pytest.mark.parametrize("name", BACKBONE.known())
def test_memory_given_after_meta_can_be_filled(name: str) -> None:
    with torch.device("meta"):
        model = BACKBONE.build({"name": name, **SIZES}, vocab_size=VOCAB)
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(float("nan"))
    model.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@pytest.mark.parametrize("name", BACKBONE.known())
def test_a_fresh_model_learns(name: str) -> None:
    torch.manual_seed(0)
    model = BACKBONE.build({"name": name, **SIZES}, vocab_size=VOCAB)
    tokens = torch.randint(0, VOCAB, (24,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        hidden, _ = model(model.embed(tokens[:-1]), bounds(len(tokens) - 1))
        loss = torch.nn.functional.cross_entropy(model.logits(hidden), tokens[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("option", [{"hidden_size": 40}, {"layers": 0}, {"head_size": 0}], ids=str)
@pytest.mark.parametrize("name", BACKBONE.known())
def test_sizes_that_do_not_fit_are_refused(name: str, option: dict[str, int]) -> None:
    with pytest.raises(AuroraError, match=str(next(iter(option.values())))):
        BACKBONE.build({"name": name, **SIZES, **option}, vocab_size=VOCAB)


@torch.no_grad()
def test_empty_sequences_are_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="empty"):
        backbone(row(5), torch.tensor([0, 3, 3, 5]))
