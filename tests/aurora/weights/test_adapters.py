import pytest
from torch import nn

from aurora.config import load_config
from aurora.errors import AuroraError
from aurora.training.recipe import read_recipe
from aurora.weights.adapters import Lora, SlotAdapters, TunedState, find_targets, read_adapters


def test_a_slot_may_have_both_kinds() -> None:
    read = read_adapters("a", {"backbone": {"lora": {"rank": 4}, "state": {}}, "connector": {"lora": None}}, ())
    assert read == {"backbone": SlotAdapters(Lora(rank=4), TunedState())}


@pytest.mark.parametrize("name", ["lora", "state"])
def test_the_recipes_of_adapters_say_all_their_options(name: str) -> None:
    entry = load_config([f"+recipe@stages.tuned={name}"])["stages"]["tuned"]
    recipe = read_recipe("tuned", entry)
    kind = {"lora": Lora, "state": TunedState}[name]
    assert recipe.trained == () and recipe.adapters == {"backbone": SlotAdapters(**{name: kind()})}
    assert set(entry["adapters"]["backbone"][name]) == set(kind.__dataclass_fields__)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"backbon": {"lora": {}}}, r"a: 'backbon' is not a slot with weights. Did you mean 'backbone'"),
        ({"merge": {"lora": {}}}, r"'merge' is not a slot with weights"),
        ({"backbone": {"lore": {}}}, r"a\.backbone: no adapter named 'lore'. Did you mean 'lora'"),
        ({"backbone": 16}, r"a\.backbone is 16; it must be a mapping"),
        ({"backbone": {"lora": {"rang": 8}}}, r"a\.backbone\.lora has no key 'rang'. Did you mean 'rank'"),
        ({"backbone": {"lora": {"rank": 0}}}, r"a\.backbone\.lora\.rank is 0; it must be a whole number ≥ 1"),
        ({"backbone": {"lora": {"rank": -3}}}, r"rank is -3"),
        ({"backbone": {"lora": {"rank": 1.5}}}, r"rank is 1\.5; it must be a whole number"),
        ({"backbone": {"lora": {"alpha": 0}}}, r"alpha is 0; it must be above 0"),
        ({"backbone": {"lora": {"dropout": 1}}}, r"dropout is 1; it must be in \[0, 1\)"),
        ({"backbone": {"lora": {"targets": []}}}, r"targets is \[\]; it must be null, ends of module names"),
        ({"backbone": {"lora": {"lr_scale": 0}}}, r"lr_scale is 0"),
        ({"connector": {"lora": {}}}, r"a\.connector\.lora: the stage trains connector whole"),
        ({"vision": {"state": {}}}, r"a\.vision\.state: only a backbone has a state to tune"),
        ({"backbone": {"state": {"states": []}}}, r"states is \[\]"),
        ({"backbone": {"state": {"lr_scale": -1}}}, r"lr_scale is -1"),
    ],
)
def test_adapters_that_make_no_sense_are_refused(entry, message) -> None:
    with pytest.raises(AuroraError, match=message):
        read_adapters("a", entry, ("connector",))


def test_a_list_holds_ends_of_names(model) -> None:
    backbone = model.backbone
    assert find_targets("t", backbone, ["att.key", "head"]) == ["blocks.0.att.key", "blocks.1.att.key", "head"]
    assert len(find_targets("t", backbone, ["key"])) == 4


def test_one_text_is_a_regex_of_whole_names(model) -> None:
    assert find_targets("t", model.backbone, r"blocks\.1\.ffn\..*") == [
        "blocks.1.ffn.key", "blocks.1.ffn.receptance", "blocks.1.ffn.value"]


def test_no_targets_mean_every_linear_layer_of_the_blocks(model) -> None:
    found = find_targets("t", model.backbone, None)
    assert len(found) == 16 and all(name.startswith("blocks.") for name in found)
    assert find_targets("t", model.connector, None) == ["project.0", "project.2"]


def test_a_part_without_linear_layers_takes_no_lora() -> None:
    with pytest.raises(AuroraError, match="Sequential has no linear layer that a LoRA could change"):
        find_targets("t", nn.Sequential(nn.LayerNorm(4)), None)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["key", "recptance"], r"t: 'recptance' is not the name of a linear layer of RWKV6. Did you mean .*receptance"),
        (["ey"], r"'ey' is not the name of a linear layer"),
        (["emb"], r"'emb' is of the kind Embedding, and LoRA changes linear layers of RWKV6"),
        (["time_maa_w1"], r"'time_maa_w1' is a parameter of its own"),
        (r"att\..*", r"'att\\\\..*' is not the name of a linear layer"),
        ("(", r"t '\(' is not a regex"),
    ],
)
def test_a_target_that_is_not_there_is_refused_with_those_that_are(model, targets, message) -> None:
    with pytest.raises(AuroraError, match=message) as refused:
        find_targets("t", model.backbone, targets)
    assert targets == "(" or "Known: att.receptance, att.key, att.value" in str(refused.value)
