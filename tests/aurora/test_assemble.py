from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from aurora.assemble import build_model, count_parameters, load_base_weights
from aurora.config import Config, ModelConfig
from aurora.errors import AuroraError
from aurora.registry import INJECTED, MODEL_SLOTS, SLOTS


def test_a_config_becomes_a_model_with_every_slot(config) -> None:
    model = build_model(config)
    assert all(isinstance(getattr(model, slot), SLOTS[slot].get(config.part(slot)["name"])) for slot in MODEL_SLOTS)


def test_widths_meet_without_being_configured_twice(make_config) -> None:
    model = build_model(make_config(backbone={"name": "rwkv6", "hidden_size": 48, "layers": 1, "head_size": 16}))
    assert model.backbone.vocab_size == model.tokenizer.vocab_size
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert model.encode(pixels, keep=4).shape == (2, 4, 48)


def test_a_model_on_the_meta_device_takes_no_memory(config) -> None:
    with torch.device("meta"):
        model = build_model(config)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_of_the_dtype_asked_for(make_config, dtype: str) -> None:
    model = build_model(make_config(dtype=dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert torch.get_default_dtype() == torch.float32


def test_an_unknown_dtype_is_refused(make_config) -> None:
    with pytest.raises(AuroraError, match="Did you mean 'bfloat16'"):
        build_model(make_config(dtype="bfloat61"))


def test_a_failed_build_leaves_the_default_dtype_alone(make_config) -> None:
    with pytest.raises(AuroraError):
        build_model(make_config(dtype="bfloat16", backbone={"name": "nothing"}))
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("slot", MODEL_SLOTS)
def test_a_missing_slot_is_named(config, slot: str) -> None:
    tree = config.tree
    del tree[slot]
    with pytest.raises(AuroraError, match=f"the config has no {slot}"):
        ModelConfig.parse(tree)


def test_a_part_without_a_name_is_refused(config) -> None:
    with pytest.raises(AuroraError, match=r"merge is {'schedule': 'floor'}, which has no name. Known: none, pool"):
        ModelConfig.parse({**config.tree, "merge": {"schedule": "floor"}})


def test_the_same_seed_gives_the_same_weights(config) -> None:
    def weights(seed: int) -> dict:
        torch.manual_seed(seed)
        return dict(build_model(config).state_dict())

    torch.testing.assert_close(weights(1), weights(1), rtol=0, atol=0)
    one, other = weights(1), weights(2)
    assert not all(torch.equal(one[name], other[name]) for name in one if name.startswith("connector."))


def test_parameters_are_counted_by_slot(config) -> None:
    model = build_model(config)
    counted = count_parameters(model)
    assert list(counted) == ["vision", "connector", "backbone"]
    assert sum(counted.values()) == sum(parameter.numel() for parameter in model.parameters())


def test_every_injected_fact_is_asked_for_by_some_part() -> None:
    for slot, facts in INJECTED.items():
        asked = {option for name in SLOTS[slot].known() for option in SLOTS[slot].options(name)}
        assert set(facts) <= asked


def base_weights_of(model, **base_weights):
    config = Config.parse({**model.tree, "base_weights": base_weights, "data": {"name": "synthetic"}, "stages": {},
                           "run": "run"})
    return load_base_weights(build_model(config.model), config)


def test_a_part_without_base_weights_is_told_to_be_random(config) -> None:
    assert base_weights_of(config) == {"vision": "random", "connector": "random", "backbone": "random"}


def test_base_weights_that_are_not_there_are_named(config) -> None:
    with pytest.raises(AuroraError, match=r"base_weights\.backbone\.rwkv6: /nowhere/rwkv\.pth does not exist"):
        base_weights_of(config, backbone={"rwkv6": "/nowhere/rwkv.pth"})


def test_base_weights_of_another_part_are_not_used(config) -> None:
    assert base_weights_of(config, backbone={"other": "/nowhere/other.pth"})["backbone"] == "random"


def test_a_prompt_with_timestamps_needs_a_tokenizer_that_can_give_them(make_config, tmp_path) -> None:
    letters = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate("ab")}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="</s>").save_pretrained(tmp_path)
    tokenizer = {"name": "hf", "path": str(tmp_path)}
    assert build_model(make_config(tokenizer=tokenizer))
    with pytest.raises(AuroraError, match="a prompt with timestamps needs a tokenizer"):
        build_model(make_config(tokenizer=tokenizer, prompt={"name": "generic", "timestamps": True}))
