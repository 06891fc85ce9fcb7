from __future__ import annotations

import pytest
import torch
import yaml

from aurora.assemble import build_model, count_parameters
from aurora.config import ASSET_FOLDER, CONFIG_FOLDER, Config, ModelConfig, load_config, named_part
from aurora.errors import AuroraError
from aurora.interfaces import Sampling, Sorter
from aurora.registry import INJECTED, MODEL_SLOTS, SLOTS

CHOICES = [(folder.name, path.stem) for folder in sorted(CONFIG_FOLDER.iterdir()) if folder.is_dir()
           for path in sorted(folder.glob("*.yaml"))]


def test_the_default_config_is_the_model_of_the_paper() -> None:
    config = load_config()
    with torch.device("meta"):
        model = build_model(config.model)
    # -2 counts hidden states from the end: the last block is left out
    assert (model.vision.depth, model.visual_layout(config.model.keep_ratio).tokens(720, 1280)) == (23, 58)
    parameters = count_parameters(model)
    assert 1.59e9 < parameters["backbone"] < 1.61e9 and 2.9e8 < parameters["vision"] < 3.2e8


def test_a_config_is_made_of_plain_containers() -> None:
    assert type(load_config().tree["stages"]["vision"]) is dict


@pytest.mark.parametrize(("slot", "name"), [choice for choice in CHOICES if choice[0] in SLOTS])
def test_every_yaml_of_a_slot_says_all_options_that_its_part_has(slot: str, name: str) -> None:
    config = yaml.safe_load((CONFIG_FOLDER / slot / f"{name}.yaml").read_text())
    assert config.pop("name") == name
    assert set(config) == set(SLOTS[slot].options(name)) - set(INJECTED.get(slot, ()))


@pytest.mark.parametrize("slot", SLOTS)
def test_every_part_has_a_yaml(slot: str) -> None:
    assert {name for group, name in CHOICES if group == slot} == set(SLOTS[slot]._files())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "experiment"])
def test_every_experiment_describes_a_model(name: str) -> None:
    with torch.device("meta"):
        build_model(load_config(f"experiment={name}").model)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), [choice for choice in CHOICES if choice[0] in ("trainer", "logger")])
def test_every_trainer_and_logger_composes(group: str, name: str) -> None:
    assert getattr(load_config(f"{group}={name}"), group) is not None


def test_overrides_apply_in_order() -> None:
    config = load_config("merge=pool", "keep_ratio=0.5", "keep_ratio=0.25").model
    assert (config.merge["name"], config.keep_ratio) == ("pool", 0.25)


def test_assets_are_found_from_anywhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("base_weights.vision.siglip=${asset:blocks/siglip}")
    assert config.base_weights["vision"]["siglip"] == str(ASSET_FOLDER / "blocks/siglip")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("merge=tomme", "no merge named 'tomme'. Did you mean 'tome'? Known: none, pool, prune, random, tome"),
        ("experiment=block", "no experiment named 'block'. Did you mean 'blocks'?"),
        ("recipe@stages.vision=visoin", "no recipe named 'visoin'. Did you mean 'vision'?"),
        ("keep_ration=0.5", "no 'keep_ration'. Did you mean 'keep_ratio'?"),
        ("merge.schedul=floor", "no 'merge.schedul'. Did you mean 'schedule'? Known: name, schedule"),
        ("stages.vison.peak_lr=1", "no 'stages.vison'. Did you mean 'vision'?"),
        ("keep_ratio.frames=1", "keep_ratio is 0.1, which has nothing below it"),
        ("keep_ratio=much", "keep_ratio is 'much'; it must be a number above 0 and at most 1"),
        ("sampling=5", "sampling is 5; it must be a mapping"),
        ("seed=1.5", "seed is 1.5; it must be a whole number"),
        ("keep_ratio=[", "keep_ratio"),
        ("experiment=null", "must be a string or a list"),
        ("run=${nope}", "nope"),
        ("merge=[1]", "merge must be a string or a list of strings; it names one of none, pool"),
        ("merge=a,b", "merge must be a string or a list of strings"),
        ("keep_ratio=0.1,0.2", "gives several values"),
        ("+seeds=1", "the config has no 'seeds'. Did you mean 'seed'?"),
        ("~merge", "the config has no merge; a model needs"),
        ("seed=-1", "seed is -1; it must be a whole number ≥ 0 and at most 2,147,483,647"),
        ("seed=2147483648", "seed is 2147483648"),
        ("stage=visoin", "no stage named 'visoin'. Did you mean 'vision'? Known: pretrain, vision"),
        ("run=''", "run is empty"),
        ("nonsense", "nonsense"),
        ("run=a=b", "\"run='a=b'\""),
    ],
)
def test_an_override_that_makes_no_sense_is_one_line(override: str, named: str) -> None:
    with pytest.raises(AuroraError) as error:
        load_config(override)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_what_is_left_to_the_user_is_absent_until_it_is_given() -> None:
    assert "path" not in load_config("tokenizer=hf").model.tokenizer
    assert load_config("tokenizer=hf", "tokenizer.path=here").model.tokenizer["path"] == "here"


