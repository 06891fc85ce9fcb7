import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from aurora.errors import AuroraError
from aurora.recipe import TrainerOptions
from aurora.training.budget import (
    Arithmetic,
    Hardware,
    Memory,
    Reads,
    cost,
    memory,
    named_peak,
    overrides_that_fit,
    peak_flops,
    require_fit,
)
from aurora.training.optim import set_trainable
from tools.bench import language, towers
from tools.tiny_training import tiny_model, tiny_recipe

EVERYTHING = ("vision", "connector", "backbone")


def learning(model, trained=EVERYTHING):
    set_trainable(model, tiny_recipe(trained=trained))
    return model


# ---- arithmetic ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full():
    """The model of the paper, without memory."""
    with torch.device("meta"):
        return tiny_model(vision={"name": "siglip", "feature_layer": -1}, tokenizer={"name": "rwkv_world"},
                          backbone={"name": "rwkv6", "hidden_size": 2048, "layers": 24, "head_size": 64})


def test_the_full_model_takes_what_its_sizes_say(full):
    each = Arithmetic.of(full, 1.0)
    assert each.vision == pytest.approx(towers.cost(towers.FULL, 1, "float32").flops, rel=1e-3)
    merged = towers.cost(towers.FULL, 1, "float32", towers.merged_tokens(towers.FULL, 0.1)).flops
    assert Arithmetic.of(full, 0.1).vision == pytest.approx(merged, rel=0.015)
    # reading a prompt computes the head once
    whole = language.cost(language.FULL, "float32", 512).flops
    assert 512 * each.backbone + each.head == pytest.approx(whole, rel=0.02)


def test_products_of_encoder_and_connector_are_those_that_torch_counts():
    model = tiny_model()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.connector(model.vision(torch.zeros(1, 3, 16, 16), merge=model.merge, sort=model.sort, keep=4))
    each = Arithmetic.of(model, 1.0)
    attention = 4 * 4**2 * model.vision.width * model.vision.depth  # our kernel, which torch does not know
    assert each.vision + each.connector == counter.get_total_flops() + attention


@pytest.mark.parametrize(("trained", "passes"), [
    (["connector"], (1, 3, 2)), (["vision", "connector"], (3, 3, 2)), (["vision", "connector", "backbone"], (3, 3, 3)),
    (["backbone"], (1, 1, 3)),
])
def test_only_what_gradients_pass_through_is_computed_backward(trained, passes):
    model = learning(tiny_model(), trained)
    each = Arithmetic.of(model, 0.5)
    seen = passes[0] * each.vision + passes[1] * each.connector
    read = passes[2] * (7 * each.backbone + 2 * each.head)
    assert each.training(model, frames=3, positions=7, targets=2) == 3 * seen + read


def test_known_devices_have_a_peak_and_others_none():
    assert named_peak("NVIDIA H100 80GB HBM3") == 989e12 and named_peak("NVIDIA H100 PCIe") == 756e12
    assert named_peak("Tesla V100-PCIE-16GB") == 112e12 and named_peak("Tesla V100-SXM2-32GB") == 125e12
    assert named_peak("NVIDIA L40S") == 362e12 and named_peak("A card of tomorrow") is None
    assert peak_flops(torch.device("cpu")) is None and peak_flops(torch.device("cpu"), 2.0) == 2e12


# ---- memory, hours, cost ---------------------------------------------------------------------------------------


def small(backbone="rwkv6"):
    return tiny_model(vision={"name": "siglip", "image_size": 64, "patch_size": 8, "width": 128, "layers": 3,
                              "heads": 2, "mlp_width": 512},
                      backbone={"name": backbone, "hidden_size": 128, "layers": 3, "head_size": 64})


def kept(work):
    """Bytes that autograd keeps for the backward pass."""
    storages = {}

    def pack(tensor):
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    assert result is not None
    return sum(storages.values())


