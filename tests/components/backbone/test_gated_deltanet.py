"""Gated DeltaNet against the equations of its paper, on random weights in the layout of flash-linear-attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aurora.errors import AuroraError
from aurora.registry import BACKBONE

WIDTH, LAYERS, HEADS, KEYS, VALUES, FFN, VOCAB, CONV = 40, 2, 3, 8, 16, 24, 30, 4
SIZES = {"hidden_size": WIDTH, "layers": LAYERS, "head_size": KEYS, "heads": HEADS, "ffn_size": FFN}
TOKENS = torch.randint(0, VOCAB, (12,), generator=torch.Generator().manual_seed(5))


def layout() -> dict[str, tuple[int, ...]]:
    """The names and shapes of a `GatedDeltaNetForCausalLM` of flash-linear-attention, written down from one."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embeddings.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,), "lm_head.weight": (VOCAB, WIDTH),
    }
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        shapes |= {
            f"{block}attn_norm.weight": (WIDTH,), f"{block}mlp_norm.weight": (WIDTH,), f"{block}attn.A_log": (HEADS,),
            f"{block}attn.dt_bias": (HEADS,), f"{block}attn.a_proj.weight": (HEADS, WIDTH),
            f"{block}attn.b_proj.weight": (HEADS, WIDTH), f"{block}attn.g_proj.weight": (HEADS * VALUES, WIDTH),
            f"{block}attn.o_norm.weight": (VALUES,), f"{block}attn.o_proj.weight": (WIDTH, HEADS * VALUES),
            f"{block}mlp.gate_proj.weight": (FFN, WIDTH), f"{block}mlp.up_proj.weight": (FFN, WIDTH),
            f"{block}mlp.down_proj.weight": (WIDTH, FFN),
        }
        for name, size in (("q", KEYS), ("k", KEYS), ("v", VALUES)):
            shapes[f"{block}attn.{name}_proj.weight"] = (HEADS * size, WIDTH)
            shapes[f"{block}attn.{name}_conv1d.weight"] = (HEADS * size, 1, CONV)
    return shapes


def random_weights() -> dict[str, Tensor]:
    """A checkpoint in which every tensor matters."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in layout().items():
        x = torch.randn(shape, generator=generator)
        weights[name] = 1 + 0.2 * x if "norm" in name else x / shape[-1] ** 0.5 if len(shape) > 1 else x - 1
    return weights


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file(random_weights(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def build(**options: Any) -> Any:
    return BACKBONE.build({"name": "gated_deltanet", **SIZES, **options}, vocab_size=VOCAB)


def plain(z: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits [T, V] of one sequence, position by position, from arXiv 2412.06464, sections 3.1 and 3.4."""

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight

    def swish(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def unit(x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)

    states = [torch.zeros(HEADS, VALUES, KEYS, dtype=torch.float64)] * LAYERS
    past = [{name: [torch.zeros(z[f"model.layers.0.attn.{name}_proj.weight"].shape[0], dtype=torch.float64)] * CONV
             for name in "qkv"} for _ in range(LAYERS)]
    rows = []
    for token in tokens:
        x = z["model.embeddings.weight"][token]
        for i in range(LAYERS):
            p = {name.removeprefix(f"model.layers.{i}."): w for name, w in z.items() if f"layers.{i}." in name}
            a = rms(x, p["attn_norm.weight"])
            read = {}
            for name in "qkv":
                past[i][name] = [*past[i][name][1:], p[f"attn.{name}_proj.weight"] @ a]
                taps = p[f"attn.{name}_conv1d.weight"]
                read[name] = swish(sum(taps[:, 0, w] * past[i][name][w] for w in range(CONV))).view(HEADS, -1)
            q, k, v = unit(read["q"]) / KEYS**0.5, unit(read["k"]), read["v"]
            strength = torch.sigmoid(p["attn.b_proj.weight"] @ a)
            step = torch.log(1 + torch.exp(p["attn.a_proj.weight"] @ a + p["attn.dt_bias"]))
            retained = torch.exp(-torch.exp(p["attn.A_log"]) * step)
            outputs, heads = [], []
            for h in range(HEADS):
                erased = torch.eye(KEYS, dtype=torch.float64) - strength[h] * torch.outer(k[h], k[h])
                heads.append(retained[h] * states[i][h] @ erased + strength[h] * torch.outer(v[h], k[h]))
                outputs.append(heads[h] @ q[h])
            states[i] = torch.stack(heads)
            gate = swish((p["attn.g_proj.weight"] @ a).view(HEADS, VALUES))
            x = x + p["attn.o_proj.weight"] @ (rms(torch.stack(outputs), p["attn.o_norm.weight"]) * gate).flatten()
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


def test_the_defaults_are_the_sizes_of_flash_linear_attention() -> None:
    with torch.device("meta"):
        model = BACKBONE.build({"name": "gated_deltanet"}, vocab_size=32000)
    assert sum(p.numel() for p in model.parameters()) == 1_387_348_732


def test_a_truncated_checkpoint_names_what_is_missing(tmp_path: Path) -> None:
    weights = random_weights()
    del weights["model.layers.1.attn.dt_bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(AuroraError, match=r"missing: layers\.1\.attn\.dt_bias"):
        build().load_base(str(tmp_path / "model.safetensors"))


def test_a_checkpoint_of_gated_linear_attention_does_not_fit(tmp_path: Path) -> None:
    other = BACKBONE.build({"name": "gla", "hidden_size": 32, "layers": 1, "head_size": 16}, vocab_size=VOCAB)
    other.save_base(str(tmp_path / "model.safetensors"))
    with pytest.raises(AuroraError, match=r"missing: .*unexpected: .*gk_proj"):
        build().load_base(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"expand_v": 0.3}, r"expand_v 0\.3.* whole number"),
        ({"conv_size": 1}, "conv_size is 1; it must be a whole number ≥ 2"),
        ({"heads": 0}, "heads is 0; it must be a whole number ≥ 1"),
    ],
    ids=str,
)
def test_sizes_that_make_no_layer_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        build(**option)


def test_heads_take_three_quarters_of_the_width_by_default() -> None:
    assert build(hidden_size=64, heads=None).layers[0].attn.heads == 6
    with pytest.raises(AuroraError, match="hidden_size 42 is not a multiple of head_size 8; 40 and 48 would be"):
        build(hidden_size=42, heads=None)


def test_initial_steps_and_rates_are_those_of_mamba() -> None:
    attn = build(head_size=2, heads=300).layers[0].attn
    step = torch.nn.functional.softplus(attn.dt_bias)
    assert 0.9e-3 <= step.min() <= 1.5e-3 and 0.07 <= step.max() <= 0.101
    assert 0 < attn.A_log.exp().min() <= 1 and 15 <= attn.A_log.exp().max() <= 16
