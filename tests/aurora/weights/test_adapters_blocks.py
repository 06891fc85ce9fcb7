"""Adapters as a user meets them: trained on Blocks world, applied to questions, by the command line."""

import json

import pytest
import torch

from aurora.assemble import build_model, load_base_weights
from aurora.cli import main
from aurora.config import load_config
from aurora.training.callbacks.csv_logger import read_metrics
from aurora.weights.model_folder import load_model, save_model
from datamodules.blocks.build import build


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A little of Blocks world, and a model of its base weights."""
    folder = tmp_path_factory.mktemp("world")
    build(folder / "data", scale=0.005, workers=1)
    config = load_config("experiment=blocks")
    torch.manual_seed(0)
    model = build_model(config.model)
    load_base_weights(model, config)
    save_model(model, config.model, folder / "base")
    return folder


@pytest.fixture(scope="module", params=[("lora", 3e-3), ("state", 3.0)], ids=["lora", "state"])
def stage(request, world, tmp_path_factory):
    """The folder of a stage that learned an adapter of this kind alone, in two epochs of eight steps."""
    kind, rate = request.param
    run, tuned = tmp_path_factory.mktemp(kind), "stages.tuned"
    assert main([
        "train", "experiment=blocks", f"run={run}", f"data.root={world / 'data'}", f"init_from={world / 'base'}",
        f"+recipe@{tuned}={kind}", "stage=tuned", f"{tuned}.after=null", f"{tuned}.keep_ratio=0.2",
        f"{tuned}.global_batch=5", f"{tuned}.epochs=2", f"{tuned}.peak_lr={rate}",
        "data.workers=0", "logger=csv", "trainer.progress=none",
    ]) == 0
    return run / "tuned"


@pytest.fixture(scope="module")
def video(world):
    return str(next((world / "data" / "heldout").rglob("*.mp4")))


@pytest.mark.slow
def test_the_loss_falls(stage):
    losses = [float(row["loss"]) for row in read_metrics(stage)]
    assert len(losses) == 16
    assert sum(losses[8:]) < 0.97 * sum(losses[:8])  # each epoch reads the same samples


@pytest.mark.slow
def test_everything_else_is_what_it_was(world, stage):
    before, after = (load_model(folder)[0].state_dict() for folder in (world / "base", stage / "model"))
    changed = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    if (stage / "adapter" / "backbone" / "state.safetensors").exists():
        assert changed == {"backbone.initial_state.wkv"}
    else:
        assert len(changed) == 32 and all(name.startswith("backbone.blocks.") for name in changed)


def test_the_adapter_answers_as_the_merged_model_does(world, stage, video, capsys):
    said = []
    for model in ([stage / "model"], [world / "base", "--adapter", stage / "adapter"]):
        assert main(["ask", video, "What moves?", "--max-new-tokens", "8", "--model", *map(str, model)]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_an_evaluation_says_which_adapter_was_used(world, stage, tmp_path, capsys):
    found = []
    for adapter in ([], ["--adapter", str(stage / "adapter")]):
        assert main(["eval", "--model", str(world / "base"), "--data", str(world / "data" / "heldout"), "--limit", "1",
                     "--json", "--output", str(tmp_path / f"eval{len(adapter)}"), *adapter]) == 0
        found.append(json.loads(capsys.readouterr().out)["model"])
    assert found[1].startswith(f"{found[0]}+") and len(found[1]) == 2 * len(found[0]) + 1


def test_an_adapter_of_another_model_is_one_line(world, stage, video, tmp_path, capsys):
    model, config = load_model(world / "base")
    with torch.no_grad():
        model.vision.patch.weight.add_(1)
    save_model(model, config, tmp_path / "other")
    asked = ["ask", video, "What moves?", "--max-new-tokens", "2", "--model", str(tmp_path / "other"),
             "--adapter", str(stage / "adapter")]
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert "belongs to another base model: the weights of vision" in said and said.count("\n") == 1
    assert main([*asked, "--any-base"]) == 0
