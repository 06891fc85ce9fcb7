import pytest
from torch import nn

from aurora.errors import AuroraError
from aurora.weights.adapters import find_targets


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
