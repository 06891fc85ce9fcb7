import pytest

from aurora.config import Config, load_config
from aurora.errors import AuroraError
from aurora.options import read_fields
from aurora.recipe import Lora, Recipe, SlotAdapters, Spike, TrainerOptions, TunedState

RECIPE = {"after": None, "trained": ["connector"], "mixture": {"rows": 1}, "prompt": None, "keep_ratio": 0.5,
          "peak_lr": 1e-2, "global_batch": 8, "epochs": 1}


def recipe(**change):
    return read_fields(Recipe, "stages.s", {**RECIPE, **change})


def stages(config, **afters):
    """A config whose stages follow those that are named."""
    return Config.parse({**config.tree, "data": {"name": "synthetic"}, "run": "run",
                         "stages": {name: {**RECIPE, "after": after} for name, after in afters.items()}})


def test_the_stages_of_the_paper_come_in_its_order():
    assert list(load_config().stages) == ["pretrain", "vision", "language_image", "language_video"]


def test_stages_are_ordered_by_what_they_start_from(config):
    assert list(stages(config, second="first", first=None).stages) == ["first", "second"]


def test_one_stage_is_selected_or_all_of_them():
    assert list(load_config("stage=vision").selected) == ["vision"]
    assert list(load_config().selected) == list(load_config().stages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep_ratio": 0}, r"stages\.s\.keep_ratio is 0; it must be a number above 0 and at most 1"),
        ({"keep_ratio": 1.5}, r"keep_ratio is 1\.5"),
        ({"peak_lr": 0.0}, r"peak_lr is 0\.0; it must be a number above 0"),
        ({"peak_lr": "1e-4"}, r"peak_lr is '1e-4'"),
        ({"peak_lr": float("inf")}, r"peak_lr is inf; it must be a number"),
        ({"trained": ["connector"], "lr_scale": {"vision": 0.1}}, r"s\.lr_scale\.vision is given.*trains connector"),
        ({"trained": ["connector"], "weight_decay": {"backbone": 0.1}}, r"weight_decay\.backbone is given"),
        ({"global_batch": 0}, r"global_batch is 0; it must be a whole number ≥ 1"),
        ({"epochs": 0.5}, r"epochs is 0\.5"),
        ({"max_steps": 0}, r"max_steps is 0; it must be a whole number ≥ 1 or null"),
        ({"warmup_ratio": 1.0}, r"warmup_ratio is 1\.0; it must be a number ≥ 0 and below 1"),
        ({"betas": [0.9]}, r"betas is \[0\.9\]; it must be a list of 2, each a number ≥ 0 and below 1"),
        ({"betas": [0.9, 1]}, r"betas\[1\] is 1"),
        ({"weight_decay": -1}, r"weight_decay is -1"),
        ({"weight_decay": {"connector": -1}}, r"weight_decay\.connector is -1; it must be a number ≥ 0"),
        ({"clip": 0}, r"clip is 0"),
        ({"average": 1}, r"average is 1; it must be a number above 0 and below 1 or null"),
        ({"trained": []}, r"trained is empty"),
        ({"trained": ["conector"]}, r"s\.trained\[0\] 'conector' is unknown. Did you mean 'connector'"),
        ({"trained": ["merge"]}, r"'merge' is unknown"),
        ({"lr_scale": {"conector": 1}}, r"s\.lr_scale has no key 'conector'. Did you mean 'connector'"),
        ({"lr_scale": {"connector": 0}}, r"lr_scale\.connector is 0"),
        ({"mixture": {}}, r"mixture names no dataset"),
        ({"mixture": {"rows": 0}}, r"mixture\.datasets\.rows\.repeats is 0"),
        ({"peek_lr": 1}, r"stages\.s has no key 'peek_lr'. Did you mean 'peak_lr'"),
        ({"optimizer": {"lr": 1}}, r"stages\.s\.optimizer has no _target_"),
        ({"schedule": "cosine"}, r"stages\.s\.schedule is 'cosine'; it must be a mapping or null"),
        ({"validation": 5}, r"stages\.s\.validation is 5; it must be a mapping of mixture, every"),
        ({"validation": {"every": 2, "mixtures": {}}}, r"has no key 'mixtures'.*mixture"),
        ({"validation": {"mixture": {"rows": 1}, "every": 0}}, r"validation\.every is 0; it must be a whole number"),
        ({"validation": {"mixture": None, "every": 0}}, r"validation\.every is 0"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(AuroraError, match=message):
        recipe(**change)


def test_a_recipe_without_a_rate_is_refused():
    with pytest.raises(AuroraError, match=r"stages\.s lacks peak_lr"):
        read_fields(Recipe, "stages.s", {key: value for key, value in RECIPE.items() if key != "peak_lr"})


def test_a_prompt_that_is_not_there_is_refused():
    with pytest.raises(AuroraError, match=r"no prompt named 'sandwitch'. Did you mean 'sandwich'"):
        load_config("stages.vision.prompt={name: sandwitch}")


def test_without_a_mixture_nothing_is_held_out():
    assert recipe(validation={"mixture": None, "every": 3}).validation is None
    assert recipe(validation={"mixture": {"more": 1}}).datasets == ("rows", "more")


def test_a_slot_may_have_both_kinds_of_adapters() -> None:
    adapters = recipe(adapters={"backbone": {"lora": {"rank": 4}, "state": {}}, "connector": {"lora": None}}).adapters
    assert adapters == {"backbone": SlotAdapters(Lora(rank=4), TunedState())}


@pytest.mark.parametrize("name", ["lora", "state"])
def test_the_recipes_of_adapters_say_all_their_options(name: str) -> None:
    config = load_config(f"+recipe@stages.tuned={name}")
    kind = {"lora": Lora, "state": TunedState}[name]
    tuned = config.stages["tuned"]
    assert tuned.trained == () and tuned.adapters == {"backbone": SlotAdapters(**{name: kind()})}
    entry = config.tree["stages"]["tuned"]["adapters"]["backbone"][name]
    assert set(entry) == set(kind.__dataclass_fields__)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"backbon": {"lora": {}}}, r"s\.adapters has no key 'backbon'. Did you mean 'backbone'"),
        ({"merge": {"lora": {}}}, r"s\.adapters has no key 'merge'. Known: vision, connector, backbone"),
        ({"backbone": {"lore": {}}}, r"adapters\.backbone has no key 'lore'. Did you mean 'lora'"),
        ({"backbone": 16}, r"adapters\.backbone is 16; it must be a mapping"),
        ({"backbone": {"lora": {"rang": 8}}}, r"adapters\.backbone\.lora has no key 'rang'. Did you mean 'rank'"),
        ({"backbone": {"lora": {"rank": 0}}}, r"backbone\.lora\.rank is 0; it must be a whole number ≥ 1"),
        ({"backbone": {"lora": {"rank": -3}}}, r"rank is -3"),
        ({"backbone": {"lora": {"rank": 1.5}}}, r"rank is 1\.5; it must be a whole number"),
        ({"backbone": {"lora": {"alpha": 0}}}, r"alpha is 0; it must be a number above 0"),
        ({"backbone": {"lora": {"dropout": 1}}}, r"dropout is 1; it must be a number ≥ 0 and below 1"),
        ({"backbone": {"lora": {"targets": []}}}, r"targets is \[\]; it must be a list, each a string not empty or"),
        ({"backbone": {"lora": {"lr_scale": 0}}}, r"lr_scale is 0"),
        ({"connector": {"lora": {}}}, r"s\.adapters\.connector\.lora: the stage trains connector whole"),
        ({"vision": {"state": {}}}, r"s\.adapters\.vision\.state: only a backbone has a state to tune"),
        ({"backbone": {"state": {"states": []}}}, r"states is \[\]"),
        ({"backbone": {"state": {"lr_scale": -1}}}, r"lr_scale is -1"),
    ],
)
def test_adapters_that_make_no_sense_are_refused(entry, message) -> None:
    with pytest.raises(AuroraError, match=message):
        recipe(adapters=entry)


