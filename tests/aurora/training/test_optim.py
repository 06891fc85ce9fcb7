import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, SequentialLR

from aurora.errors import AuroraError
from aurora.training.callbacks.csv_logger import read_metrics
from aurora.training.muon import Muon
from aurora.training.optim import (
    build_optimizer,
    build_schedule,
    parameter_groups,
    set_trainable,
    warmup_cosine,
    warmup_steps,
)
from tools.tiny_training import MadeRows, curve, tiny_config, tiny_model, tiny_recipe, train

EVERYTHING = ("vision", "connector", "backbone")
LR = "torch.optim.lr_scheduler"


def built(model=None, **recipe):
    """The optimizer of a recipe and its model."""
    model = model or tiny_model()
    recipe = tiny_recipe(**{"trained": EVERYTHING, **recipe})
    set_trainable(model, recipe)
    return build_optimizer("first", model, recipe, fused=False), model


# ---- parameters ------------------------------------------------------------------------------------------------


def test_frozen_parts_take_no_gradient_and_are_in_evaluation_mode():
    model = tiny_model()
    set_trainable(model, tiny_recipe(trained=["connector"]))
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"connector"}
    assert (model.vision.training, model.connector.training, model.backbone.training) == (False, True, False)


def test_what_rwkvs_authors_decay_is_decayed_and_slots_have_their_own_rates():
    model = tiny_model()
    groups = parameter_groups(model, tiny_recipe("second", weight_decay=0.1, lr_scale={"vision": 0.5}))
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed = {name for name, parameter in model.named_parameters() if name.endswith(".weight") and parameter.dim() > 1}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {group["scale"] for group in groups} == {0.5, 1.0}
    for group in groups:
        assert {names[parameter] in decayed for parameter in group["params"]} == {group["weight_decay"] == 0.1}
    assert {"backbone.blocks.0.att.time_faaaa", "backbone.blocks.0.att.time_maa_w1"} < {*names.values()} - decayed
    assert {"backbone.emb.weight", "backbone.blocks.0.att.key.weight"} < decayed


def test_weight_decay_may_differ_by_slot():
    recipe = tiny_recipe("second", weight_decay={"vision": 0.1, "backbone": 0.2})
    assert {group["weight_decay"] for group in parameter_groups(tiny_model(), recipe)} == {0.0, 0.1, 0.2}


# ---- optimizer -------------------------------------------------------------------------------------------------


def test_without_a_choice_the_optimizer_is_adamw_with_the_betas_of_the_recipe():
    optimizer, _ = built(betas=[0.8, 0.9])
    assert type(optimizer) is torch.optim.AdamW
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}


@pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9}), ("Adafactor", {"d": 2.0}), ("NAdam", {})])
def test_any_class_of_torch_can_be_named(name, options):
    optimizer, model = built(optimizer={"_target_": f"torch.optim.{name}", **options}, lr_scale={"vision": 0.5})
    assert type(optimizer).__name__ == name
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for group in optimizer.param_groups:
        assert group["lr"] == 1e-2 * group["scale"] and options.items() <= group.items()


def test_muon_takes_the_matrices_of_hidden_layers_and_adamw_the_rest():
    optimizer, model = built(optimizer={"_target_": "torch.optim.Muon", "momentum": 0.8})
    muon, adamw = optimizer.parts
    assert (type(muon), type(adamw)) == (Muon, torch.optim.AdamW)
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_muon, by_adamw = ({names[p] for group in part.param_groups for p in group["params"]} for part in (muon, adamw))
    assert by_muon | by_adamw == set(names.values()) and not by_muon & by_adamw
    assert all(model.get_parameter(name).dim() == 2 and "emb" not in name and "head" not in name for name in by_muon)
    assert "backbone.blocks.0.att.key.weight" in by_muon and "connector.project.0.bias" in by_adamw
    assert {group["momentum"] for group in muon.param_groups} == {0.8}


def orthogonal(gradient):
    """The update of Muon (https://kellerjordan.github.io/posts/muon) by its definition in float64: the singular values
    go through its quintic polynomial five times."""
    u, values, v = torch.linalg.svd(gradient.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    return u @ values.diag() @ v


@pytest.mark.parametrize(("multiplies", "tolerance"), [(False, 1e-5), (True, 5e-2)])
@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_muon_computes_in_float32_where_bfloat16_is_slow(shape, multiplies, tolerance, monkeypatch):
    monkeypatch.setattr("aurora.training.muon.multiplies_bfloat16", lambda: multiplies)
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape)
    gradient = weight.grad.clone()
    optimizer = Muon([weight], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False)
    assert optimizer.step(lambda: weight.bfloat16().dtype) is torch.bfloat16  # of training, not of the update
    update = -weight.detach().double() / max(1, shape[0] / shape[1]) ** 0.5
    difference = (update - orthogonal(gradient)).abs().max()
    assert difference < tolerance and (difference > 1e-4) == multiplies
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], gradient)  # a copy was made orthogonal


