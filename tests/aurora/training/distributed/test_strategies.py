import copy
from collections import Counter
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from aurora.errors import AuroraError
from aurora.recipe import TrainerOptions
from aurora.training.distributed.strategies import (
    FSDP2,
    blocks,
    build_strategy,
    checkpoint_blocks,
    compile_blocks,
    shard,
)
from aurora.training.optim import build_optimizer, set_trainable
from aurora.weights.model_folder import load_model
from tools.tiny_training import MadeRows, curve, tiny_config, tiny_model, tiny_recipe, train_together

STEPS = 3


def row(number=0):
    model = tiny_model()
    return MadeRows(seed=3, layout=None, tokenizer=model.tokenizer, prompt=None).row(number)


class Computed(TorchDispatchMode):
    """Counts the operators that are computed."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[operator._schema.name] += 1
        return operator(*args, **(kwargs or {}))


def learned(model, batch):
    """The loss, and every gradient by name."""
    loss = model(batch).total
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- several processes -----------------------------------------------------------------------------------------


def case(run, processes, stops_at=None, **options):
    config = tiny_config(run, steps=STEPS, rows_per_step=4)
    config |= {"stage": "first"}
    config["stages"]["first"] |= {"trained": ["vision", "connector", "backbone"], "weight_decay": 0.1}
    config["trainer"] |= {"accelerator": "cpu", "progress": "none", "checkpoint_every": 1000, **options}
    return {"config": config, "processes": processes, "stops_at": stops_at}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process; four as two copies of two shards, whose checkpoint two go on from; two shards that go on from their
    own; one from whose checkpoint two copies go on; two that share every row, with shards and with copies,
    and two copies of two that do; two that learn in pieces."""
    folder = tmp_path_factory.mktemp("runs")
    cases = [case(folder / "one", 1),
             case(folder / "moved", 4, stops_at=1, strategy="fsdp_hybrid", shard_size=2),
             case(folder / "moved", 2, strategy="fsdp", defer_gradient_sync=True, reshard_after_forward=False),
             case(folder / "sharded", 2, stops_at=1, strategy="fsdp", activation_checkpointing="selective"),
             case(folder / "sharded", 2, strategy="fsdp", defer_gradient_sync=True),
             case(folder / "copied", 1, stops_at=1),
             case(folder / "copied", 2, strategy="ddp", activation_checkpointing="block"),
             case(folder / "together", 2, strategy="fsdp", sequence_parallel=2),
             case(folder / "in-slices", 2, strategy="ddp", sequence_parallel=2, measure_every=1),
             case(folder / "in-copies", 4, strategy="fsdp_hybrid", shard_size=2, sequence_parallel=2, measure_every=1),
             case(folder / "pieces", 2, strategy="ddp", backprop_tokens=5)]
    train_together(cases, folder)
    assert all((folder / name / "first/checkpoints/step-1").is_dir() for name in ("moved", "sharded", "copied"))
    return folder


@pytest.mark.parametrize("found", ["moved", "sharded", "copied", "together", "in-slices", "in-copies"])
def test_processes_that_shard_copy_or_share_rows_learn_what_one_does(found, runs):
    for (step, loss), (same_step, expected) in zip(curve(runs / found, "first"), curve(runs / "one", "first"),
                                                   strict=True):
        assert step == same_step and float(loss) == pytest.approx(float(expected), rel=1e-5)
    right = load_model(runs / "one" / "first" / "model")[0].state_dict()
    for name, tensor in load_model(runs / found / "first" / "model")[0].state_dict().items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-4, atol=1e-5)


def test_rows_learned_in_pieces_have_the_loss_of_whole_rows_and_a_truncated_gradient(runs):
    whole, pieces = curve(runs / "one", "first"), curve(runs / "pieces", "first")
    assert float(pieces[0][1]) == pytest.approx(float(whole[0][1]), rel=1e-6)
    assert [loss for _, loss in pieces[1:]] != [loss for _, loss in whole[1:]]