def test_the_options_of_the_first_trainer_are_the_defaults():
    assert load_config("trainer=cpu").trainer == TrainerOptions()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "fsdp2"}, r"trainer\.strategy 'fsdp2' is unknown. Did you mean 'fsdp'"),
        ({"precision": "16"}, r"precision '16' is unknown"),
        ({"precision": "16-true"}, r"trainer\.precision=16-true would keep weights .* in float16, .*=16-mixed"),
        ({"threads": 0}, r"threads is 0"),
        ({"checkpoint_every": 0}, r"checkpoint_every is 0"),
        ({"max_bad_steps": 0}, r"max_bad_steps is 0"),
        ({"threads": 5000}, r"threads is 5000; it must be a whole number ≥ 1 and at most 4,096 or null"),
        ({"watchdog_seconds": 1e12}, r"_seconds is 1000000000000\.0; it must be a number above 0 and at most 10,000"),
        ({"rendezvous_seconds": 1e12}, r"rendezvous_seconds is 1000000000000\.0; it must be a number above 0 and at"),
        ({"device": 2}, r"trainer has no key 'device'. Did you mean 'devices'"),
        ({"spike": {"factor": 1.0}}, r"trainer\.spike\.factor is 1\.0; it must be a number above 1"),
        ({"spike": {"factor": 2.0, "window": 1}}, r"window is 1"),
        ({"spike": {"factor": 2.0, "action": "panic"}}, r"'panic' is unknown"),
        ({"precision": "bf16-gathered"}, r"trainer\.precision=bf16-gathered needs strategy fsdp"),
        ({"defer_gradient_sync": True, "strategy": "ddp"}, r"trainer\.defer_gradient_sync needs strategy fsdp"),
        ({"reshard_after_forward": False}, r"trainer\.reshard_after_forward=false needs strategy fsdp"),
        ({"cpu_offload": True, "strategy": "fsdp"}, r"cpu_offload needs .* a GPU"),
        ({"shard_size": 2, "strategy": "fsdp"}, r"shard_size needs strategy fsdp_hybrid"),
        ({"sequence_parallel": 2}, r"sequence_parallel needs strategy fsdp, .* or ddp"),
        ({"sequence_parallel": 2, "backprop_tokens": 64, "strategy": "fsdp"}, r"backprop_tokens needs sequence_paral"),
        ({"compile": "block", "activation_checkpointing": "selective"}, r"compile=block needs activation_checkpoint"),
        ({"backprop_tokens": 0}, r"backprop_tokens is 0"),
    ],
)
def test_trainer_options_that_make_no_sense_are_refused(change, message):
    with pytest.raises(AuroraError, match=message):
        read_fields(TrainerOptions, "trainer", change)


