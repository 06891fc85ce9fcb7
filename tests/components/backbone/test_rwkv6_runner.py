"""RWKV-6 by our own kernels against its modules in float64, and when the modules are to be used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aurora.errors import AuroraError
from aurora.interfaces import Runner
from aurora.registry import BACKBONE
from aurora.types import State, map_state, select_state
from components.backbone import _rwkv6_runner
from components.backbone._rwkv6_runner import MOST_SEQUENCES, FusedRunner, _threads
from components.kernels.linear import Int8Linear

SIZES = [
    {"hidden_size": 128, "layers": 3, "head_size": 32},
    {"hidden_size": 72, "layers": 2, "head_size": 24, "ffn_size": 100, "mix_rank": 7, "decay_rank": 12},
    {"hidden_size": 264, "layers": 2, "head_size": 24, "ffn_size": 500, "mix_rank": 9},  # not narrow
]
VOCAB = 50
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2}
KINDS = [(torch.float32, None), (torch.bfloat16, None), (torch.float32, "int8"), (torch.bfloat16, "int8")]


def build(sizes: dict[str, int], dtype: torch.dtype, quantized: str | None = None) -> Any:
    """A model whose every weight matters."""
    torch.manual_seed(0)
    model: Any = BACKBONE.build({"name": "rwkv6", **sizes}, vocab_size=VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = model.to(dtype).eval()
    model.quantize(quantized)
    return model


def in_float64(model: Any) -> Any:
    """The same model by its modules."""
    twin = build(next(sizes for sizes in SIZES if sizes["hidden_size"] == model.hidden_size), torch.float64)
    values = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            values[f"{name}.weight"] = module.weight.double() * module.scale.double()[:, None]
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(values[name])
    return twin


def row(model: Any, *lengths: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(sum(lengths), model.hidden_size, generator=torch.Generator().manual_seed(sum(lengths)))
    return x.to(model.emb.weight.dtype), torch.tensor([0, *lengths]).cumsum(0)


def remembered(model: Any, sequences: int) -> State:
    x, bounds = row(model, *[5] * sequences)
    return model.prefill(x, bounds)[1]


def wide(state: State) -> State:
    return map_state(torch.Tensor.double, state)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    if actual.dtype is torch.float64:
        torch.testing.assert_close(actual, expected)
        return
    tolerance = TOLERANCE[torch.bfloat16 if actual.dtype is torch.bfloat16 else torch.float32]
    assert float((actual.double() - expected).abs().max()) <= tolerance * float(expected.abs().max())


def fused(model: Any) -> FusedRunner:
    runner = model.runner()
    assert isinstance(runner, FusedRunner) and not runner.reason
    return runner


@pytest.mark.parametrize(("dtype", "quantized"), KINDS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("lengths", [(1,), (3, 1, 40), (70,), (63, 1, 130)])
@pytest.mark.parametrize("most", [0, 1000])
@torch.no_grad()
def test_a_row_equals_the_modules(
    sizes: dict[str, int], dtype: torch.dtype, quantized: str | None, lengths: tuple[int, ...], most: int,
    monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one call, and with more positions than that takes."""
    monkeypatch.setattr(_rwkv6_runner, "_most_positions", lambda *given, **named: most)
    model = build(sizes, dtype, quantized)
    twin, state, (x, bounds) = in_float64(model), remembered(model, len(lengths)), row(model, *lengths)
    hidden, after = fused(model).read(x, bounds, state)
    expected, end = twin(x.double(), bounds, wide(state), return_state=True)
    assert_close(hidden, expected)
    assert_close(model.logits(hidden), twin.logits(expected))
    for name in end:
        loose = after[name].to(dtype)  # the recurrence is float32, what it reads is not
        assert_close(loose, end[name])