@pytest.fixture
def two_ranks():
    """A mesh of two processes of which one is there: collectives are called and do nothing."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view:UserWarning")
@pytest.mark.parametrize(("trained", "reduced"), [
    (["connector"], 1),
    (["vision", "connector"], 2 + 1 + 1),  # blocks, connector, and what the root holds of the encoder
    (["vision", "connector", "backbone"], 2 + 1 + 2 + 1),
])
def test_gradients_are_reduced_and_remembered_only_where_something_learns(trained, reduced, two_ranks):
    recipe = tiny_recipe(trained=trained)
    model = tiny_model()
    set_trainable(model, recipe)
    shard(model, two_ranks, TrainerOptions(strategy="fsdp"))
    with Computed() as computed:
        model(row()).total.backward()
    assert sum(count for name, count in computed.counts.items() if "reduce_scatter" in name) == reduced
    optimizer = build_optimizer("first", model, recipe, fused=False)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(
        len([*getattr(model, slot).parameters()]) for slot in trained)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view:UserWarning")
def test_a_tuned_state_is_gathered_as_often_whether_or_not_a_row_goes_on(two_ranks):
    model = tiny_model()
    model.backbone.tune_state("state")
    shard(model, two_ranks, TrainerOptions(strategy="fsdp"))
    gathers = []
    for continues in (False, False, True):  # the root stays gathered after the first
        with torch.no_grad(), Computed() as computed:
            model(row()._replace(continues=continues))
        gathers.append(sum(count for name, count in computed.counts.items() if "gather" in name))
    assert gathers[1] == gathers[2] > 0


# ---- blocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selective", [False, True])
def test_recomputed_blocks_learn_the_same(selective):
    model = tiny_model()
    changed = copy.deepcopy(model)
    checkpoint_blocks(changed, selective=selective)
    (loss, gradients), (same, others) = learned(model, row()), learned(changed, row())
    torch.testing.assert_close(loss, same)
    torch.testing.assert_close(others, gradients)


@pytest.mark.parametrize("operator", ["aten::mm", "aten::bmm", "aurora::wkv6_cpu"])
def test_selective_recomputing_computes_no_product_and_no_kernel_twice(operator):
    counts = []
    for change in (lambda model: None, partial(checkpoint_blocks, selective=True), checkpoint_blocks):
        model = tiny_model()
        change(model)
        x = torch.randn(6, 16, requires_grad=True)
        with Computed() as computed:
            model.backbone(x, torch.tensor([0, 6]))[0].sum().backward()
        counts.append(computed.counts[operator])
    plain, selective, whole = counts
    if operator.startswith("aurora") and not plain:
        pytest.skip("the compiled kernel is not available here")
    assert plain == selective < whole


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_compiled_blocks_learn_the_same_from_rows_of_any_length():
    config = tiny_config("run")
    config["vision"]["layers"], config["backbone"]["layers"] = 2, 1
    model = tiny_model(vision=config["vision"], backbone=config["backbone"])
    changed = copy.deepcopy(model)
    compile_blocks(changed, backend="eager")
    for number in range(2):
        (loss, gradients), (same, others) = learned(model, row(number)), learned(changed, row(number))
        torch.testing.assert_close(loss, same)
        torch.testing.assert_close(others, gradients)


def test_every_block_of_encoder_and_backbone_is_a_unit():
    model = tiny_model()
    kinds = [type(block) for block in blocks(model)]
    assert kinds == [model.vision.block_class] * 2 + [model.backbone.block_class] * 2


# ---- options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    ({"strategy": "fsdp_hybrid", "shard_size": 3, "devices": 4}, "shard_size is 3, which does not divide the 4"),
    ({"strategy": "fsdp", "sequence_parallel": 3, "devices": 4}, "sequence_parallel is 3, which does not divide the 4"),
])
def test_processes_that_cannot_be_divided_so_are_refused(options, message):
    with pytest.raises(AuroraError, match=message):
        build_strategy(TrainerOptions(**options))


def test_hybrid_sharding_has_one_copy_per_node():
    strategy = build_strategy(TrainerOptions(strategy="fsdp_hybrid", devices=4), nodes=3)
    assert isinstance(strategy, FSDP2) and (strategy.shard_size, strategy.copies) == (4, 3)