def test_a_spike_is_read():
    assert read_fields(TrainerOptions, "trainer", {"spike": {"factor": 2}}).spike == Spike(factor=2)


@pytest.mark.parametrize("key", ["backprop_tokens=64", "sequence_parallel=2"])
def test_rows_are_cut_in_one_way(key):
    with pytest.raises(AuroraError, match=r"trainer\.\w+ cuts rows into segments, which data.too_long=split does"):
        load_config("trainer=fsdp", f"trainer.{key}", "data.too_long=split")


def test_stages_that_wait_for_each_other_are_refused(config):
    with pytest.raises(AuroraError, match="circle"):
        stages(config, second="first", first="second")


def test_a_stage_after_an_unknown_one_is_refused(config):
    with pytest.raises(AuroraError, match=r"stages\.first\.after: no stage named 'zeroth'"):
        stages(config, first="zeroth")


def test_a_missing_dataset_folder_is_named(tmp_path):
    config = load_config(f"data.root={tmp_path}", "experiment=blocks", "stages.vision.mixture={rows: 1}")
    with pytest.raises(AuroraError, match=f"1 dataset folders are missing below data.root {tmp_path}: rows;"):
        config.require_datasets(["vision"])
    (tmp_path / "rows").mkdir()
    config.require_datasets(["vision"])
