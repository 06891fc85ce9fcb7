import pytest
import torch
from aurora.testing.training import tiny_config

from aurora.assemble import build_model
from aurora.config import ModelConfig
from aurora.errors import AuroraError
from aurora.recipe import TrainerOptions
from aurora.training.budget import Hardware, Memory, Reads, cost, memory, require_fit
from aurora.training.optim import freeze_untrained

EVERYTHING = ["vision", "connector", "backbone"]


def small(backbone="rwkv6"):
    return build_model(ModelConfig.parse({
        **tiny_config("run"),
        "vision": {"name": "siglip", "image_size": 64, "patch_size": 8, "width": 128, "layers": 3, "heads": 2,
                   "mlp_width": 512},
        "backbone": {"name": backbone, "hidden_size": 128, "layers": 3, "head_size": 64}}))


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


def told(model, trained=EVERYTHING, **options):
    freeze_untrained(model, trained)
    return memory(model, TrainerOptions(**options), keep_ratio=0.5, row_tokens=512, row_frames=4, devices=4, per_node=2)


@pytest.mark.parametrize("backbone", ["rwkv6", "rwkv7"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_activations_are_about_those_that_autograd_keeps(backbone, precision):
    model = small(backbone)
    freeze_untrained(model, EVERYTHING)
    narrow = torch.float16 if precision == "16-mixed" else torch.bfloat16
    with torch.autocast("cpu", narrow, enabled=precision != "32-true", cache_enabled=False):
        found = kept(lambda: model.vision(torch.zeros(4, 3, 64, 64), merge=model.merge, sort=model.sort,
                                          keep=32).features)
        found += kept(lambda: model.backbone(torch.zeros(512, 128, requires_grad=True), torch.tensor([0, 512]))[0])
    logits = 3 * 64 * 2**20
    assert told(model, precision=precision).activations - logits == pytest.approx(found, rel=0.2)


def test_shards_divide_weights_gradients_and_moments():
    model = small()
    alone, sharded = told(model), told(model, strategy="fsdp")
    assert alone.weights == sum(p.nbytes for p in model.parameters()) == alone.gradients == alone.optimizer / 2
    assert [4 * value for value in sharded[:3]] == list(alone[:3])
    assert alone.gathered == 0 < sharded.gathered


def test_what_is_frozen_or_computed_again_takes_less():
    model = small()
    everything, connector = told(model), told(model, ["connector"])
    assert connector.gradients < 0.05 * everything.gradients and connector.activations < everything.activations
    logits = 3 * 64 * 2**20
    assert told(model, activation_checkpointing="block").activations - logits < 0.5 * (everything.activations - logits)


def test_hours_and_price_follow_from_arithmetic():
    model = small()
    freeze_untrained(model, EVERYTHING)
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
    needed = Memory(4e9, 4e9, 8e9, 0, 10e9, 1e9)
    require_fit(needed, 30e9, "vision")
    with pytest.raises(AuroraError, match=r"'vision' needs about 25\.1 GiB .*activations 9\.3.*which has 22\.4.*fsdp"):
        require_fit(needed, 24e9, "vision")
