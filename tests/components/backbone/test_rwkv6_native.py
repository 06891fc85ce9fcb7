"""RWKV-6 by our own kernels against its modules in float64, and when the modules are to be used."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aurora.errors import AuroraError
from aurora.precision import quantize
from aurora.registry import BACKBONE
from aurora.types import State, map_state
from components.backbone import _rwkv6_native as native
from components.kernels.int8 import Int8Linear

SIZES = [
    {"hidden_size": 128, "layers": 3, "head_size": 32},
    {"hidden_size": 72, "layers": 2, "head_size": 24, "ffn_size": 100, "mix_rank": 7, "decay_rank": 12},
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
    quantize(model, quantized)
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


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Which of our paths were taken."""
    taken: list[str] = []
    for name in ("forward", "step"):
        path = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *x, path=path, name=name: taken.append(name) or path(*x))
    return taken


@pytest.mark.parametrize(("dtype", "quantized"), KINDS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("lengths", [(1,), (3, 1, 40), (70,)])
@torch.no_grad()
def test_a_row_equals_the_modules(
    sizes: dict[str, int], dtype: torch.dtype, quantized: str | None, lengths: tuple[int, ...], calls: list[str]
) -> None:
    model = build(sizes, dtype, quantized)
    twin, state, (x, bounds) = in_float64(model), remembered(model, len(lengths)), row(model, *lengths)
    calls.clear()
    hidden, after = model(x, bounds, state, return_state=True)
    assert calls == ["forward"]
    expected, end = twin(x.double(), bounds, wide(state), return_state=True)
    assert_close(hidden, expected)
    assert_close(model.logits(hidden), twin.logits(expected))
    for name in end:
        loose = after[name].to(dtype)  # the recurrence is float32, what it reads is not
        assert_close(loose, end[name])


@pytest.mark.parametrize(("dtype", "quantized"), KINDS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("sequences", [1, 3, 8, 9])
@torch.no_grad()
def test_a_step_equals_the_modules(
    sizes: dict[str, int], dtype: torch.dtype, quantized: str | None, sequences: int, calls: list[str]
) -> None:
    model = build(sizes, dtype, quantized)
    twin, state, (x, _) = in_float64(model), remembered(model, sequences), row(model, sequences)
    before, calls[:] = {name: tensor.clone() for name, tensor in state.items()}, []
    hidden, after = model.step(x, state)
    assert calls == (["step"] if sequences <= native.MOST_SEQUENCES else [])
    expected, end = twin.step(x.double(), wide(state))
    assert_close(hidden, expected)
    for name in end:
        assert_close(after[name].to(dtype), end[name])
        assert torch.equal(state[name], before[name])


@torch.no_grad()
def test_likelihood_does_not_drift_over_two_thousand_tokens() -> None:
    model = build(SIZES[0], torch.float32)
    twin = in_float64(model)
    tokens = torch.randint(0, VOCAB, (2049,), generator=torch.Generator().manual_seed(4))
    likelihoods = []
    for which in (model, twin):
        hidden, _ = which(which.embed(tokens[:-1]), torch.tensor([0, 2048]))
        likelihoods.append(-nn.functional.cross_entropy(which.logits(hidden).double(), tokens[1:], reduction="none"))
    assert (likelihoods[0] - likelihoods[1]).abs().max() <= 1e-4


@torch.no_grad()
def test_weights_that_move_or_change_are_seen() -> None:
    model = build(SIZES[0], torch.float32)
    state, (x, _) = remembered(model, 1), row(model, 1)

    def assert_right() -> None:
        assert_close(model.step(x, state)[0], in_float64(model).step(x.double(), wide(state))[0])

    assert_right()
    model.blocks[1].att.key.weight.mul_(-2)  # in place
    assert_right()
    model.blocks[1].ffn.value.weight.data = model.blocks[1].ffn.value.weight.data.clone().neg()  # elsewhere
    assert_right()
    model.blocks[0].ln1.bias = nn.Parameter(torch.ones(128))  # another one
    assert_right()


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@torch.no_grad()
def test_modules_that_are_not_plain_are_called(calls: list[str]) -> None:
    model = build(SIZES[0], torch.float32)
    state, (x, bounds) = remembered(model, 1), row(model, 1)
    hidden, _ = model.step(x, state)
    calls.clear()
    plain = model.blocks[2].att.output
    handle = plain.register_forward_hook(lambda module, given, out: out * 2)
    hooked, _ = model.step(x, state)
    handle.remove()
    model.blocks[2].att.output = Doubled(128, 128, bias=False)
    model.blocks[2].att.output.weight = plain.weight
    replaced, _ = model.step(x, state)
    model(x, bounds)
    assert not calls
    torch.testing.assert_close(hooked, replaced)
    assert not torch.allclose(hooked, hidden, atol=1e-3)


def test_what_needs_gradients_or_trains_uses_the_modules(calls: list[str]) -> None:
    model = build(SIZES[0], torch.float32)
    x, bounds = row(model, 6)
    model(x, bounds)[0].sum().backward()
    assert model.blocks[0].att.key.weight.grad is not None
    model.train()
    with torch.no_grad():
        model(x, bounds)
        with torch.autocast("cpu", torch.bfloat16):
            model.eval()(x, bounds)
    assert not calls


@torch.no_grad()
def test_a_block_whose_forward_was_replaced_is_called(calls: list[str]) -> None:
    model = build(SIZES[0], torch.float32)
    x, bounds = row(model, 6)
    plain, _ = model(x, bounds)
    forward, asked = model.blocks[1].forward, []
    model.blocks[1].forward = lambda *given: asked.append("block") or forward(*given)
    torch.testing.assert_close(model(x, bounds)[0], plain, rtol=1e-4, atol=1e-4)
    assert calls == ["forward"] and asked == ["block"]


@torch.no_grad()
def test_reading_rows_leaves_weights_where_and_as_they_lie_and_stepping_computes_with_them(calls: list[str]) -> None:
    """A model may be read in the middle of its training, whose arithmetic and checkpoints depend on the layout."""
    model = build(SIZES[0], torch.float32)
    state, (x, bounds) = remembered(model, 1), row(model, 6)
    before = {name: (p.data_ptr(), p.stride()) for name, p in model.named_parameters()}
    model(x, bounds)
    assert {name: (p.data_ptr(), p.stride()) for name, p in model.named_parameters()} == before
    for _ in range(2):
        assert_close(model.step(x[:1], state)[0], in_float64(model).step(x[:1].double(), wide(state))[0])
        assert_close(model(x, bounds)[0], in_float64(model)(x.double(), bounds)[0])
    assert calls == ["forward", "forward", "step", "forward", "step", "forward"]


def test_a_model_trains_saves_and_is_copied_after_it_was_used() -> None:
    model = build(SIZES[0], torch.float32)
    x, bounds = row(model, 4)
    with torch.inference_mode():
        model.step(x, model.init_state(4))
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = copy.deepcopy(model)
    fresh = build(SIZES[1] | {"layers": 1}, torch.float32)
    assert fresh is not twin
    model.load_state_dict(saved)
    model.train()(x, bounds)[0].sum().backward()
    assert model.blocks[0].ffn.value.weight.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(twin(x, bounds)[0], in_float64(model)(x.double(), bounds)[0].float())


def test_a_model_that_was_used_can_be_forgotten() -> None:
    model = build(SIZES[0], torch.float32)
    with torch.no_grad():
        model.step(row(model, 1)[0], model.init_state(1))
    gone = weakref.ref(model.blocks[0])
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("wrong", ["int4", "INT8", ""])
def test_an_unknown_rounding_is_named(wrong: str) -> None:
    with pytest.raises(AuroraError, match=r"quantize .* is unknown.*int8"):
        quantize(build(SIZES[0], torch.float32), wrong)


def test_memory_of_matrices_shrinks_to_a_quarter() -> None:
    model = build(SIZES[0], torch.float32)
    matrices = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    before = sum(model.get_parameter(name).nbytes for name in matrices)
    quantize(model, "int8")
    assert sum(model.get_buffer(name).nbytes for name in matrices) * 4 == before
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