def test_a_schedule_changes_the_rates_of_both_parts_of_muon():
    recipe = tiny_recipe(trained=EVERYTHING, optimizer={"_target_": "torch.optim.Muon"})
    optimizer, _ = built(optimizer={"_target_": "torch.optim.Muon"})
    build_schedule("first", optimizer, recipe, 10)
    assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {1e-2 * 1e-5}


@pytest.mark.parametrize(("optimizer", "message"), [
    ({"_target_": "torch.optim.AdamW", "lr": 1.0}, r"first\.optimizer\.lr: stages\.first\.peak_lr is the place"),
    ({"_target_": "torch.optim.SGD", "weight_decay": 0.1}, r"optimizer\.weight_decay: stages\.first\.weight_decay is"),
    ({"_target_": "torch.optim.LBFGS"}, r"stages\.first\.optimizer: LBFGS needs a closure"),
    ({"_target_": "torch.optim.SparseAdam"}, r"SparseAdam needs sparse gradients"),
    ({"_target_": "torch.optim.SGD", "momentun": 0.9}, r"optimizer: SGD: .*unexpected keyword argument 'momentun'"),
    ({"_target_": "torch.optim.SGD", "momentum": -1.0}, r"optimizer: SGD: Invalid momentum value: -1\.0"),
    ({"_target_": f"{LR}.OneCycleLR"}, r"optimizer: .*OneCycleLR is not a Optimizer"),
    ({"_target_": "torch.optim.Sgd"}, r"_target_ 'torch\.optim\.Sgd'"),
    ({"_target_": "os.system"}, r"_target_ 'os\.system' is not allowed"),
])
def test_an_optimizer_that_makes_no_sense_is_refused(optimizer, message):
    with pytest.raises(AuroraError, match=message):
        built(optimizer=optimizer)


def test_muon_needs_a_matrix():
    with pytest.raises(AuroraError, match="Muon: no matrix of a hidden layer is trained"):
        built(trained=[], adapters={"backbone": {"state": {}}}, optimizer={"_target_": "torch.optim.Muon"},
              model=with_state())


def with_state():
    model = tiny_model()
    model.backbone.tune_state("state")
    return model


# ---- schedule --------------------------------------------------------------------------------------------------

PAPER = {"warmup_ratio": 0.03, "start_factor": 1e-5}


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 1e-5), (15, 0.500005), (30, 1.0), (515, 0.5), (1000, 0.0), (2000, 0.0)],
)
def test_a_thousand_steps_of_the_paper(step, factor):
    assert math.isclose(warmup_cosine(step, total=1000, **PAPER), factor, abs_tol=1e-12)


def test_literal_factors_of_ten_steps():
    factors = [warmup_cosine(step, total=10, warmup_ratio=0.2, start_factor=0.0) for step in range(11)]
    assert factors == pytest.approx(
        [0.0, 0.5, 1.0, 0.96193977, 0.85355339, 0.69134172, 0.5, 0.30865828, 0.14644661, 0.03806023, 0.0])


def test_without_warmup_the_first_step_takes_the_peak_rate():
    assert warmup_cosine(0, total=10, warmup_ratio=0.0, start_factor=1e-5) == 1.0


@pytest.mark.parametrize(("total", "ratio", "steps"), [(1000, 0.03, 30), (10, 0.03, 1), (10, 0.0, 0), (50, 0.05, 2)])
def test_the_warmup_takes_its_share_of_the_steps_and_at_least_one(total, ratio, steps):
    assert warmup_steps(total, ratio) == steps


def scheduled(entry, total=10):
    optimizer, _ = built(lr_scale={"vision": 0.5})
    return build_schedule("first", optimizer, tiny_recipe(schedule=entry), total), optimizer


def rates(schedule, optimizer, steps):
    """Of the slots whose scale is 1, step by step."""
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"] / optimizer.param_groups[0]["scale"])
        optimizer.step()
        schedule.step()
    return found


def test_one_cycle_knows_the_steps_and_the_peak_rates_of_the_stage():
    schedule, optimizer = scheduled({"_target_": f"{LR}.OneCycleLR", "pct_start": 0.3})
    assert type(schedule) is OneCycleLR and schedule.total_steps == 10
    assert {group["max_lr"] / group["scale"] for group in optimizer.param_groups} == {1e-2}
    assert max(rates(schedule, optimizer, 10)) == pytest.approx(1e-2)


