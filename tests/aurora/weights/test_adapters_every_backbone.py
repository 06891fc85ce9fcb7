"""LoRA and state tuning on every registered backbone, in float64: no backbone may read past an adapter."""

import copy

import pytest
import torch

from aurora.registry import BACKBONE
from aurora.testing.backbone import LENGTHS, VOCAB, bounds, build, row
from aurora.types import map_state
from aurora.weights.adapters import find_targets
from aurora.weights.lora import add_lora, lora_layers, merge_lora

SIZES = {"hidden_size": 64, "layers": 2, "head_size": 32}
TOLERANCE = {"hf": {"rtol": 1e-3, "atol": 1e-4}, "transformer": {"rtol": 1e-3, "atol": 1e-4}}


@pytest.fixture(scope="module", params=BACKBONE.known())
def plain(request):
    return build({"name": request.param, **SIZES})


@pytest.fixture
def tolerance(plain):
    return TOLERANCE.get(type(plain).__module__.rpartition(".")[2], {})


def read(backbone):
    """Everything that a backbone computes, from embeddings to logits, in every way."""
    tokens = torch.arange(sum(LENGTHS)) % VOCAB
    x = row(backbone) + backbone.embed(tokens)
    hidden, state = backbone(x, bounds(*LENGTHS), return_state=True)
    last, _ = backbone.prefill(x, bounds(*LENGTHS))
    stepped, after = backbone.step(x[: len(LENGTHS)], state)
    return {"hidden": hidden, "logits": backbone.logits(hidden), "prefill": last, "step": stepped,
            **{f"state {name}": tensor for name, tensor in after.items()}}


def assert_close(actual, expected, tolerance):
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], **tolerance, msg=lambda text, n=name: f"{n}: {text}")


def with_lora(plain, *, silent):
    backbone = copy.deepcopy(plain)
    everything = find_targets("t", backbone, r".*")
    torch.manual_seed(1)
    add_lora(backbone, everything, rank=2, alpha=3.0)
    if not silent:
        for layer in lora_layers(backbone).values():
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    return backbone


@pytest.mark.slow
@torch.no_grad()
def test_a_new_lora_changes_nothing(plain, tolerance):
    assert_close(read(with_lora(plain, silent=True)), read(plain), tolerance)


@pytest.mark.slow
@torch.no_grad()
def test_a_merged_lora_equals_an_unmerged_one_on_every_linear_layer(plain, tolerance):
    backbone = with_lora(plain, silent=False)
    unmerged = read(backbone)
    merge_lora(backbone)
    assert backbone.state_dict().keys() == plain.state_dict().keys() and not lora_layers(backbone)
    assert_close(read(backbone), unmerged, tolerance)
    difference = unmerged["logits"] - read(plain)["logits"]
    assert difference.abs().max() > 1e-3  # the LoRA matters


@pytest.mark.slow
def test_the_gradients_of_a_lora_are_those_of_the_merged_weights(plain, tolerance):
    backbone = with_lora(plain, silent=False)
    merged = copy.deepcopy(backbone)
    merge_lora(merged)
    merged.requires_grad_(True)
    for model in (backbone, merged):
        hidden, _ = model(row(model), bounds(*LENGTHS))
        model.logits(hidden).square().sum().backward()
    for name, layer in lora_layers(backbone).items():
        gradient, scale = merged.get_submodule(name).weight.grad, layer.scaling["default"]
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        near = {**tolerance, "atol": 1e-5 * float(gradient.abs().max()), "rtol": 1e-5} | tolerance
        torch.testing.assert_close(b.grad, scale * gradient @ a.T, **near)
        torch.testing.assert_close(a.grad, scale * b.T @ gradient, **near)


def tuned(plain, names=None):
    if not plain.constant_state:
        pytest.skip("its memory grows with what is read")
    backbone = copy.deepcopy(plain)
    backbone.tune_state("t", names)
    return backbone


def randomise(backbone):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in backbone.initial_state.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


@torch.no_grad()
def test_a_new_initial_state_changes_nothing(plain, tolerance):
    assert_close(read(tuned(plain)), read(plain), tolerance)


@torch.no_grad()
def test_every_sequence_without_a_state_starts_from_the_tuned_one(plain, tolerance):
    backbone = tuned(plain)
    randomise(backbone)
    start = backbone.init_state(len(LENGTHS))
    x = row(backbone)
    hidden, state = backbone(x, bounds(*LENGTHS), return_state=True)
    expected, after = plain(x, bounds(*LENGTHS), start, return_state=True)
    last, _ = backbone.prefill(x, bounds(*LENGTHS))
    untuned, _ = plain(x, bounds(*LENGTHS))
    assert_close({"hidden": hidden, "last": last, **state},
                 {"hidden": expected, "last": expected[bounds(*LENGTHS)[1:] - 1], **after}, tolerance)
    assert (hidden - untuned).abs().max() > 1e-3  # the state matters