@pytest.mark.parametrize(("dtype", "quantized"), KINDS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("sequences", [1, 3, 8, 9, MOST_SEQUENCES + 1])
@torch.no_grad()
def test_a_step_equals_the_modules(
    sizes: dict[str, int], dtype: torch.dtype, quantized: str | None, sequences: int
) -> None:
    model = build(sizes, dtype, quantized)
    twin, state, (x, _) = in_float64(model), remembered(model, sequences), row(model, sequences)
    before, runner = {name: tensor.clone() for name, tensor in state.items()}, fused(model)
    hidden, after = runner.step(x, state)
    assert runner.fuses(x, sequences, state)
    expected, end = twin.step(x.double(), wide(state))
    assert_close(hidden, expected)
    for name in end:
        assert_close(after[name].to(dtype), end[name])
        assert torch.equal(state[name], before[name])


@pytest.mark.parametrize(("dtype", "quantized"), KINDS)
@torch.no_grad()
def test_a_sequence_is_the_same_alone_and_beside_others_on_any_number_of_threads(
    dtype: torch.dtype, quantized: str | None
) -> None:
    model = build(SIZES[0], dtype, quantized)
    runner, state, (x, _) = fused(model), remembered(model, 20), row(model, 20)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(runner.step(x, state))
            for number in (0, 5, 19):
                alone, after = runner.step(x[number:number + 1], select_state(state, [number]))
                assert torch.equal(alone, found[-1][0][number:number + 1])
                assert torch.equal(model.logits(alone)[0], model.logits(found[-1][0])[number])
                assert all(torch.equal(after[name], select_state(found[-1][1], [number])[name]) for name in after)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(hidden, found[0][0]) for hidden, _ in found)


@pytest.mark.parametrize(("dtype", "quantized"), KINDS)
@pytest.mark.parametrize("sizes", SIZES)
@torch.no_grad()
def test_what_is_read_depends_neither_on_where_it_is_cut_nor_on_what_is_read_beside_it(
    sizes: dict[str, int], dtype: torch.dtype, quantized: str | None
) -> None:
    """Bit for bit: in one call of two blocks, cut anywhere, or a position at a time, on any number of threads."""
    model = build(sizes, dtype, quantized)
    runner, state, (x, _) = fused(model), remembered(model, 1), row(model, 100)
    runner.most_positions = 200  # also of a wide model, which is read by its modules from fewer on
    whole, after = runner.read(x, torch.tensor([0, 100]), state)
    for cuts in ((1,), (37, 64), (63, 65, 99)):
        pieces, now = [], state
        for part in torch.tensor_split(x, cuts):
            hidden, now = runner.read(part, torch.tensor([0, len(part)]), now)
            pieces.append(hidden)
        assert torch.equal(torch.cat(pieces), whole)
        assert all(torch.equal(now[name], after[name]) for name in after)
    now = state
    for position in range(100):
        hidden, now = runner.step(x[position:position + 1], now)
        assert torch.equal(hidden[0], whole[position])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            beside = torch.cat([x[:7], x, x[50:80]])
            hidden, ends = runner.read(beside, torch.tensor([0, 7, 107, 137]), select_state(state, [0, 0, 0]))
            assert torch.equal(hidden[7:107], whole) and torch.equal(hidden[:7], whole[:7])
            assert all(torch.equal(select_state(ends, [1])[name], after[name]) for name in after)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def test_bounds_of_another_type_and_rows_without_states_are_read_too() -> None:
    model = build(SIZES[0], torch.float32)
    runner, (x, bounds) = fused(model), row(model, 5, 9)
    expected, _ = runner.read(x, bounds)
    hidden, after = runner.read(x, bounds.int(), return_state=False)
    assert_close(hidden, expected.double())
    assert after is None


@pytest.mark.parametrize("bounds", [[0, 9], [0, 3], [1, 6], [0, 3, 3, 6], [0, 4, 2, 6]])
def test_bounds_that_do_not_make_up_the_row_are_refused(bounds: list[int]) -> None:
    model = build(SIZES[0], torch.float32)
    with pytest.raises(ValueError, match="make up 6 positions"):
        fused(model).read(row(model, 6)[0], torch.tensor(bounds))