def needed(model, trained=EVERYTHING, **options):
    return memory(learning(model, trained), TrainerOptions(**options), keep_ratio=0.5, row_tokens=512, row_frames=4,
                  devices=4, per_node=2)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["rwkv6", "rwkv7"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_activations_are_about_those_that_autograd_keeps(backbone, precision):
    model = learning(small(backbone))
    narrow = torch.float16 if precision == "16-mixed" else torch.bfloat16
    with torch.autocast("cpu", narrow, enabled=precision != "32-true", cache_enabled=False):
        found = kept(lambda: model.vision(torch.zeros(4, 3, 64, 64), merge=model.merge, sort=model.sort,
                                          keep=32).features)
        found += kept(lambda: model.backbone(torch.zeros(512, 128, requires_grad=True), torch.tensor([0, 512]))[0])
    logits = 3 * 64 * 2**20
    assert needed(model, precision=precision).activations - logits == pytest.approx(found, rel=0.2)


def test_shards_divide_weights_gradients_and_moments():
    model = small()
    alone, sharded = needed(model), needed(model, strategy="fsdp")
    assert alone.weights == sum(p.nbytes for p in model.parameters()) == alone.gradients == alone.optimizer / 2
    assert [4 * value for value in sharded[:3]] == list(alone[:3])
    assert alone.gathered == 0 < sharded.gathered


def test_what_is_frozen_or_computed_again_takes_less():
    model = small()
    everything, connector = needed(model), needed(model, ["connector"])
    assert connector.gradients < 0.05 * everything.gradients and connector.activations < everything.activations
    logits = 3 * 64 * 2**20
    recomputed = needed(model, activation_checkpointing="block")
    assert recomputed.activations - logits < 0.5 * (everything.activations - logits)


def test_hours_and_price_follow_from_arithmetic():
    model = learning(small())
    hardware = Hardware(devices=2, memory=1e9, peak=1e9, used=0.5, price=3.0)
    one, two, nothing = Reads(10, 1000, 100), Reads(20, 2000, 200), Reads(0, 0, 0)
    found = cost(model, TrainerOptions(), hardware, keep_ratio=0.5, learned=one, validated=nothing)
    assert found.hours == pytest.approx(found.flops / 1e9 / 3600) and found.price == pytest.approx(6 * found.hours)
    twice = cost(model, TrainerOptions(), hardware, keep_ratio=0.5, learned=two, validated=nothing)
    assert twice.flops == pytest.approx(2 * found.flops)
    # everything learns: a third of the arithmetic is the forward pass
    checked = cost(model, TrainerOptions(), hardware, keep_ratio=0.5, learned=one, validated=one)
    assert checked.flops == pytest.approx(found.flops * 4 / 3)


def test_what_cannot_fit_is_refused_with_what_takes_the_room():
    too_much = Memory(4e9, 4e9, 8e9, 0, 10e9, 1e9)
    require_fit(too_much, 30e9, "vision")
    with pytest.raises(AuroraError, match=r"'vision' needs about 25\.1 GiB .*activations 9\.3.*which has 22\.4.*fsdp"):
        require_fit(too_much, 24e9, "vision")
    with pytest.raises(AuroraError, match=r"it fits with data\.row_tokens=2048; trainer"):
        require_fit(too_much, 24e9, "vision", ["data.row_tokens=2048"])


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
@pytest.mark.parametrize("share", [0.5, 0.2, 0.1, 0.05, 0.01])
def test_advice_is_something_that_can_be_set_or_none(accelerator: str, share: float) -> None:
    model, options = tiny_model(), TrainerOptions(accelerator=accelerator, strategy="ddp")
    set_trainable(model, tiny_recipe())
    given = {"keep_ratio": 0.5, "row_tokens": 512, "row_frames": 16, "devices": 8, "per_node": 8}
    advice = overrides_that_fit(model, options, share * memory(model, options, **given).total, **given)
    assert advice is None or advice
