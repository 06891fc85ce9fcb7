import copy
import json
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from aurora.config import ModelConfig
from aurora.errors import AuroraError
from aurora.recipe import TrainerOptions
from aurora.training.checkpoint.layout import checkpoint_path, read_checkpoint
from aurora.training.distributed.strategies import shard
from aurora.training.optim import parameter_groups, set_trainable
from aurora.weights.adapters import attach_adapters
from aurora.weights.model_folder import load_model, save_model
from tools.tiny_training import MadeRows, curve, tiny_config, tiny_model, tiny_recipe, train

STEPS = 4
LORA = {"backbone": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.1}}}
STATE = {"backbone": {"state": {}}}
EVERYTHING = {"vision": {"lora": {"rank": 2, "alpha": 4}},
              "backbone": {"lora": {"rank": 2, "alpha": 4, "targets": ["key", "value", "head"]}, "state": {}}}
TUNED = "backbone.initial_state.wkv"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model in which nothing is silent; an untrained RWKV-6 starts with zeros."""
    torch.manual_seed(0)
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(model, ModelConfig.parse(tiny_config("run")), folder)
    return folder


def stage_config(run, base, adapters, *, trained=(), steps=STEPS, **recipe):
    """One stage on top of `base`."""
    config = tiny_config(run, steps=steps)
    only = {**config["stages"]["first"], "trained": list(trained), "adapters": copy.deepcopy(adapters),
            "peak_lr": 2e-2, "warmup_ratio": 0.0, **recipe}
    return {**config, "stages": {"tuned": only}, "stage": "tuned", "init_from": str(base)}


def weights(folder):
    return load_model(folder)[0].state_dict()


def stored(run):
    """All tensors of the checkpoint after the second step, whole."""
    checkpoint = read_checkpoint(checkpoint_path(run / "tuned" / "checkpoints", 2))
    listed = HuggingFaceStorageReader(str(checkpoint.path)).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in listed.items()}
    checkpoint.load(tensors, None)
    return tensors


def changed(before, after):
    return {name for name in after if name not in before or not torch.equal(before[name], after[name])}


@torch.no_grad()
def loss_of(folder):
    """On the rows that a stage of STEPS learns from."""
    model, _ = load_model(folder)
    data = MadeRows(seed=3, layout=None, tokenizer=model.tokenizer, prompt=None)
    losses = [model(data.row(number)) for number in range(4 * STEPS)]
    return float(sum(loss.total for loss in losses) / sum(loss.count for loss in losses))


def test_a_stage_of_a_lora_changes_its_layers_and_nothing_else(base, tmp_path):
    folder = train(stage_config(tmp_path, base, LORA))
    before, after = weights(base), weights(folder)
    assert after.keys() == before.keys()
    adapted = {f"backbone.blocks.{block}.{name}.weight" for block in range(2)
               for name in ("att.receptance", "att.key", "att.value", "att.gate", "att.output",
                            "ffn.key", "ffn.receptance", "ffn.value")}
    assert changed(before, after) == adapted
    assert loss_of(folder) < loss_of(base) - 0.1
    learned = load_file(tmp_path / "tuned/adapter/backbone/adapter_model.safetensors")
    for name in adapted:
        a, b = (learned[f"base_model.model.{name.removeprefix('backbone.').replace('weight', f'lora_{x}.weight')}"]
                for x in "AB")
        torch.testing.assert_close(after[name], before[name] + 8 / 4 * b @ a)


def test_a_stage_of_a_state_changes_the_state_and_nothing_else(base, tmp_path):
    folder = train(stage_config(tmp_path, base, STATE, peak_lr=0.3))
    after = weights(folder)
    assert changed(weights(base), after) == {TUNED}
    assert loss_of(folder) < loss_of(base) - 0.1
    file = load_file(tmp_path / "tuned/adapter/backbone/state.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in file.items()} == {
        "blocks.0.att.time_state": (2, 8, 8), "blocks.1.att.time_state": (2, 8, 8)}
    assert torch.equal(file["blocks.1.att.time_state"], after[TUNED][1, 0].mT)


def test_a_later_stage_keeps_the_state_that_an_earlier_one_tuned(base, tmp_path):
    first = train(stage_config(tmp_path / "one", base, STATE, steps=2))
    second = train(stage_config(tmp_path / "two", first, {}, trained=["connector"], steps=2))
    assert torch.equal(weights(second)[TUNED], weights(first)[TUNED])
    third = train(stage_config(tmp_path / "three", second, STATE, steps=1, peak_lr=1e-3))
    moved = (weights(third)[TUNED] - weights(second)[TUNED]).abs().max()
    assert 0 < moved <= 1.1e-3  # it went on from where it was


def test_checkpoints_hold_the_adapters_alone_in_float32(base, tmp_path):
    config = stage_config(tmp_path, base, EVERYTHING, trained=["connector"], steps=2)
    config["trainer"]["precision"] = "bf16-true"
    train(config)
    found = stored(tmp_path)
    learned = {name.removeprefix("weights."): tensor for name, tensor in found.items() if name.startswith("weights.")}
    kinds = Counter((name.split(".")[0], "lora" if ".lora_" in name else name.split(".")[1], str(tensor.dtype))
                    for name, tensor in learned.items())
    assert kinds == {("vision", "lora", "torch.float32"): 16, ("backbone", "lora", "torch.float32"): 18,
                     ("backbone", "initial_state", "torch.float32"): 1, ("connector", "project", "torch.bfloat16"): 4}
    assert {name.removeprefix("optimizer.exp_avg.") for name in found if ".exp_avg." in name} == learned.keys()
    model = weights(tmp_path / "tuned/model")
    assert {str(tensor.dtype) for name, tensor in model.items() if name != TUNED} == {"torch.bfloat16"}


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [LORA, STATE], ids=["lora", "state"])
def test_an_interrupted_stage_goes_on_as_if_nothing_had_happened(base, tmp_path, monkeypatch, adapters):
    whole = train(stage_config(tmp_path / "whole", base, adapters))
    config = stage_config(tmp_path / "cut", base, adapters)
    monkeypatch.setattr(MadeRows, "breaks_at", 9)
    with pytest.raises(RuntimeError):
        train(config)
    monkeypatch.setattr(MadeRows, "breaks_at", None)
    again = train(config)
    assert curve(tmp_path / "cut", "tuned") == curve(tmp_path / "whole", "tuned")
    for file in ("model.safetensors", "../adapter/adapter.json"):
        assert (whole / file).read_bytes() == (again / file).read_bytes()


@pytest.mark.slow
def test_recomputed_activations_change_nothing(base, tmp_path):
    kept = train(stage_config(tmp_path / "kept", base, EVERYTHING, steps=2))
    config = stage_config(tmp_path / "again", base, EVERYTHING, steps=2)
    config["trainer"]["activation_checkpointing"] = "block"
    assert (kept / "model.safetensors").read_bytes() == (train(config) / "model.safetensors").read_bytes()


def test_two_processes_with_sharded_bfloat16_weights_learn_what_one_does(base, tmp_path, start_process):
    config = stage_config(tmp_path / "one", base, EVERYTHING, trained=["connector"], steps=2)
    config["trainer"].update(precision="bf16-true", activation_checkpointing="block")
    train(config)
    config = {**config, "run": str(tmp_path / "two")}
    config["trainer"].update(strategy="fsdp", devices=2, accelerator="cpu")
    process = start_process(config)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    one, two = (stored(tmp_path / run) for run in ("one", "two"))
    before = weights(base)
    for name, tensor in ((name, tensor) for name, tensor in one.items() if name.startswith("weights.")):
        # the rates of two steps sum to 3e-2, which AdamW moves everything by
        assert (two[name] - tensor).abs().mean() < 5e-3, name
        assert two[name].dtype == tensor.dtype
        if name.removeprefix("weights.") in before:
            assert (tensor - before[name.removeprefix("weights.")]).abs().mean() > 1e-2
    assert weights(tmp_path / "two/tuned/model").keys() == {*before, TUNED}


def test_sharding_refuses_learned_weights_of_two_dtypes_in_one_unit():
    recipe = tiny_recipe(trained=["vision"], adapters={"backbone": {"lora": {"targets": ["head"]}}})
    model = tiny_model(dtype="bfloat16")
    attach_adapters("s", model, recipe.adapters)
    set_trainable(model, recipe)
    with pytest.raises(AuroraError, match="cannot train a slot whole beside a float32 LoRA on layers outside"):
        shard(model, None, TrainerOptions())


def test_adapters_have_their_own_rates_and_states_are_never_decayed():
    adapters = {"backbone": {"lora": {"lr_scale": 0.5}, "state": {"lr_scale": 30.0}}}
    recipe = tiny_recipe(adapters=adapters, weight_decay=0.1)
    model = tiny_model()
    attach_adapters("s", model, recipe.adapters)
    set_trainable(model, recipe)
    groups = {(group["scale"], group["weight_decay"]): len(group["params"])
              for group in parameter_groups(model, recipe)}
    assert groups == {(0.5, 0.1): 32, (30.0, 0.0): 1, (1.0, 0.1): 2, (1.0, 0.0): 2}


def test_what_lies_under_an_adapter_stays_in_evaluation_mode():
    model = tiny_model()
    recipe = tiny_recipe(trained=[], adapters=LORA)
    attach_adapters("s", model, recipe.adapters)
    set_trainable(model, recipe)
    training = {type(module).__name__ for module in model.backbone.modules() if module.training}
    assert training == {"ModuleDict", "Dropout"}


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ({"backbone": {"lora": {"targets": ["atention"]}}},
         r"stages\.tuned\.adapters\.backbone\.lora\.targets: 'atention' is not the name of a linear layer of RWKV6"),
        ({"backbone": {"state": {"states": ["vkw"]}}},
         r"\.backbone\.state\.states: RWKV6 has no state 'vkw'. Known: att_shift, wkv, ffn_shift"),
        ({"backbone": {"lora": {"rank": 0}}}, r"stages\.tuned\.adapters\.backbone\.lora\.rank is 0"),
    ],
)
def test_adapters_that_do_not_fit_are_refused_before_anything_starts(base, tmp_path, adapters, message):
    with pytest.raises(AuroraError, match=message):
        train(stage_config(tmp_path, base, adapters))
    assert not list(tmp_path.iterdir())


def test_the_summary_says_what_is_adapted(base, tmp_path, capfd):
    train(stage_config(tmp_path, base, EVERYTHING, steps=1))
    said = capfd.readouterr().out
    assert "LoRA of rank 2 on 8 layers of vision, LoRA of rank 2 on 9 layers of backbone, " \
           "initial state (wkv) of backbone" in said
    about = json.loads((tmp_path / "tuned/adapter/adapter.json").read_text())
    assert about["start"] == str(base) and about["base"].keys() == {"vision", "connector", "backbone"}