@torch.no_grad()
def test_likelihood_does_not_drift_over_two_thousand_tokens() -> None:
    model = build(SIZES[0], torch.float32)
    twin = in_float64(model)
    tokens = torch.randint(0, VOCAB, (2049,), generator=torch.Generator().manual_seed(4))
    likelihoods = []
    for which, read in ((model, fused(model).read), (twin, twin)):
        hidden, _ = read(which.embed(tokens[:-1]), torch.tensor([0, 2048]))
        likelihoods.append(-nn.functional.cross_entropy(which.logits(hidden).double(), tokens[1:], reduction="none"))
    assert (likelihoods[0] - likelihoods[1]).abs().max() <= 1e-4


def test_a_runner_starts_from_a_tuned_initial_state() -> None:
    model = build(SIZES[0], torch.float32)
    model.tune_state("here")
    x, bounds = row(model, 6)
    with torch.no_grad():
        model.initial_state.wkv.normal_(generator=torch.Generator().manual_seed(5))
        last, state = fused(model).prefill(x, bounds)
        expected, end = model.prefill(x, bounds)
    assert_close(last, expected)
    assert_close(state["wkv"], end["wkv"])
    assert not last.requires_grad


@torch.no_grad()
def test_weights_that_change_in_place_are_seen() -> None:
    model = build(SIZES[0], torch.float32)
    runner, state, (x, _) = fused(model), remembered(model, 1), row(model, 1)
    model.blocks[1].att.key.weight.mul_(-2)
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert_close(runner.step(x, state)[0], in_float64(model).step(x.double(), wide(state))[0])


def move(model: Any) -> None:
    model.blocks[1].ffn.value.weight.data = model.blocks[1].ffn.value.weight.data.clone()


def replace(model: Any) -> None:
    model.blocks[0].ln1.bias = nn.Parameter(torch.ones(128))


def hook(model: Any) -> None:
    model.blocks[2].att.output.register_forward_hook(lambda module, given, out: out * 2)


@pytest.mark.parametrize("change", [move, replace, hook])
@torch.no_grad()
def test_a_runner_refuses_weights_that_it_was_not_made_for(change: Callable[[Any], None]) -> None:
    model = build(SIZES[0], torch.float32)
    runner, state, (x, bounds) = fused(model), remembered(model, 1), row(model, 1)
    change(model)
    for use in (lambda: runner.read(x, bounds), lambda: runner.step(x, state)):
        with pytest.raises(RuntimeError, match=r"changed since this runner was made.*backbone\.runner\(\)"):
            use()
    last, _ = model.runner().prefill(x, bounds, state)
    torch.testing.assert_close(last, model(x, bounds, state)[0], rtol=1e-4, atol=1e-4)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def double(model: Any) -> None:
    plain = model.blocks[2].att.output
    model.blocks[2].att.output = Doubled(128, 128, bias=False)
    model.blocks[2].att.output.weight = plain.weight


def stand_in(model: Any) -> None:
    forward = model.blocks[2].att.output.forward
    model.blocks[2].att.output.forward = lambda x: 2 * forward(x)


@pytest.mark.parametrize(("change", "reason"), [
    (hook, "a Linear has a hook"), (double, "does not know Doubled"), (stand_in, "a forward of its own"),
])
@torch.no_grad()
def test_modules_that_are_not_plain_are_called_and_the_reason_is_said(
    change: Callable[[Any], None], reason: str
) -> None:
    model = build(SIZES[0], torch.float32)
    state, (x, _) = remembered(model, 1), row(model, 1)
    before, _ = fused(model).step(x, state)
    change(model)
    runner = model.runner()
    assert type(runner) is Runner and reason in runner.reason
    after, _ = runner.step(x, state)
    torch.testing.assert_close(after, model.step(x, state)[0])
    assert not torch.allclose(after, before, atol=1e-3)