def test_cosine_annealing_ends_with_the_stage():
    schedule, optimizer = scheduled({"_target_": f"{LR}.CosineAnnealingLR"})
    assert type(schedule) is CosineAnnealingLR
    assert rates(schedule, optimizer, 11) == pytest.approx(
        [1e-2 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(11)])


def test_schedules_inside_of_a_schedule_are_built_for_the_same_optimizer():
    schedule, optimizer = scheduled({"_target_": f"{LR}.SequentialLR", "milestones": [2], "schedulers": [
        {"_target_": f"{LR}.LinearLR", "start_factor": 0.5, "total_iters": 2},
        {"_target_": f"{LR}.CosineAnnealingLR", "T_max": 8}]})
    assert type(schedule) is SequentialLR
    assert rates(schedule, optimizer, 4) == pytest.approx(
        [5e-3, 7.5e-3, 1e-2, 5e-3 * (1 + math.cos(math.pi / 8))])


def test_a_plateau_is_one_of_the_validation_loss():
    schedule, _ = scheduled({"_target_": f"{LR}.ReduceLROnPlateau", "patience": 0})
    assert type(schedule) is ReduceLROnPlateau and schedule.patience == 0


@pytest.mark.parametrize(("schedule", "message"), [
    ({"_target_": f"{LR}.OneCycleLR", "pct_start": 3}, r"stages\.first\.schedule: OneCycleLR: .*pct_start"),
    ({"_target_": f"{LR}.StepLR"}, r"schedule: StepLR: .*missing 1 required .*'step_size'"),
    ({"_target_": f"{LR}.CosineAnnealingLR", "T_mox": 3}, r"schedule: CosineAnnealingLR: .*'T_mox'"),
    ({"_target_": "torch.optim.SGD"}, r"schedule: torch\.optim\.SGD is not a LRScheduler"),
    ({"_target_": "torch.load"}, r"_target_ 'torch\.load' is not allowed"),
])
def test_a_schedule_that_makes_no_sense_is_refused(schedule, message):
    with pytest.raises(AuroraError, match=message):
        scheduled(schedule)


# ---- in a stage ------------------------------------------------------------------------------------------------

CHOICES = {
    "muon, cosine": {"optimizer": {"_target_": "torch.optim.Muon"},
                     "schedule": {"_target_": f"{LR}.CosineAnnealingLR"}},
    # changes momentum and betas as well
    "sgd, one cycle": {"optimizer": {"_target_": "torch.optim.SGD", "momentum": 0.9},
                       "schedule": {"_target_": f"{LR}.OneCycleLR"}},
    "adamw, one cycle": {"schedule": {"_target_": f"{LR}.OneCycleLR"}},
    "adafactor, sequence": {
        "optimizer": {"_target_": "torch.optim.Adafactor"},
        "schedule": {"_target_": f"{LR}.SequentialLR", "milestones": [2], "schedulers": [
            {"_target_": f"{LR}.LinearLR", "start_factor": 0.5, "total_iters": 2},
            {"_target_": f"{LR}.ExponentialLR", "gamma": 0.5}]}},
    "amsgrad, plateau": {
        "optimizer": {"_target_": "torch.optim.AdamW", "amsgrad": True},
        "schedule": {"_target_": f"{LR}.ReduceLROnPlateau", "patience": 0, "threshold": 10.0, "threshold_mode": "abs"},
        "validation": {"mixture": {"more": 1}, "every": 1}},
}


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_optimizer_and_schedule_go_on_exactly_after_a_resume(choice, tmp_path, monkeypatch):
    def config(run):
        tree = tiny_config(tmp_path / run, steps=5) | {"stage": "first"}
        tree["stages"]["first"] |= {"trained": list(EVERYTHING), **CHOICES[choice]}
        return tree

    whole = train(config("whole"))
    monkeypatch.setattr(MadeRows, "breaks_at", 13)  # in the fourth step
    with pytest.raises(RuntimeError, match="the disk is gone"):
        train(config("cut"))
    monkeypatch.setattr(MadeRows, "breaks_at", None)
    again = train(config("cut"))
    assert curve(tmp_path / "cut", "first") == curve(tmp_path / "whole", "first")
    both = [[row["lr"] for row in read_metrics(tmp_path / run / "first")] for run in ("cut", "whole")]
    assert both[0] == both[1] and len(set(both[0])) > 2
    assert (whole / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
