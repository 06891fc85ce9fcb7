from __future__ import annotations

import pytest
import torch

from aurora.assemble import MODEL_SLOTS, build_model, count_parameters
from aurora.config import ASSET_FOLDER, CONFIG_FOLDER, load_config
from aurora.errors import AuroraError
from aurora.registry import SLOTS

CHOICES = [(folder.name, path.stem) for folder in sorted(CONFIG_FOLDER.iterdir()) if folder.is_dir()
           for path in sorted(folder.glob("*.yaml"))]


def test_the_default_config_is_the_model_of_the_paper() -> None:
    config = load_config()
    with torch.device("meta"):
        model = build_model(config)
    # -2 counts hidden states from the end: the last block is left out
    assert (model.vision.depth, model.layout(config["keep_ratio"]).tokens(720, 1280)) == (23, 58)
    parameters = count_parameters(model)
    assert 1.59e9 < parameters["backbone"] < 1.61e9 and 2.9e8 < parameters["vision"] < 3.2e8


def test_a_config_is_made_of_plain_containers() -> None:
    assert type(load_config()["stages"]["vision"]) is dict


@pytest.mark.parametrize(("slot", "name"), [choice for choice in CHOICES if choice[0] in SLOTS])
def test_every_yaml_of_a_slot_says_options_that_its_part_has(slot: str, name: str) -> None:
    config = dict(load_config([f"{slot}={name}"])[slot])
    assert config.pop("name") == name
    assert set(config) <= set(SLOTS[slot].options(name))


@pytest.mark.parametrize("slot", SLOTS)
def test_every_part_has_a_yaml(slot: str) -> None:
    assert {name for group, name in CHOICES if group == slot} == set(SLOTS[slot]._files())


@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "experiment"])
def test_every_experiment_describes_a_model(name: str) -> None:
    with torch.device("meta"):
        build_model(load_config([f"experiment={name}"]))


@pytest.mark.parametrize(("group", "name"), [choice for choice in CHOICES if choice[0] in ("trainer", "logger")])
def test_every_trainer_and_logger_composes(group: str, name: str) -> None:
    assert load_config([f"{group}={name}"])[group] is not None


def test_overrides_apply_in_order() -> None:
    config = load_config(["merge=pool", "keep_ratio=0.5", "keep_ratio=0.25"])
    assert (config["merge"]["name"], config["keep_ratio"]) == ("pool", 0.25)


def test_assets_are_found_from_anywhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(["base_weights.vision.siglip=${asset:blocks/siglip}"])
    assert config["base_weights"]["vision"]["siglip"] == str(ASSET_FOLDER / "blocks/siglip")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("merge=tomme", "merge/tomme"),
        ("keep_ration=0.5", "keep_ration"),
        ("keep_ratio=[", "keep_ratio"),
        ("nonsense", "nonsense"),
    ],
)
def test_an_override_that_makes_no_sense_is_one_line(override: str, named: str) -> None:
    with pytest.raises(AuroraError) as error:
        load_config([override])
    assert named in str(error.value) and "\n" not in str(error.value)


def test_what_is_left_to_the_user_is_absent_until_it_is_given() -> None:
    assert "path" not in load_config(["tokenizer=hf"])["tokenizer"]
    assert load_config(["tokenizer=hf", "tokenizer.path=here"])["tokenizer"]["path"] == "here"


def test_every_slot_of_a_model_has_a_default() -> None:
    assert set(MODEL_SLOTS) <= set(load_config())
