import copy
import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora.errors import AuroraError
from aurora.inference.models import saved_model
from aurora.inference.reading import blank, read_texts
from aurora.interfaces import Backbone
from aurora.recipe import Lora, SlotAdapters, TunedState
from aurora.weights.adapters import (
    adapter_hash,
    apply_adapter,
    attach_adapters,
    base_hash,
    merge_adapters,
    save_adapter,
)
from aurora.weights.model_folder import load_model, save_model

ADAPTERS = {
    "backbone": SlotAdapters(Lora(rank=3, alpha=5, targets=["key", "head"]), TunedState()),
    "vision": SlotAdapters(Lora(rank=2)),
}
BOUNDS = torch.tensor([0, 5, 9])


@pytest.fixture
def adapted(model):
    """The model with adapters that matter, and a connector that a stage has trained whole."""
    adapted = copy.deepcopy(model)
    torch.manual_seed(2)
    attach_adapters("a", adapted, ADAPTERS)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "initial_state" in name or name.startswith("connector."):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return adapted


@pytest.fixture
def folder(adapted, config, tmp_path):
    path = tmp_path / "adapter"
    save_adapter(adapted, path, config=config, adapters=ADAPTERS, trained=["connector"], start="somewhere")
    return path


@torch.no_grad()
def outputs(model):
    """Of frames and of text that is read from the beginning."""
    frames = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    hidden, _ = model.backbone(model.backbone.embed(torch.arange(9)), BOUNDS)
    runner = model.backbone.runner()
    read = read_texts(runner, blank(runner, 2), [[1, 2, 3], [4]])
    return model.encode(frames, 8), model.backbone.logits(hidden), read.hidden


def test_an_applied_adapter_computes_what_was_trained(model, adapted, folder, config):
    fresh = copy.deepcopy(model)
    apply_adapter(fresh, folder, config)
    torch.testing.assert_close(outputs(fresh), outputs(adapted), rtol=1e-3, atol=1e-3)
    assert all((one - other).abs().max() > 1e-2 for one, other in zip(outputs(fresh), outputs(model), strict=True))


def test_a_lora_is_merged_before_matrices_are_rounded(model, folder, config, tmp_path):
    save_model(model, config, tmp_path / "model")
    found, changed = saved_model(tmp_path / "model", ["quantize=int8"], adapter=str(folder))
    expected = copy.deepcopy(model)
    apply_adapter(expected, folder, config)
    expected.backbone.quantize("int8")
    assert changed.quantize == "int8"
    for name, tensor in expected.backbone.state_dict().items():
        assert torch.equal(found.backbone.state_dict()[name], tensor), name


def test_a_merged_model_is_saved_and_loaded_with_its_state(adapted, config, tmp_path):
    expected = outputs(adapted)
    merge_adapters(adapted)
    save_model(adapted, config, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model")
    torch.testing.assert_close(outputs(loaded), expected, rtol=1e-3, atol=1e-3)
    assert "backbone.initial_state.wkv" in loaded.state_dict()


def test_peft_reads_the_lora_of_a_slot(model, adapted, folder):
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model.backbone), str(folder / "backbone"))
    state = adapted.backbone.init_state(2)
    x = model.backbone.embed(torch.arange(9))
    with torch.no_grad():
        torch.testing.assert_close(theirs(x, BOUNDS, state)[0], adapted.backbone(x, BOUNDS)[0])


