"""Models of transformers as backbones, compared with transformers itself; wrong options are one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from aurora.errors import AuroraError
from aurora.interfaces import Backbone
from aurora.registry import BACKBONE
from aurora.testing.backbone import LENGTHS, bounds

VOCAB = 61
GEMMA_LIKE = {"num_attention_heads": 4, "head_dim": 8, "sliding_window": 9, "intermediate_size": 48}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("hf", {"state_size": 8}),
    "mamba2": ("hf", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8}),
    "falcon_mamba": ("hf", {"state_size": 8}),
    "recurrent_gemma": ("hf", {"num_attention_heads": 4, "attention_window_size": 8, "intermediate_size": 48}),
    "xlstm": ("hf", {"hidden_size": 128, "num_heads": 4}),  # its own cache needs as much
    "llama": ("transformer", {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}),
    "qwen2": ("transformer", {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "gemma2": ("transformer", {**GEMMA_LIKE, "num_key_value_heads": 2}),
    "gpt_neox": ("transformer", {"num_attention_heads": 4, "intermediate_size": 48}),
    "mixtral": ("transformer", {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}),
    "cohere": ("transformer", {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}),
}


def save(model_type: str, folder: Path, **more: Any) -> Any:
    """A model of transformers with random weights that are nowhere zero, and its folder."""
    torch.manual_seed(0)
    layers = 3 if model_type == "recurrent_gemma" else 2
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": layers, **MODELS[model_type][1], **more}
    config = AutoConfig.for_model(model_type, pad_token_id=None, bos_token_id=None, eos_token_id=None, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def load(model_type: str, folder: Path, vocab_size: int = VOCAB) -> Backbone:
    backbone = BACKBONE.build({"name": MODELS[model_type][0], "path": str(folder)}, vocab_size=vocab_size).eval()
    backbone.load_base(str(folder))
    return backbone


def tokens(count: int = sum(LENGTHS)) -> Tensor:
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Backbone]:
    folder = tmp_path_factory.mktemp(request.param)
    return save(request.param, folder), load(request.param, folder)


@torch.no_grad()
def test_a_packed_row_gives_what_transformers_gives_for_each_sequence(pair: tuple[Any, Backbone]) -> None:
    model, backbone = pair
    hidden, _ = backbone(backbone.embed(tokens()), bounds(*LENGTHS))
    expected = [model(input_ids=part[None]).logits[0] for part in torch.split(tokens(), LENGTHS)]
    torch.testing.assert_close(backbone.logits(hidden), torch.cat(expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_steps_say_what_transformers_generates(pair: tuple[Any, Backbone]) -> None:
    model, backbone = pair
    prompts = tokens(18).view(2, 9)
    expected = [model.generate(prompt[None], max_new_tokens=12, do_sample=False)[0, 9:] for prompt in prompts]
    hidden, state = backbone.prefill(backbone.embed(prompts.flatten()), bounds(9, 9))
    said = []
    for _ in range(12):
        said.append(backbone.logits(hidden).argmax(-1))
        hidden, state = backbone.step(backbone.embed(said[-1]), state)
    assert torch.equal(torch.stack(said, dim=1), torch.stack(expected))


def test_gradients_are_those_of_transformers(pair: tuple[Any, Backbone]) -> None:
    model, backbone = pair
    hidden, _ = backbone(backbone.embed(tokens()), bounds(*LENGTHS))
    backbone.logits(hidden).log_softmax(-1)[:, 3].sum().backward()
    sum(model(input_ids=part[None], use_cache=False).logits.log_softmax(-1)[..., 3].sum()
        for part in torch.split(tokens(), LENGTHS)).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in backbone.named_parameters():
        theirs = backbone._their_name(name)
        torch.testing.assert_close(parameter.grad, expected[theirs], rtol=1e-3, atol=2e-3, msg=name)
    model.zero_grad()
    backbone.zero_grad()


@pytest.mark.parametrize("model_type", ["mamba2", "llama"])
def test_transformers_reads_what_save_base_writes(model_type: str, tmp_path: Path) -> None:
    model = save(model_type, tmp_path / "theirs")
    load(model_type, tmp_path / "theirs").save_base(str(tmp_path / "ours"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("model_type", ["mamba", "llama"])
def test_embeddings_that_no_token_uses_are_kept_but_never_said(model_type: str, tmp_path: Path) -> None:
    save(model_type, tmp_path, vocab_size=VOCAB + 3)
    backbone = load(model_type, tmp_path)
    assert backbone.vocab_size == VOCAB and backbone.logits(torch.randn(2, 32)).shape == (2, VOCAB)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("hf", {"model_type": "llama"}, r"llama is not recurrent; take backbone=transformer"),
        ("hf", {"model_type": "jamba"}, r"jamba mixes recurrent layers with attention.* grows.* falcon_mamba, mamba"),
        ("hf", {"model_type": "qwen3_next"}, r"qwen3_next mixes recurrent layers with attention"),
        ("hf", {"model_type": "rwkv"}, r"backbone=rwkv6 or rwkv7"),
        ("hf", {"model_type": "mambba"}, r"no model_type 'mambba'. Did you mean 'mamba'\?$"),
        ("hf", {"config": {"state_sise": 8}}, r"no key 'state_sise' .*'mamba2'. Did you mean 'state_size'"),
        ("hf", {"config": {"state_size": "big"}}, r"transformers refuses mamba2.*state_size"),
        ("hf", {"config": {"vocab_size": 5}}, r"config.vocab_size is 5, the tokenizer has 61 tokens"),
        ("hf", {"hidden_size": 40, "head_size": 32}, r"hidden_size 40 gives 80 .* not a multiple of head_size 32"),
        ("hf", {"path": "/nowhere"}, r"/nowhere holds no config.json"),
        ("transformer", {"model_type": "mamba2"}, r"mamba2.*linear_attention.*backbone=hf"),
        ("transformer", {"model_type": "qwen3_next", "layers": 4}, r"qwen3_next has layers .*linear_attention"),
        ("transformer", {"model_type": "siglip"}, r"'siglip' is not a causal language model"),
        ("transformer", {"model_type": "bloom", "layers": 2}, r"bloom cannot read .*: it takes no position_ids"),
        ("transformer", {"model_type": "xglm", "layers": 2}, r"xglm cannot read packed rows: .*way of their own"),
        ("transformer", {"model_type": "gpt_oss", "layers": 2}, r"gpt_oss cannot read packed rows: .*sinks"),
        ("transformer", {"model_type": "roberta", "layers": 2}, r"roberta .*an encoder, which looks ahead"),
        ("transformer", {"model_type": "gemma3", "layers": 2}, r"gemma3 has several parts; .*a gemma3_text"),
    ],
)
def test_options_that_make_no_sense_are_one_line(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(AuroraError, match=said) as error, torch.device("meta"):
        BACKBONE.build({"name": name, **options}, vocab_size=VOCAB)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "vocab_size", "said"),
    [
        ({"model_type": "mamba"}, VOCAB, r"holds a mamba2, not a mamba"),
        ({"hidden_size": 64}, VOCAB, r"hidden_size is 64, but .* has 32; give null"),
        ({"layers": 5}, VOCAB, r"layers is 5, but .* has 2"),
        ({"config": {"state_size": 8}}, VOCAB, r"either path or config"),
        ({}, VOCAB + 1, r"the tokenizer has 62 tokens, the model in .* only 61; .*tokenizer.path="),
    ],
)
def test_a_folder_contradicts_options(options: dict[str, Any], vocab_size: int, said: str, tmp_path: Path) -> None:
    save("mamba2", tmp_path)
    with pytest.raises(AuroraError, match=said):
        BACKBONE.build({"name": "hf", "path": str(tmp_path), **options}, vocab_size=vocab_size)


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    save("mamba", tmp_path / "mamba")
    save("mamba2", tmp_path / "mamba2")
    with pytest.raises(AuroraError, match="holds a mamba; this backbone 'hf' is a mamba2"):
        load("mamba2", tmp_path / "mamba2").load_base(str(tmp_path / "mamba"))


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    save("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AuroraError, match=r"whole llama: missing keys model.layers.1.mlp.up_proj.weight"):
        load("llama", tmp_path)


def test_a_folder_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    save("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AuroraError, match="holds no weights that transformers reads"):
        load("llama", tmp_path)


def test_code_of_a_folder_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(
        {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}))
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(AuroraError, match="itself knows"):
        BACKBONE.build({"name": "hf", "path": str(tmp_path)}, vocab_size=VOCAB)


@pytest.mark.parametrize("model_type", ["llama", "recurrent_gemma"])
def test_angles_stay_exact_in_bfloat16(model_type: str, tmp_path: Path) -> None:
    save(model_type, tmp_path)
    backbone = load(model_type, tmp_path)
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers() if "inv_freq" in name}
    after = dict(backbone.bfloat16().named_buffers())
    assert before and all(torch.equal(after[name], buffer) for name, buffer in before.items())