@pytest.mark.parametrize(("sizes", "fuses"), [(SIZES[0], True), (SIZES[2], False)])
@torch.no_grad()
def test_only_of_a_narrow_model_all_matrices_may_lie_transposed(sizes: dict[str, int], fuses: bool) -> None:
    model = build(sizes, torch.float32)
    expected, _ = fused(model).step(row(model, 1)[0], remembered(model, 1))
    for block in model.blocks:
        for matrix in (block.att.key, block.ffn.value):
            matrix.weight.data = matrix.weight.t().contiguous().t()
    runner = model.runner()
    assert isinstance(runner, FusedRunner) is fuses and (fuses or "another type" in runner.reason)
    torch.testing.assert_close(runner.step(row(model, 1)[0], remembered(model, 1))[0], expected, atol=1e-4, rtol=1e-4)


def test_what_the_kernels_cannot_read_is_said() -> None:
    assert "not torch.float64 on cpu" in build(SIZES[0], torch.float64).runner().reason
    with torch.device("meta"):
        assert "on meta" in BACKBONE.build({"name": "rwkv6", **SIZES[0]}, vocab_size=VOCAB).runner().reason


def test_the_modules_are_called_without_a_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was made for the model, its forward is that of its blocks, with gradients and without."""
    model = build(SIZES[0], torch.float32)
    state, (x, bounds) = remembered(model, 1), row(model, 6)
    fused(model)
    called: list[str] = []
    for block in model.blocks:
        forward = block.forward
        monkeypatch.setattr(block, "forward", lambda *given, f=forward, row, state: (
            called.append(type(row).__name__) or f(*given, row=row, state=state)))
    with torch.no_grad():
        plain, _ = model(x, bounds)
        model.step(x[:1], state)
    learned, _ = model(x, bounds)
    assert called == ["Row"] * 3 + ["OnePosition"] * 3 + ["Row"] * 3
    torch.testing.assert_close(plain, learned)


@torch.no_grad()
def test_reading_with_the_modules_leaves_weights_where_and_as_they_lie() -> None:
    """A model may be read in the middle of its training, whose arithmetic and checkpoints depend on the layout."""
    model = build(SIZES[0], torch.float32)
    x, bounds = row(model, 6)
    before = {name: (p.data_ptr(), p.stride()) for name, p in model.named_parameters()}
    model(x, bounds)
    model.step(x[:1], model.init_state(1))
    assert {name: (p.data_ptr(), p.stride()) for name, p in model.named_parameters()} == before


def test_a_model_trains_saves_and_is_copied_after_it_was_used() -> None:
    model = build(SIZES[0], torch.float32)
    x, bounds = row(model, 4)
    with torch.inference_mode():
        fused(model).step(x, model.init_state(4))
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = copy.deepcopy(model)
    model.load_state_dict(saved)
    model.train()(x, bounds)[0].sum().backward()
    assert model.blocks[0].ffn.value.weight.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(fused(twin).read(x, bounds)[0], in_float64(model)(x.double(), bounds)[0].float())


@pytest.mark.parametrize("wrong", ["int4", "INT8", ""])
def test_an_unknown_rounding_is_named(wrong: str) -> None:
    with pytest.raises(AuroraError, match=r"quantize .* is unknown.*int8"):
        build(SIZES[0], torch.float32).quantize(wrong)


def test_memory_of_matrices_shrinks_to_a_quarter() -> None:
    model = build(SIZES[0], torch.float32)
    matrices = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    before = sum(model.get_parameter(name).nbytes for name in matrices)
    model.quantize("int8")
    assert sum(model.get_buffer(name).nbytes for name in matrices) * 4 == before
    assert not any(isinstance(module, nn.Linear) for module in model.modules())


def test_few_positions_of_a_narrow_model_are_read_with_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert [_threads(*given) for given in ((1, 128), (64, 256), (65, 256), (1, 768))] == [1, 1, 3, 3]
    finally:
        torch.set_num_threads(before)
