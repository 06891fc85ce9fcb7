"""RWKV-7 against the authors' own inference package and against the recurrence as the paper writes it, both on random
weights."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aurora.errors import AuroraError
from aurora.registry import BACKBONE
from aurora.types import State

WIDTH, LAYERS, HEADS, HEAD, VOCAB = 128, 3, 2, 64, 50
SIZES = {"hidden_size": WIDTH, "layers": LAYERS, "head_size": HEAD}
TOKENS = torch.randint(0, VOCAB, (37,), generator=torch.Generator().manual_seed(5))

# The authors' package reads its version from the environment when it is imported, so each has a process of its own.
AUTHORS = """
import sys
import warnings
import torch
warnings.simplefilter("ignore")
from rwkv.model import RWKV
folder = sys.argv[1]
model = RWKV(model=f"{folder}/table", strategy="cpu fp32")
tokens, seen = torch.load(f"{folder}/ids.pt")
results = {}
logits, state = model.forward(tokens, None, full_output=True)
results |= {"logits": logits, **{f"state{i}": x for i, x in enumerate(state)}}
state, rows = None, []
for token in tokens:
    logits, state = model.forward([token], state)
    rows.append(logits)
results["steps"] = torch.stack(rows)
results["seen"] = model.forward([*tokens[:4], *seen, *tokens[4:]], None, full_output=True)[0]
torch.save(results, f"{folder}/results.pt")
"""


def authors_keys() -> dict[str, tuple[int, ...]]:
    """The names and shapes of an x070 checkpoint, written down from the authors' files."""
    width, ffn = WIDTH, 4 * WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "emb.weight": (VOCAB, width), "head.weight": (VOCAB, width), "ln_out.weight": (width,), "ln_out.bias": (width,),
        "blocks.0.ln0.weight": (width,), "blocks.0.ln0.bias": (width,),
    }
    for i in range(LAYERS):
        block = f"blocks.{i}."
        for norm in ("ln1", "ln2", "att.ln_x"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
        for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "v0", "k_k", "k_a"):
            shapes[f"{block}att.{name}"] = (1, 1, width)
        for letter, rank in (("w", 32), ("a", 32), ("v", 32), ("g", 32)):
            shapes |= {f"{block}att.{letter}1": (width, rank), f"{block}att.{letter}2": (rank, width)}
        for name in ("receptance", "key", "value", "output"):
            shapes[f"{block}att.{name}.weight"] = (width, width)
        shapes |= {
            f"{block}att.r_k": (HEADS, HEAD), f"{block}ffn.x_k": (1, 1, width),
            f"{block}ffn.key.weight": (ffn, width), f"{block}ffn.value.weight": (width, ffn),
        }
    return shapes


