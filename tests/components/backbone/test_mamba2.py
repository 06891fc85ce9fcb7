"""Mamba-2 against the implementation of `transformers`, on random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM

from aurora.errors import AuroraError
from aurora.registry import BACKBONE

SIZES = {"hidden_size": 48, "layers": 2, "head_size": 16, "state_size": 24}
VOCAB = 40
TOKENS = torch.randint(0, VOCAB, (37,), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def theirs() -> Any:
    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, head_dim=16, num_heads=6, state_size=24, n_groups=1,
        expand=2, chunk_size=16, tie_word_embeddings=True,
    )
    model = Mamba2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def checkpoint(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mamba2")
    theirs.save_pretrained(path)
    return path / "model.safetensors"


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> Any:
    model = build()
    model.load_base(str(checkpoint))
    return model


def build() -> Any:
    return BACKBONE.build({"name": "mamba2", **SIZES}, vocab_size=VOCAB)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.no_grad()
def test_a_prefill_gives_the_logits_of_transformers(ours: Any, theirs: Any) -> None:
    hidden, _ = ours(ours.embed(TOKENS), torch.tensor([0, len(TOKENS)]))
    assert_close(ours.logits(hidden), theirs(TOKENS[None], use_cache=False).logits[0])


@torch.no_grad()
def test_steps_give_the_logits_of_transformers(ours: Any, theirs: Any) -> None:
    state = ours.init_state(1)
    rows = []
    for token in TOKENS:
        hidden, state = ours.step(ours.embed(token[None]), state)
        rows.append(ours.logits(hidden))
    assert_close(torch.cat(rows), theirs(TOKENS[None], use_cache=False).logits[0])


def test_what_is_saved_is_read_by_transformers(ours: Any, theirs: Any, tmp_path: Path) -> None:
    theirs.config.save_pretrained(tmp_path)
    ours.save_base(str(tmp_path / "model.safetensors"))
    again = Mamba2ForCausalLM.from_pretrained(tmp_path).state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again[name], tensor), name


def test_the_authors_name_of_the_embeddings_is_read(theirs: Any, tmp_path: Path) -> None:
    renamed = {name.replace("embeddings.", "embedding."): x.clone() for name, x in theirs.state_dict().items()}
    assert "backbone.embedding.weight" in renamed
    save_file(renamed, tmp_path / "model.safetensors")
    model = build()
    model.load_base(str(tmp_path / "model.safetensors"))
    assert torch.equal(model.embeddings.weight, theirs.backbone.embeddings.weight)


def test_a_head_of_its_own_is_refused(theirs: Any, tmp_path: Path) -> None:
    weights = {name: x.clone() for name, x in theirs.state_dict().items()}
    weights["lm_head.weight"] += 1
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(AuroraError, match="tied"):
        build().load_base(str(tmp_path / "model.safetensors"))


def test_a_convolution_that_sees_nothing_else_is_refused() -> None:
    with pytest.raises(AuroraError, match="conv_size is 1; it must be a whole number ≥ 2"):
        BACKBONE.build({"name": "mamba2", **SIZES, "conv_size": 1}, vocab_size=VOCAB)
