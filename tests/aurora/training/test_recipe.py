import pytest
from aurora.testing.training import tiny_config

from aurora.config import load_config
from aurora.errors import AuroraError
from aurora.recipe import (
    check_datasets,
    check_seed,
    read_options,
    read_recipe,
    read_recipes,
    selected_stages,
)

RECIPE = tiny_config("run")["stages"]["first"]


def test_the_stages_of_the_paper_come_in_its_order():
    config = load_config(["data.root=data"])
    assert list(read_recipes(config)) == ["pretrain", "vision", "language_image", "language_video"]


def test_stages_are_ordered_by_what_they_start_from():
    assert list(read_recipes(tiny_config("run"))) == ["first", "second"]


@pytest.mark.parametrize("name", ["cpu", "gpu", "ddp", "fsdp"])
def test_every_trainer_config_is_understood(name):
    read_options(load_config(["data.root=data", f"trainer={name}"])["trainer"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep_ratio": 0}, r"stages\.s\.keep_ratio is 0; it must be above 0 and at most 1"),
        ({"keep_ratio": 1.5}, r"keep_ratio is 1\.5"),
        ({"peak_lr": 0.0}, r"peak_lr is 0\.0; it must be above 0"),
        ({"peak_lr": "1e-4"}, r"peak_lr is '1e-4'"),
        ({"peak_lr": float("inf")}, r"peak_lr is inf; it must be a number"),
        ({"trained": ["connector"], "lr_scale": {"vision": 0.1}}, r"s\.lr_scale\.vision is given.*trains connector"),
        ({"trained": ["connector"], "weight_decay": {"backbone": 0.1}}, r"weight_decay\.backbone is given"),
        ({"global_batch": 0}, r"global_batch is 0; it must be a whole number ≥ 1"),
        ({"epochs": 0.5}, r"epochs is 0\.5"),
        ({"max_steps": 0}, r"max_steps is 0"),
        ({"warmup_ratio": 1.0}, r"warmup_ratio is 1\.0"),
        ({"betas": [0.9]}, r"betas is \(0\.9,\)"),
        ({"weight_decay": -1}, r"weight_decay is -1"),
        ({"clip": 0}, r"clip is 0"),
        ({"trained": []}, r"trained is empty"),
        ({"trained": ["conector"]}, r"'conector' is no slot with weights. Did you mean 'connector'"),
        ({"trained": ["merge"]}, r"'merge' is no slot with weights"),
        ({"lr_scale": {"backbone": 0}}, r"lr_scale"),
        ({"mixture": {}}, r"mixture names no dataset"),
        ({"mixture": {"rows": 0}}, r"mixture\.rows is read 0 times"),
        ({"prompt": {"name": "sandwitch"}}, r"no prompt named 'sandwitch'. Did you mean 'sandwich'"),
        ({"peek_lr": 1}, r"stages\.s has no key 'peek_lr'. Did you mean 'peak_lr'"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(AuroraError, match=message):
        read_recipe("s", {**RECIPE, **change})


def test_a_recipe_without_a_rate_is_refused():
    with pytest.raises(AuroraError, match=r"stages\.s lacks peak_lr"):
        read_recipe("s", {key: value for key, value in RECIPE.items() if key != "peak_lr"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "fsdp2"}, r"trainer\.strategy 'fsdp2' is unknown. Did you mean 'fsdp'"),
        ({"precision": "16"}, r"precision '16' is unknown"),
        ({"precision": "16-true"}, r"16-true would keep weights .* in float16, .*; precision=16-mixed computes"),
        ({"threads": 0}, r"threads is 0"),
        ({"checkpoint_every": 0}, r"checkpoint_every is 0"),
        ({"max_bad_steps": 0}, r"max_bad_steps is 0"),
        ({"threads": 5000}, r"threads is 5000; it must be null or a whole number from 1 to 4,096"),
        ({"watchdog_seconds": 1e12}, r"watchdog_seconds is 1000000000000\.0; it must be null, or above 0 and at most"),
        ({"rendezvous_seconds": 1e12}, r"rendezvous_seconds is 1000000000000\.0; it must be above 0 and at most"),
        ({"device": 2}, r"trainer has no key 'device'. Did you mean 'devices'"),
    ],
)
def test_trainer_options_that_make_no_sense_are_refused(change, message):
    with pytest.raises(AuroraError, match=message):
        read_options(change)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_that_the_generators_do_not_take_is_refused(seed):
    with pytest.raises(AuroraError, match=f"seed is {seed}; it must be a whole number from 0 to 2,147,483,647"):
        check_seed(seed)


def test_an_unknown_stage_is_refused_with_the_known_ones():
    config = {**tiny_config("run"), "stage": "secnd"}
    with pytest.raises(AuroraError, match=r"no stage named 'secnd'. Did you mean 'second'\? Known: first, second, all"):
        selected_stages(config, read_recipes(config))


def test_stages_that_wait_for_each_other_are_refused():
    config = tiny_config("run")
    config["stages"]["first"]["after"] = "second"
    with pytest.raises(AuroraError, match="circle"):
        read_recipes(config)


def test_a_stage_after_an_unknown_one_is_refused():
    config = tiny_config("run")
    config["stages"]["first"]["after"] = "zeroth"
    with pytest.raises(AuroraError, match=r"stages\.first\.after: no stage named 'zeroth'"):
        read_recipes(config)


def test_a_missing_dataset_folder_is_named(tmp_path):
    config = {"data": {"root": str(tmp_path)}}
    with pytest.raises(AuroraError, match=f"1 dataset folders are missing below data.root {tmp_path}: rows;"):
        check_datasets(config, {"s": read_recipe("s", RECIPE)})
