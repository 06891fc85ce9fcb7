"""Gated linear attention against the equations of its paper, on random weights in the layout of
flash-linear-attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aurora.errors import AuroraError
from aurora.registry import BACKBONE

WIDTH, LAYERS, HEADS, KEYS, VALUES, FFN, VOCAB = 48, 2, 3, 8, 16, 40, 30
SIZES = {"hidden_size": WIDTH, "layers": LAYERS, "head_size": VALUES, "ffn_size": FFN, "gate_rank": 6}
TOKENS = torch.randint(0, VOCAB, (12,), generator=torch.Generator().manual_seed(5))


def layout() -> dict[str, tuple[int, ...]]:
    """The names and shapes of a `GLAForCausalLM` of flash-linear-attention, written down from one."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embeddings.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,), "lm_head.weight": (VOCAB, WIDTH),
    }
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        shapes |= {
            f"{block}attn_norm.weight": (WIDTH,), f"{block}mlp_norm.weight": (WIDTH,),
            f"{block}attn.q_proj.weight": (HEADS * KEYS, WIDTH), f"{block}attn.k_proj.weight": (HEADS * KEYS, WIDTH),
            f"{block}attn.v_proj.weight": (WIDTH, WIDTH), f"{block}attn.g_proj.weight": (WIDTH, WIDTH),
            f"{block}attn.gk_proj.0.weight": (6, WIDTH), f"{block}attn.gk_proj.1.weight": (HEADS * KEYS, 6),
            f"{block}attn.gk_proj.1.bias": (HEADS * KEYS,), f"{block}attn.g_norm_swish_gate.weight": (VALUES,),
            f"{block}attn.o_proj.weight": (WIDTH, WIDTH), f"{block}mlp.gate_proj.weight": (FFN, WIDTH),
            f"{block}mlp.up_proj.weight": (FFN, WIDTH), f"{block}mlp.down_proj.weight": (WIDTH, FFN),
        }
    return shapes


def random_weights() -> dict[str, Tensor]:
    """A checkpoint in which every tensor matters."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in layout().items():
        x = torch.randn(shape, generator=generator)
        weights[name] = 1 + 0.2 * x if "norm" in name else x / shape[-1] ** 0.5 if len(shape) == 2 else x
    return weights


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file(random_weights(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def build(**options: Any) -> Any:
    return BACKBONE.build({"name": "gla", **SIZES, **options}, vocab_size=VOCAB)


def plain(z: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits [T, V] of one sequence, position by position, from arXiv 2312.06635, section 4."""

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight

    def swish(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    states = [torch.zeros(HEADS, KEYS, VALUES, dtype=torch.float64)] * LAYERS
    rows = []
    for token in tokens:
        x = z["model.embeddings.weight"][token]
        for i in range(LAYERS):
            p = {name.removeprefix(f"model.layers.{i}."): w for name, w in z.items() if f"layers.{i}." in name}
            a = rms(x, p["attn_norm.weight"])
            q, k = (p[f"attn.{name}_proj.weight"] @ a for name in "qk")
            v, g = ((p[f"attn.{name}_proj.weight"] @ a).view(HEADS, VALUES) for name in "vg")
            logit = p["attn.gk_proj.1.weight"] @ (p["attn.gk_proj.0.weight"] @ a) + p["attn.gk_proj.1.bias"]
            retained = torch.sigmoid(logit) ** (1 / 16)
            q, k, retained = (part.view(HEADS, KEYS) for part in (q * KEYS**-0.5, k, retained))
            states[i] = retained[..., None] * states[i] + k[..., None] * v[:, None]
            y = torch.stack([q[h] @ states[i][h] for h in range(HEADS)])
            y = rms(y, p["attn.g_norm_swish_gate.weight"]) * swish(g)
            x = x + p["attn.o_proj.weight"] @ y.flatten()
            f = rms(x, p["mlp_norm.weight"])
            x = x + p["mlp.down_proj.weight"] @ (swish(p["mlp.gate_proj.weight"] @ f) * (p["mlp.up_proj.weight"] @ f))
        rows.append(z["lm_head.weight"] @ rms(x, z["model.norm.weight"]))
    return torch.stack(rows)


def test_logits_and_all_gradients_are_those_of_the_plain_equations(checkpoint: Path) -> None:
    weights = {name: x.double().requires_grad_() for name, x in random_weights().items()}
    sequences = TOKENS[:9], TOKENS[9:]
    expected = torch.cat([plain(weights, tokens) for tokens in sequences])
    pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    (expected * pull).sum().backward()

    model = build().double()
    model.load_base(str(checkpoint))
    hidden, _ = model(model.embed(TOKENS), torch.tensor([0, 9, 12]))
    actual = model.logits(hidden)
    (actual * pull).sum().backward()
    torch.testing.assert_close(actual, expected)
    for name, parameter in model.named_parameters():
        theirs = name if name.startswith("lm_head") else f"model.{name}"
        torch.testing.assert_close(parameter.grad, weights[theirs].grad, rtol=1e-6, atol=1e-9, msg=name)


def test_what_is_saved_has_the_layout_of_flash_linear_attention(tmp_path: Path) -> None:
    build().save_base(str(tmp_path / "model.safetensors"))
    assert {name: tuple(x.shape) for name, x in load_file(tmp_path / "model.safetensors").items()} == layout()


def test_the_defaults_are_the_sizes_of_the_published_model() -> None:
    with torch.device("meta"):
        model = BACKBONE.build({"name": "gla"}, vocab_size=32000)
    assert sum(p.numel() for p in model.parameters()) == 1_365_514_240


def test_a_norm_apart_from_its_gate_is_read_too(tmp_path: Path, checkpoint: Path) -> None:
    renamed = {name.replace("g_norm_swish_gate", "g_norm"): x for name, x in random_weights().items()}
    save_file(renamed, tmp_path / "unfused.safetensors")
    one, other = build(), build()
    one.load_base(str(checkpoint))
    other.load_base(str(tmp_path / "unfused.safetensors"))
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in one.state_dict().items())


@pytest.mark.parametrize("lost", ["model.embeddings.weight", "lm_head.weight", "model.layers.1.attn.gk_proj.1.bias"])
def test_a_truncated_checkpoint_names_what_is_missing(lost: str, tmp_path: Path) -> None:
    weights = random_weights()
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(AuroraError, match=f"missing: {lost.removeprefix('model.')}"):
        build().load_base(str(tmp_path / "model.safetensors"))


def test_another_layout_is_refused(tmp_path: Path) -> None:
    other = BACKBONE.build({"name": "rwkv6", "hidden_size": 16, "layers": 1, "head_size": 16}, vocab_size=VOCAB)
    other.save_base(str(tmp_path / "model.pth"))
    with pytest.raises(AuroraError, match=r"another layout.* flash-linear-attention are read"):
        build().load_base(str(tmp_path / "model.pth"))


@pytest.mark.parametrize("expand_k", [0.3, 0.0, -1.0])
def test_a_key_width_that_is_no_whole_number_is_refused(expand_k: float) -> None:
    with pytest.raises(AuroraError, match=rf"expand_k {expand_k}.* whole number"):
        build(expand_k=expand_k)


def test_a_gate_that_never_forgets_has_a_gradient() -> None:
    model = build()
    torch.nn.init.constant_(model.layers[0].attn.gk_proj[1].bias, 500.0)
    hidden, _ = model(model.embed(TOKENS), torch.tensor([0, len(TOKENS)]))
    hidden.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.layers.parameters())