@torch.no_grad()
def test_a_given_state_is_not_replaced(plain, tolerance):
    backbone = tuned(plain)
    randomise(backbone)
    _, state = plain(row(plain), bounds(*LENGTHS), return_state=True)
    given, _ = backbone(row(plain), bounds(*LENGTHS), state)
    assert_close({"hidden": given}, {"hidden": plain(row(plain), bounds(*LENGTHS), state)[0]}, tolerance)


def test_the_gradient_of_the_initial_state_sums_over_the_sequences(plain, tolerance):
    backbone = tuned(plain)
    randomise(backbone)
    start = map_state(lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point()),
                      backbone.init_state(len(LENGTHS)))
    backbone(row(backbone), bounds(*LENGTHS))[0].square().sum().backward()
    plain(row(plain), bounds(*LENGTHS), start)[0].square().sum().backward()
    for name, parameter in backbone.initial_state.named_parameters():
        expected = start[name].grad.sum(1, keepdim=True)
        assert expected.abs().max() > 0
        torch.testing.assert_close(parameter.grad, expected, **tolerance)
    plain.zero_grad()


def test_a_tuned_state_is_saved_with_the_weights_and_read_back(plain, tmp_path):
    backbone = tuned(plain)
    randomise(backbone)
    backbone.save_base(str(tmp_path / "tuned.safetensors"))
    again = copy.deepcopy(plain)
    again.load_base(str(tmp_path / "tuned.safetensors"))
    for name, parameter in backbone.initial_state.named_parameters():
        found = dict(again.initial_state.named_parameters())[name]
        torch.testing.assert_close(found, parameter, check_dtype=False)
    again.load_base(str(tmp_path / "tuned.safetensors"))  # over a state that is there


def test_what_is_read_into_a_state_does_not_reach_the_parameters(plain):
    backbone = tuned(plain)
    state = backbone.init_state(2)
    assert not any(tensor.requires_grad for tensor in state.values())
    before = {name: parameter.clone() for name, parameter in backbone.initial_state.named_parameters()}
    for name in before:
        state[name].add_(1)
    for name, parameter in backbone.initial_state.named_parameters():
        assert torch.equal(parameter, before[name])


@torch.no_grad()
def test_every_floating_state_can_be_tuned(plain, tolerance):
    if not plain.constant_state:
        pytest.skip("its memory grows with what is read")
    names = [name for name, tensor in plain.init_state(1).items() if tensor.is_floating_point()]
    backbone = tuned(plain, names)
    randomise(backbone)
    hidden, _ = backbone(row(backbone), bounds(*LENGTHS))
    expected, _ = plain(row(plain), bounds(*LENGTHS), backbone.init_state(len(LENGTHS)))
    assert_close({"hidden": hidden}, {"hidden": expected}, tolerance)


def test_fast_forms_read_what_was_merged_and_tuned(plain):
    """In float32, which kernels of their own serve, and after the weights were read once as they were before."""
    backbone = with_lora(plain, silent=False)
    fast = copy.deepcopy(plain).float().eval()
    if plain.constant_state:
        for model in (backbone, fast):
            model.tune_state("t")
    tokens = torch.arange(sum(LENGTHS)) % VOCAB

    def logits(model):
        hidden, state = model.prefill(model.embed(tokens), bounds(*LENGTHS))
        stepped, _ = model.step(model.embed(tokens[: len(LENGTHS)]), state)
        return torch.cat([model.logits(hidden), model.logits(stepped)]).double()

    with torch.inference_mode():
        before = logits(fast)
    with torch.no_grad():
        if plain.constant_state:
            randomise(backbone)
            randomise(fast)
        wanted = logits(backbone)
        add_lora(fast, find_targets("t", fast, r".*"), rank=2, alpha=3.0)
        for name, layer in lora_layers(fast).items():
            for key, parameter in layer.named_parameters():
                if "lora_" in key:
                    parameter.copy_(backbone.get_parameter(f"{name}.{key}"))
        merge_lora(fast)
    with torch.inference_mode():
        merged = logits(fast)
    near = 1e-2 * float(wanted.abs().max())
    assert (merged - wanted).abs().max() < near < (before - wanted).abs().max()


def test_the_gradient_of_the_initial_state_is_the_same_in_float32(plain):
    backbone = tuned(plain)
    randomise(backbone)
    single = copy.deepcopy(backbone).float()
    for model in (backbone, single):
        model.requires_grad_(False)
        model.initial_state.requires_grad_(True)
        model(row(plain).to(model.embed(torch.tensor([0])).dtype), bounds(*LENGTHS))[0].square().sum().backward()
    for name, parameter in backbone.initial_state.named_parameters():
        found = dict(single.initial_state.named_parameters())[name].grad
        assert (found - parameter.grad).abs().max() < 1e-3 * parameter.grad.abs().max()