def random_weights() -> dict[str, Tensor]:
    """A checkpoint in which every tensor matters, with the value residual of the first layer that none reads."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in authors_keys().items():
        x = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            x = 0.2 * x + name.endswith("weight")
        elif len(shape) == 2 and not name.endswith(("r_k", "emb.weight")):
            x = x / shape[-1 if name.endswith("weight") else 0] ** 0.5
        elif ".x_" in name or name.endswith(("r_k", "k_a", "k_k")):
            x = 0.5 + 0.3 * x
        weights[name] = x
    return weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rwkv7") / "model.pth"
    torch.save(random_weights(), path)
    return path


@pytest.fixture(scope="module")
def seen() -> Tensor:
    """Embeddings [5, D] that are those of no token."""
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def authors(checkpoint: Path, seen: Tensor) -> dict[str, Tensor]:
    """What the authors' package computes; what is seen stands in its table behind the vocabulary."""
    folder, weights = checkpoint.parent, random_weights()
    torch.save({**weights, "emb.weight": torch.cat([weights["emb.weight"], seen])}, folder / "table.pth")
    torch.save((TOKENS.tolist(), list(range(VOCAB, VOCAB + len(seen)))), folder / "ids.pt")
    settings = {**os.environ, "RWKV_V7_ON": "1", "RWKV_JIT_ON": "0"}
    done = subprocess.run([sys.executable, "-c", AUTHORS, str(folder)], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results: dict[str, Tensor] = torch.load(folder / "results.pt", weights_only=True)
    return results


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> Any:
    model = build()
    model.load_base(str(checkpoint))
    return model.eval()


def build(**options: Any) -> Any:
    return BACKBONE.build({"name": "rwkv7", **SIZES, **options}, vocab_size=VOCAB)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert (actual - expected).abs().max() <= 5e-6 * expected.abs().max()


def assert_states_close(actual: State, authors: dict[str, Tensor]) -> None:
    """The authors keep three tensors per layer, the second as (value, key)."""
    for layer in range(LAYERS):
        att_shift, wkv, ffn_shift = (authors[f"state{3 * layer + part}"] for part in range(3))
        assert_close(actual["att_shift"][layer, 0], att_shift)
        assert_close(actual["wkv"][layer, 0], wkv.mT)
        assert_close(actual["ffn_shift"][layer, 0], ffn_shift)


@pytest.mark.slow
@torch.no_grad()
def test_a_prefill_gives_the_authors_logits_and_state(ours: Any, authors: dict[str, Tensor]) -> None:
    hidden, state = ours(ours.embed(TOKENS), torch.tensor([0, len(TOKENS)]), return_state=True)
    assert_close(ours.logits(hidden), authors["logits"])
    assert_states_close(state, authors)


@torch.no_grad()
def test_steps_give_the_authors_logits_and_state(ours: Any, authors: dict[str, Tensor]) -> None:
    state = ours.init_state(1)
    rows = []
    for token in TOKENS:
        hidden, state = ours.step(ours.embed(token[None]), state)
        rows.append(ours.logits(hidden))
    assert_close(torch.cat(rows), authors["steps"])
    assert_states_close(state, authors)


@torch.no_grad()
def test_embeddings_that_are_no_tokens_are_read_as_the_authors_would(
    ours: Any, authors: dict[str, Tensor], seen: Tensor
) -> None:
    x = torch.cat([ours.embed(TOKENS[:4]), seen, ours.embed(TOKENS[4:])])
    hidden, _ = ours(x, torch.tensor([0, len(x)]))
    assert_close(ours.logits(hidden), authors["seen"])


def plain(z: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits [T, V] of one sequence, position by position, from the equations of arXiv 2503.14456, section 4."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), z[f"{name}.weight"], z[f"{name}.bias"])

    def mixed(x: Tensor, before: Tensor, name: str) -> Tensor:
        share = z[name].flatten()
        return (1 - share) * x + share * before

    shifts = [[torch.zeros(WIDTH, dtype=torch.float64)] * 2 for _ in range(LAYERS)]
    states = [torch.zeros(HEADS, HEAD, HEAD, dtype=torch.float64)] * LAYERS  # value, key
    rows = []
    for token in tokens:
        x, first = norm(z["emb.weight"][token], "blocks.0.ln0"), None
        for i in range(LAYERS):
            att, ffn = f"blocks.{i}.att.", f"blocks.{i}.ffn."
            a, before = norm(x, f"blocks.{i}.ln1"), shifts[i][0]
            xs = {letter: mixed(a, before, f"{att}x_{letter}") for letter in "rwkvag"}
            r = z[f"{att}receptance.weight"] @ xs["r"]
            k, v = z[f"{att}key.weight"] @ xs["k"], z[f"{att}value.weight"] @ xs["v"]
            logit = z[f"{att}w0"].flatten() + torch.tanh(xs["w"] @ z[f"{att}w1"]) @ z[f"{att}w2"]
            decay = torch.exp(-math.exp(-0.5) / (1 + torch.exp(-logit)))
            rate = 1 / (1 + torch.exp(-(z[f"{att}a0"].flatten() + xs["a"] @ z[f"{att}a1"] @ z[f"{att}a2"])))
            gate = torch.sigmoid(xs["g"] @ z[f"{att}g1"]) @ z[f"{att}g2"]
            if first is None:
                first = v
            else:
                share = torch.sigmoid(z[f"{att}v0"].flatten() + xs["v"] @ z[f"{att}v1"] @ z[f"{att}v2"])
                v = (1 - share) * v + share * first
            removal = (k * z[f"{att}k_k"].flatten()).view(HEADS, HEAD)
            removal = removal / removal.norm(dim=-1, keepdim=True)
            k = k * (1 - z[f"{att}k_a"].flatten() * (1 - rate))
            outputs, heads = [], []
            for h in range(HEADS):
                own = slice(h * HEAD, (h + 1) * HEAD)
                transition = torch.diag(decay[own]) - torch.outer(removal[h], rate[own] * removal[h])
                heads.append(states[i][h] @ transition + torch.outer(v[own], k[own]))
                y = heads[h] @ r[own]
                y = (y - y.mean()) / torch.sqrt(y.var(correction=0) + 64e-5)
                y = y * z[f"{att}ln_x.weight"][own] + z[f"{att}ln_x.bias"][own]
                outputs.append(y + (r[own] * z[f"{att}r_k"][h] * k[own]).sum() * v[own])
            states[i] = torch.stack(heads)
            x = x + z[f"{att}output.weight"] @ (torch.cat(outputs) * gate)
            f = norm(x, f"blocks.{i}.ln2")
            inner = z[f"{ffn}key.weight"] @ mixed(f, shifts[i][1], f"{ffn}x_k")
            x = x + z[f"{ffn}value.weight"] @ inner.clamp(min=0) ** 2
            shifts[i] = [a, f]
        rows.append(z["head.weight"] @ norm(x, "ln_out"))
    return torch.stack(rows)


def test_logits_and_all_gradients_are_those_of_the_plain_equations() -> None:
    weights = {name: x.double().requires_grad_() for name, x in random_weights().items()}
    sequences = TOKENS[:7], TOKENS[7:10]
    expected = torch.cat([plain(weights, tokens) for tokens in sequences])
    pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    (expected * pull).sum().backward()

    model = build().double()
    model.load_state_dict({name: x for name, x in weights.items() if name in model.state_dict()})
    hidden, _ = model(model.embed(torch.cat(sequences)), torch.tensor([0, 7, 10]))
    actual = model.logits(hidden)
    (actual * pull).sum().backward()
    torch.testing.assert_close(actual, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-6, atol=1e-9, msg=name)


def test_the_keys_are_the_authors() -> None:
    unused = {"blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"}
    expected = {name: shape for name, shape in authors_keys().items() if name not in unused}
    assert {name: tuple(x.shape) for name, x in build().state_dict().items()} == expected


@pytest.mark.parametrize(
    ("layers", "width", "ranks", "parameters"),
    [
        (12, 768, (64, 64, 32, 128), 191_034_624),
        (24, 1024, (64, 64, 32, 128), 450_767_872),
        (24, 2048, (96, 96, 64, 256), 1_527_404_544),
        (32, 2560, (96, 96, 64, 320), 2_947_735_040),
    ],
)
def test_ranks_and_parameters_are_those_of_the_published_models(
    layers: int, width: int, ranks: tuple[int, ...], parameters: int
) -> None:
    with torch.device("meta"):
        model: Any = BACKBONE.build({"name": "rwkv7", "layers": layers, "hidden_size": width}, vocab_size=65536)
    att = model.blocks[1].att
    assert tuple(x.shape[1] for x in (att.w1, att.a1, att.v1, att.g1)) == ranks
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_defaults_are_the_sizes_of_a_published_model() -> None:
    with torch.device("meta"):
        model = BACKBONE.build({"name": "rwkv7"}, vocab_size=65536)
    assert sum(p.numel() for p in model.parameters()) == 1_527_404_544


def test_ranks_may_be_given() -> None:
    att = build(decay_rank=8, rate_rank=9, value_rank=10, gate_rank=11).blocks[1].att
    assert [x.shape[1] for x in (att.w1, att.a1, att.v1, att.g1)] == [8, 9, 10, 11]
    with pytest.raises(AuroraError, match="gate_rank is 0; it must be a whole number ≥ 1"):
        build(gate_rank=0)


def test_what_is_saved_is_what_the_authors_package_reads(ours: Any, tmp_path: Path) -> None:
    ours.save_base(str(tmp_path / "model.pth"))
    saved = torch.load(tmp_path / "model.pth", weights_only=True)
    for name, tensor in random_weights().items():
        if not name.startswith("blocks.0.att.v") or name.endswith("value.weight"):
            assert torch.equal(saved[name], tensor), name


def test_a_checkpoint_of_rwkv6_is_named_as_one(tmp_path: Path) -> None:
    older = BACKBONE.build({"name": "rwkv6", "hidden_size": 32, "layers": 1, "head_size": 16}, vocab_size=VOCAB)
    older.save_base(str(tmp_path / "model.pth"))
    with pytest.raises(AuroraError, match=r"holds no rwkv7: it looks like RWKV-6 \(x060\)"):
        build().load_base(str(tmp_path / "model.pth"))


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    torch.save({"model.norm.weight": torch.ones(WIDTH)}, tmp_path / "model.pth")
    with pytest.raises(AuroraError, match=r"holds no rwkv7: it holds names such as model\.norm\.weight"):
        build().load_base(str(tmp_path / "model.pth"))


def test_a_truncated_checkpoint_names_what_is_missing(tmp_path: Path) -> None:
    weights = random_weights()
    del weights["blocks.1.att.v0"]
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(AuroraError, match=r"missing: blocks\.1\.att\.v0\. "):
        build().load_base(str(tmp_path / "model.pth"))


def test_the_initial_values_are_the_authors() -> None:
    """Element by element, after the authors' trainer, for the second of three layers."""
    model = build()
    att, ffn, width = model.blocks[1].att, model.blocks[1].ffn, WIDTH
    for n in range(width):
        share, along = n / width, n / (width - 1)
        zigzag = ((n % HEAD) - (HEAD - 1) / 2) / ((HEAD - 1) / 2)
        zigzag *= abs(zigzag)
        expected = {
            "x_r": 1 - share ** (0.2 * 2 / 3), "x_w": 1 - share ** (0.9 * 2 / 3), "x_k": 1 - share ** (0.7 * 2 / 3),
            "x_v": 1 - share ** (0.7 * 2 / 3), "x_a": 1 - share ** (0.9 * 2 / 3), "x_g": 1 - share ** (0.2 * 2 / 3),
            "w0": -6 + 6 * along ** (1 + 0.5**0.3) + 0.5 + 2.5 * zigzag,
            "a0": -0.19 + 0.3 * zigzag + 0.4 * (along - 0.5), "v0": 0.73 - 0.4 * (along - 0.5),
            "k_k": 0.71 - 0.1 * (along - 0.5), "k_a": 1.02,
        }
        for name, value in expected.items():
            assert getattr(att, name)[0, 0, n].item() == pytest.approx(value, abs=2e-6), (name, n)
        assert ffn.x_k[0, 0, n].item() == pytest.approx(1 - share ** ((2 / 3) ** 4), abs=2e-6)
    assert torch.equal(att.r_k, torch.full((HEADS, HEAD), -0.04))
    for silent in (att.w1, att.a1, att.v1, att.g1, att.output.weight, ffn.value.weight):
        assert not silent.any()
    assert att.ln_x.weight[0].item() == pytest.approx((2 / 3) ** 0.7)
    for weight, gain in ((att.receptance.weight, 1.0), (att.key.weight, 0.1), (ffn.key.weight, 1.0), (att.g2.T, 0.1)):
        torch.testing.assert_close(weight.T @ weight, gain**2 * torch.eye(weight.shape[1]), rtol=0, atol=1e-5)
