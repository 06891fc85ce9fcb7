"""Gated linear attention and Gated DeltaNet against the equations of their papers, on random weights in the layout of
flash-linear-attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aurora.errors import AuroraError
from aurora.registry import BACKBONE

LAYERS, HEADS, KEYS, VALUES, VOCAB, CONV = 2, 3, 8, 16, 30, 4
TOKENS = torch.randint(0, VOCAB, (12,), generator=torch.Generator().manual_seed(5))
Shapes = dict[str, tuple[int, ...]]


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def swish(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def gla_shapes(width: int) -> Shapes:
    """Of one layer of a `GLAForCausalLM`."""
    return {
        "q_proj.weight": (HEADS * KEYS, width), "k_proj.weight": (HEADS * KEYS, width), "v_proj.weight": (width, width),
        "g_proj.weight": (width, width), "gk_proj.0.weight": (6, width), "gk_proj.1.weight": (HEADS * KEYS, 6),
        "gk_proj.1.bias": (HEADS * KEYS,), "g_norm_swish_gate.weight": (VALUES,), "o_proj.weight": (width, width),
    }


def gla_attention(p: dict[str, Tensor], a: Tensor, memory: Any) -> tuple[Tensor, Any]:
    """One position by arXiv 2312.06635, section 4."""
    state = zeros(HEADS, KEYS, VALUES) if memory is None else memory
    q, k = (p[f"attn.{name}_proj.weight"] @ a for name in "qk")
    v, g = ((p[f"attn.{name}_proj.weight"] @ a).view(HEADS, VALUES) for name in "vg")
    logit = p["attn.gk_proj.1.weight"] @ (p["attn.gk_proj.0.weight"] @ a) + p["attn.gk_proj.1.bias"]
    retained = torch.sigmoid(logit) ** (1 / 16)
    q, k, retained = (part.view(HEADS, KEYS) for part in (q * KEYS**-0.5, k, retained))
    state = retained[..., None] * state + k[..., None] * v[:, None]
    y = torch.stack([q[h] @ state[h] for h in range(HEADS)])
    y = rms(y, p["attn.g_norm_swish_gate.weight"]) * swish(g)
    return p["attn.o_proj.weight"] @ y.flatten(), state


def delta_shapes(width: int) -> Shapes:
    """Of one layer of a `GatedDeltaNetForCausalLM`."""
    shapes: Shapes = {
        "A_log": (HEADS,), "dt_bias": (HEADS,), "a_proj.weight": (HEADS, width), "b_proj.weight": (HEADS, width),
        "g_proj.weight": (HEADS * VALUES, width), "o_norm.weight": (VALUES,), "o_proj.weight": (width, HEADS * VALUES),
    }
    for name, size in (("q", KEYS), ("k", KEYS), ("v", VALUES)):
        shapes |= {f"{name}_proj.weight": (HEADS * size, width), f"{name}_conv1d.weight": (HEADS * size, 1, CONV)}
    return shapes


def delta_attention(p: dict[str, Tensor], a: Tensor, memory: Any) -> tuple[Tensor, Any]:
    """One position by arXiv 2412.06464, sections 3.1 and 3.4."""
    blank = {name: [zeros(len(p[f"attn.{name}_proj.weight"]))] * CONV for name in "qkv"}
    state, past = (zeros(HEADS, VALUES, KEYS), blank) if memory is None else memory
    past = {name: [*past[name][1:], p[f"attn.{name}_proj.weight"] @ a] for name in "qkv"}
    read = {}
    for name in "qkv":
        taps = p[f"attn.{name}_conv1d.weight"]
        read[name] = swish(sum(taps[:, 0, w] * past[name][w] for w in range(CONV))).view(HEADS, -1)
    q, k, v = unit(read["q"]) / KEYS**0.5, unit(read["k"]), read["v"]
    strength = torch.sigmoid(p["attn.b_proj.weight"] @ a)
    step = torch.log(1 + torch.exp(p["attn.a_proj.weight"] @ a + p["attn.dt_bias"]))
    retained = torch.exp(-torch.exp(p["attn.A_log"]) * step)
    outputs, heads = [], []
    for h in range(HEADS):
        erased = torch.eye(KEYS, dtype=torch.float64) - strength[h] * torch.outer(k[h], k[h])
        heads.append(retained[h] * state[h] @ erased + strength[h] * torch.outer(v[h], k[h]))
        outputs.append(heads[h] @ q[h])
    gate = swish((p["attn.g_proj.weight"] @ a).view(HEADS, VALUES))
    y = rms(torch.stack(outputs), p["attn.o_norm.weight"]) * gate
    return p["attn.o_proj.weight"] @ y.flatten(), (torch.stack(heads), past)


class Case(NamedTuple):
    """A backbone, and how flash-linear-attention names and its authors compute it."""

    name: str
    sizes: dict[str, int]
    shapes: Callable[[int], Shapes]
    attention: Callable[..., tuple[Tensor, Any]]
    vectors_start: float  # what is added to vectors that are not norms, so that decays are not all alike
    parameters: int  # at the default sizes, with 32,000 tokens

    def __str__(self) -> str:  # the test's name
        return self.name

    def build(self, **options: Any) -> Any:
        return BACKBONE.build({"name": self.name, **self.sizes, **options}, vocab_size=VOCAB)

    def layout(self) -> Shapes:
        """The names and shapes of a checkpoint of flash-linear-attention, written down from one."""
        width, ffn = self.sizes["hidden_size"], self.sizes["ffn_size"]
        shapes: Shapes = {"model.embeddings.weight": (VOCAB, width), "model.norm.weight": (width,),
                          "lm_head.weight": (VOCAB, width)}
        for i in range(LAYERS):
            block = f"model.layers.{i}."
            shapes |= {f"{block}attn.{name}": shape for name, shape in self.shapes(width).items()}
            shapes |= {f"{block}attn_norm.weight": (width,), f"{block}mlp_norm.weight": (width,),
                       f"{block}mlp.gate_proj.weight": (ffn, width), f"{block}mlp.up_proj.weight": (ffn, width),
                       f"{block}mlp.down_proj.weight": (width, ffn)}
        return shapes

    def weights(self) -> dict[str, Tensor]:
        """A checkpoint in which every tensor matters."""
        generator = torch.Generator().manual_seed(0)
        weights = {}
        for name, shape in self.layout().items():
            x = torch.randn(shape, generator=generator)
            weights[name] = (1 + 0.2 * x if "norm" in name else x / shape[-1] ** 0.5 if len(shape) > 1
                             else x + self.vectors_start)
        return weights

    def logits(self, z: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """[T, V] of one sequence, position by position."""
        memory: list[Any] = [None] * LAYERS
        rows = []
        for token in tokens:
            x = z["model.embeddings.weight"][token]
            for i in range(LAYERS):
                p = {name.removeprefix(f"model.layers.{i}."): w for name, w in z.items() if f"layers.{i}." in name}
                mixed, memory[i] = self.attention(p, rms(x, p["attn_norm.weight"]), memory[i])
                x = x + mixed
                f = rms(x, p["mlp_norm.weight"])
                up = swish(p["mlp.gate_proj.weight"] @ f) * (p["mlp.up_proj.weight"] @ f)
                x = x + p["mlp.down_proj.weight"] @ up
            rows.append(z["lm_head.weight"] @ rms(x, z["model.norm.weight"]))
        return torch.stack(rows)


GLA = Case("gla", {"hidden_size": 48, "layers": LAYERS, "head_size": VALUES, "ffn_size": 40, "gate_rank": 6},
           gla_shapes, gla_attention, 0.0, 1_365_514_240)
DELTA = Case("gated_deltanet", {"hidden_size": 40, "layers": LAYERS, "head_size": KEYS, "heads": HEADS, "ffn_size": 24},
             delta_shapes, delta_attention, -1.0, 1_387_348_732)
every_case = pytest.mark.parametrize("case", [GLA, DELTA], ids=str)


def saved(weights: dict[str, Tensor], folder: Path) -> str:
    save_file(weights, folder / "model.safetensors")
    return str(folder / "model.safetensors")


@every_case
def test_logits_and_all_gradients_are_those_of_the_plain_equations(case: Case, tmp_path: Path) -> None:
    weights = {name: x.double().requires_grad_() for name, x in case.weights().items()}
    sequences = TOKENS[:9], TOKENS[9:]
    expected = torch.cat([case.logits(weights, tokens) for tokens in sequences])
    pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    (expected * pull).sum().backward()

    model = case.build().double()
    model.load_base(saved(case.weights(), tmp_path))
    hidden, _ = model(model.embed(TOKENS), torch.tensor([0, 9, 12]))
    actual = model.logits(hidden)
    (actual * pull).sum().backward()
    torch.testing.assert_close(actual, expected)
    for name, parameter in model.named_parameters():
        theirs = name if name.startswith("lm_head") else f"model.{name}"
        torch.testing.assert_close(parameter.grad, weights[theirs].grad, rtol=1e-6, atol=1e-9, msg=name)


@every_case
def test_what_is_saved_has_the_layout_of_flash_linear_attention(case: Case, tmp_path: Path) -> None:
    case.build().save_base(str(tmp_path / "model.safetensors"))
    found = load_file(tmp_path / "model.safetensors")
    assert {name: tuple(x.shape) for name, x in found.items()} == case.layout()


@every_case
def test_the_defaults_are_the_published_sizes(case: Case) -> None:
    with torch.device("meta"):
        model = BACKBONE.build({"name": case.name}, vocab_size=32000)
    assert sum(p.numel() for p in model.parameters()) == case.parameters


@pytest.mark.parametrize(("case", "lost"), [
    (GLA, "model.embeddings.weight"), (GLA, "lm_head.weight"), (GLA, "model.layers.1.attn.gk_proj.1.bias"),
    (DELTA, "model.layers.1.attn.dt_bias"),
], ids=str)
def test_a_truncated_checkpoint_names_what_is_missing(case: Case, lost: str, tmp_path: Path) -> None:
    weights = case.weights()
    del weights[lost]
    with pytest.raises(AuroraError, match=f"missing: {lost.removeprefix('model.')}"):
        case.build().load_base(saved(weights, tmp_path))


@every_case
def test_another_layout_is_refused(case: Case, tmp_path: Path) -> None:
    other = BACKBONE.build({"name": "rwkv6", "hidden_size": 16, "layers": 1, "head_size": 16}, vocab_size=VOCAB)
    other.save_base(str(tmp_path / "model.pth"))
    with pytest.raises(AuroraError, match=r"another layout.* flash-linear-attention are read"):
        case.build().load_base(str(tmp_path / "model.pth"))


@pytest.mark.parametrize(("case", "option", "message"), [
    *((GLA, {"expand_k": expand}, rf"expand_k {expand}.* whole number") for expand in (0.3, 0.0, -1.0)),
    (DELTA, {"expand_v": 0.3}, r"expand_v 0\.3.* whole number"),
    (DELTA, {"conv_size": 1}, "conv_size is 1; it must be a whole number ≥ 2"),
    (DELTA, {"heads": 0}, "heads is 0; it must be a whole number ≥ 1"),
], ids=str)
def test_sizes_that_make_no_layer_are_refused(case: Case, option: dict[str, Any], message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        case.build(**option)


# ---- of gated linear attention


def test_a_norm_apart_from_its_gate_is_read_too(tmp_path: Path) -> None:
    one, other = GLA.build(), GLA.build()
    one.load_base(saved(GLA.weights(), tmp_path))
    other.load_base(saved({name.replace("g_norm_swish_gate", "g_norm"): x for name, x in GLA.weights().items()},
                          tmp_path))
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in one.state_dict().items())


def test_a_gate_that_never_forgets_has_a_gradient() -> None:
    model = GLA.build()
    torch.nn.init.constant_(model.layers[0].attn.gk_proj[1].bias, 500.0)
    hidden, _ = model(model.embed(TOKENS), torch.tensor([0, len(TOKENS)]))
    hidden.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.layers.parameters())


# ---- of Gated DeltaNet


def test_a_checkpoint_of_gated_linear_attention_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match=r"missing: .*unexpected: .*gk_proj"):
        DELTA.build().load_base(saved(GLA.weights(), tmp_path))


def test_heads_take_three_quarters_of_the_width_by_default() -> None:
    assert DELTA.build(hidden_size=64, heads=None).layers[0].attn.heads == 6
    with pytest.raises(AuroraError, match="hidden_size 42 is not a multiple of head_size 8; 40 and 48 would be"):
        DELTA.build(hidden_size=42, heads=None)


def test_initial_steps_and_rates_are_those_of_mamba() -> None:
    attn = DELTA.build(head_size=2, heads=300).layers[0].attn
    step = torch.nn.functional.softplus(attn.dt_bias)
    assert 0.9e-3 <= step.min() <= 1.5e-3 and 0.07 <= step.max() <= 0.101
    assert 0 < attn.A_log.exp().min() <= 1 and 15 <= attn.A_log.exp().max() <= 16