def test_an_adapter_that_peft_wrote_is_read(model, config, tmp_path):
    lora = peft.LoraConfig(r=2, target_modules=["att.value"], init_lora_weights=False, use_dora=True)
    theirs = peft.get_peft_model(copy.deepcopy(model.backbone), lora)
    theirs.save_pretrained(str(tmp_path))
    ours = copy.deepcopy(model)
    apply_adapter(ours, tmp_path, config)
    x = model.backbone.embed(torch.arange(9))
    with torch.no_grad():
        torch.testing.assert_close(ours.backbone(x, BOUNDS)[0], theirs(x, BOUNDS)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_with_the_authors_states_is_an_adapter(model, config, tmp_path, ending):
    state = torch.randn(2, 1, 2, 16, 16)
    tensors = model.backbone.export_state({"wkv": state})
    assert tensors.keys() == {"blocks.0.att.time_state", "blocks.1.att.time_state"}
    path = tmp_path / f"state.{ending}"
    torch.save(tensors, path) if ending == "pth" else save_file(tensors, path)
    tuned = copy.deepcopy(model)
    apply_adapter(tuned, path, config)
    assert torch.equal(tuned.backbone.init_state(3)["wkv"], state.expand(-1, 3, -1, -1, -1))


def test_the_folder_is_as_small_as_what_was_learned(adapted, folder):
    learned = sum(parameter.nbytes for name, parameter in adapted.named_parameters()
                  if "lora_" in name or "initial_state" in name or name.startswith("connector."))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert learned < size < learned + 30_000
    assert not list(folder.parent.glob(".adapter*"))


def test_the_same_adapter_is_written_as_the_same_bytes(adapted, folder, config):
    before = adapter_hash(folder)
    save_adapter(adapted, folder, config=config, adapters=ADAPTERS, trained=["connector"], start="somewhere")
    assert adapter_hash(folder) == before


def test_the_base_is_known_in_any_dtype_but_not_after_training(model):
    wide = base_hash(model.backbone)
    assert base_hash(copy.deepcopy(model.backbone).bfloat16()) == wide
    changed = copy.deepcopy(model.backbone)
    with torch.no_grad():
        changed.blocks[0].ffn.key.weight[0, 0] += 0.1
    assert base_hash(changed) != wide


def test_an_adapter_of_another_base_model_is_refused_unless_wanted(make_model, folder, config):
    other = make_model()
    with torch.no_grad():
        other.vision.patch.weight.add_(1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(AuroraError, match=r"belongs to another base model: the weights of vision are not .*--any-base"):
        apply_adapter(other, folder, config)
    assert other.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    apply_adapter(other, folder, config, any_base=True)


def test_an_adapter_is_not_applied_twice(model, folder, config):
    twice = copy.deepcopy(model)
    apply_adapter(twice, folder, config)
    with pytest.raises(AuroraError, match=r"the weights of vision, backbone are not those"):
        apply_adapter(twice, folder, config)


def test_an_adapter_of_another_backbone_is_refused(make_model, folder, make_config):
    parts = {"backbone": {"name": "mamba2", "hidden_size": 32, "layers": 2, "head_size": 16, "state_size": 8}}
    with pytest.raises(AuroraError, match="is an adapter for backbone 'rwkv6', and this model has 'mamba2'"):
        apply_adapter(make_model(**parts), folder, make_config(**parts))


def test_an_adapter_of_another_size_is_refused(make_model, folder, make_config):
    parts = {"backbone": {"name": "rwkv6", "hidden_size": 64, "layers": 2, "head_size": 16}}
    with pytest.raises(AuroraError, match=r"does not fit|is not an adapter of this"):
        apply_adapter(make_model(**parts), folder, make_config(**parts), any_base=True)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def drop(path):
    tensors = load_file(path)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("adapter.json", lambda path: path.write_text("{"), r"adapter\.json cannot be read"),
        ("adapter.json", lambda path: path.write_text("{}"), r"adapter\.json cannot be read: KeyError 'parts'"),
        ("adapter.json", lambda path: path.unlink(), r"is not an adapter: .* neither adapter\.json nor "),
        ("backbone/adapter_model.safetensors", cut, "not a readable safetensors file.* may be truncated"),
        ("backbone/adapter_model.safetensors", drop, r"is not an adapter of this RWKV6: missing: "),
        ("backbone/adapter_model.safetensors", lambda path: path.unlink(), "no weights at .*adapter_model"),
        ("backbone/adapter_config.json", lambda path: path.write_text("[]"), "cannot be read"),
        ("backbone/adapter_config.json", lambda path: path.write_text('{"peft_type": "IA3"}'), "of the type 'IA3'"),
        ("backbone/adapter_config.json",
         lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": ["q_proj"]})),
         "is not an adapter of RWKV6: "),
        ("backbone/state.safetensors", cut, "not a readable safetensors file"),
        ("backbone/state.safetensors", drop, "1 tuned initial states .* do not fit: this backbone has 2 layers"),
        ("connector/weights.safetensors", drop, "does not fit MlpConnector"),
    ],
)
def test_a_broken_adapter_is_one_clear_error(model, folder, config, name, change, message):
    change(folder / name)
    with pytest.raises(AuroraError, match=message):
        apply_adapter(copy.deepcopy(model), folder, config)


def test_a_path_that_leads_nowhere_is_no_adapter(model, config, tmp_path):
    with pytest.raises(AuroraError, match="is not an adapter"):
        apply_adapter(model, tmp_path / "nothing", config)


def test_a_state_is_refused_by_a_backbone_without_such_states(make_model, make_config, tmp_path, folder):
    parts = {"backbone": {"name": "mamba2", "hidden_size": 32, "layers": 2, "head_size": 16, "state_size": 8}}
    path = tmp_path / "state.safetensors"
    shutil.copy(folder / "backbone/state.safetensors", path)
    with pytest.raises(AuroraError, match=r"blocks\.0\.att\.time_state .* does not fit Mamba2, whose states are conv"):
        apply_adapter(make_model(**parts), path, make_config(**parts))


def test_a_memory_that_grows_has_no_initial_state(model):
    backbone = copy.deepcopy(model.backbone)
    backbone.constant_state = False
    assert isinstance(backbone, Backbone)
    with pytest.raises(AuroraError, match="grows with what is read"):
        backbone.tune_state("t")


def test_without_peft_a_lora_says_what_to_install(model, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "aurora.weights.lora", raising=False)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AuroraError, match=r"needs the package 'peft'.*pip install 'auroralong\[lora\]'"):
        attach_adapters("a", copy.deepcopy(model), ADAPTERS)