class Reversed(Sorter):
    """A part of another package."""

    where = "final"

    def __init__(self, *, step: int = 1) -> None:
        self.step = step

    def order(self, tokens):
        raise NotImplementedError


def test_a_part_from_outside_needs_no_yaml(monkeypatch) -> None:
    monkeypatch.setitem(SLOTS["sort"]._classes, "reversed", Reversed)
    assert load_config("sort=reversed").model.sort == {"name": "reversed", "step": 1}
    assert load_config("sort=reversed", "sort.step=2").model.sort["step"] == 2


def test_what_an_experiment_says_of_its_part_is_nothing_to_another_that_has_no_such_option(monkeypatch) -> None:
    class Headless(SLOTS["backbone"].get("rwkv6")):
        def __init__(self, *, vocab_size: int, hidden_size: int = 64, layers: int = 2) -> None:
            raise NotImplementedError

    monkeypatch.setitem(SLOTS["backbone"]._classes, "headless", Headless)
    config = load_config("experiment=blocks", "backbone=headless")
    assert config.model.backbone == {"name": "headless", "hidden_size": 128, "layers": 4}
    with pytest.raises(AuroraError, match=r"no 'backbone\.head_size'\..* Known: name, hidden_size, layers"):
        load_config("experiment=blocks", "backbone=headless", "backbone.head_size=8")


def test_a_run_that_starts_from_a_model_takes_its_parts_and_what_is_said_besides(model_folder, config) -> None:
    found = load_config("experiment=blocks", f"init_from={model_folder}", "merge=pool", "keep_ratio=0.25").model
    assert (found.vision, found.backbone, found.sampling) == (config.vision, config.backbone, config.sampling)
    assert found.tokenizer == config.tokenizer != load_config("experiment=blocks").model.tokenizer
    assert (found.merge["name"], found.keep_ratio, found.dtype) == ("pool", 0.25, "float32")
    with pytest.raises(AuroraError, match="is not a model folder"):
        load_config("init_from=nowhere")


def test_a_folder_of_a_backbone_is_where_its_base_weights_are() -> None:
    assert load_config("backbone=hf", "backbone.path=models/mamba").base_path("backbone") == "models/mamba"
    assert load_config().base_weights["backbone"]["hf"] is None


def test_every_slot_of_a_model_has_a_default() -> None:
    assert set(MODEL_SLOTS) <= set(load_config().tree)


def test_a_config_is_read_again_from_what_it_writes() -> None:
    config = load_config("experiment=blocks", "merge=pool")
    assert Config.parse(config.tree) == config
    assert ModelConfig.parse(config.model.tree) == config.model


def test_another_part_comes_with_the_options_of_its_yaml(config) -> None:
    merge = config.override(["merge=prune", "merge.by=attention"]).merge
    assert merge == {"name": "prune", "by": "attention", "proportional_attention": False}


def test_an_override_of_a_model_changes_one_option_and_not_the_config_given(config) -> None:
    assert config.override(["sampling.fps=null", "sampling.frames=4"]).sampling == Sampling(frames=4)
    assert config.sampling == Sampling(fps=2.0)


@pytest.mark.parametrize(("override", "named"), [
    ("trainer=cpu", "a saved model has no 'trainer' to override. Did you mean 'reader'?"),
    ("merge=tomme", "no merge named 'tomme'. Did you mean 'tome'?"),
    ("sampling.frams=2", "no 'sampling.frams'. Did you mean 'frames'?"),
    ("keep_ratio=2", "keep_ratio is 2; it must be a number above 0 and at most 1"),
    ("dtype=bfloat61", "dtype 'bfloat61' is unknown. Did you mean 'bfloat16'?"),
    ("nonsense", "'nonsense' is not an override"),
])
def test_an_override_of_a_model_that_makes_no_sense_is_one_line(config, override: str, named: str) -> None:
    with pytest.raises(AuroraError) as error:
        config.override([override])
    assert named in str(error.value) and "\n" not in str(error.value)


def test_a_prompt_has_timestamps_where_they_are_asked_for_and_says_nothing_of_them_otherwise() -> None:
    # or runs that have begun could not be resumed, and saved films not be opened
    assert load_config().tree["prompt"] == {"name": "sandwich"} and "timestamps" not in named_part("prompt", "generic")
    assert load_config("prompt.timestamps=true").model.prompt == {"name": "sandwich", "timestamps": True}
    saved = load_config().model.override(["prompt=generic", "prompt.timestamps=true"])
    assert saved.prompt["name"] == "generic" and saved.prompt["timestamps"]
