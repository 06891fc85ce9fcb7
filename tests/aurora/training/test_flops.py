import pytest
import torch
from aurora.testing.training import tiny_config
from torch.utils.flop_counter import FlopCounterMode

from aurora.assemble import build_model
from aurora.bench import language, towers
from aurora.training.budget import forward_flops, named_peak, peak_flops, training_flops
from aurora.training.optim import freeze_untrained


@pytest.fixture(scope="module")
def full():
    """The model of the paper, without memory."""
    config = {**tiny_config("run"), "vision": {"name": "siglip", "feature_layer": -1},
              "tokenizer": {"name": "rwkv_world"},
              "backbone": {"name": "rwkv6", "hidden_size": 2048, "layers": 24, "head_size": 64}}
    with torch.device("meta"):
        return build_model(ModelConfig.parse(config))


def test_the_full_model_takes_what_its_sizes_say(full):
    each = forward_flops(full, 1.0)
    assert each.vision == pytest.approx(towers.cost(towers.FULL, 1, "float32").flops, rel=1e-3)
    merged = towers.cost(towers.FULL, 1, "float32", towers.merged_tokens(towers.FULL, 0.1)).flops
    assert forward_flops(full, 0.1).vision == pytest.approx(merged, rel=0.015)
    # reading a prompt computes the head once
    whole = language.cost(language.FULL, "float32", 512).flops
    assert 512 * each.backbone + each.head == pytest.approx(whole, rel=0.02)


def test_products_of_encoder_and_connector_are_those_that_torch_counts():
    model = build_model(ModelConfig.parse(tiny_config("run")))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.connector(model.vision(torch.zeros(1, 3, 16, 16), merge=model.merge, sort=model.sort, keep=4))
    each = forward_flops(model, 1.0)
    attention = 4 * 4**2 * model.vision.width * model.vision.depth  # our kernel, which torch does not know
    assert each.vision + each.connector == counter.get_total_flops() + attention


@pytest.mark.parametrize(("trained", "passes"), [
    (["connector"], (1, 3, 2)), (["vision", "connector"], (3, 3, 2)), (["vision", "connector", "backbone"], (3, 3, 3)),
    (["backbone"], (1, 1, 3)),
])
def test_only_what_gradients_pass_through_is_computed_backward(trained, passes):
    model = build_model(ModelConfig.parse(tiny_config("run")))
    freeze_untrained(model, trained)
    each = forward_flops(model, 0.5)
    seen = passes[0] * each.vision + passes[1] * each.connector
    read = passes[2] * (7 * each.backbone + 2 * each.head)
    assert training_flops(model, each, frames=3, positions=7, targets=2) == 3 * seen + read


def test_known_devices_have_a_peak_and_others_none():
    assert named_peak("NVIDIA H100 80GB HBM3") == 989e12 and named_peak("NVIDIA H100 PCIe") == 756e12
    assert named_peak("Tesla V100-PCIE-16GB") == 112e12 and named_peak("Tesla V100-SXM2-32GB") == 125e12
    assert named_peak("NVIDIA L40S") == 362e12 and named_peak("A card of tomorrow") is None
    assert peak_flops(torch.device("cpu")) is None
