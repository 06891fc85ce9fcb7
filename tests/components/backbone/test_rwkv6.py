"""RWKV-6 against the authors' own inference package, on random weights."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aurora.errors import AuroraError
from aurora.registry import BACKBONE
from aurora.types import State

WIDTH, LAYERS, HEADS, HEAD, VOCAB = 128, 3, 2, 64, 50
SIZES = {"hidden_size": WIDTH, "layers": LAYERS, "head_size": HEAD}
TOKENS = torch.randint(0, VOCAB, (37,), generator=torch.Generator().manual_seed(5))


def authors_keys() -> dict[str, tuple[int, ...]]:
    """The names and shapes of an x060 checkpoint, written down from the authors' files."""
    width, ffn = WIDTH, int(3.5 * WIDTH) // 32 * 32
    shapes: dict[str, tuple[int, ...]] = {
        "emb.weight": (VOCAB, width), "head.weight": (VOCAB, width), "ln_out.weight": (width,), "ln_out.bias": (width,),
        "blocks.0.ln0.weight": (width,), "blocks.0.ln0.bias": (width,),
    }
    for i in range(LAYERS):
        block = f"blocks.{i}."
        for norm in ("ln1", "ln2", "att.ln_x"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
        for letter in "xwkvrg":
            shapes[f"{block}att.time_maa_{letter}"] = (1, 1, width)
        shapes |= {
            f"{block}att.time_maa_w1": (width, 160), f"{block}att.time_maa_w2": (5, 32, width),
            f"{block}att.time_decay": (1, 1, width), f"{block}att.time_decay_w1": (width, 64),
            f"{block}att.time_decay_w2": (64, width), f"{block}att.time_faaaa": (HEADS, HEAD),
            f"{block}ffn.time_maa_k": (1, 1, width), f"{block}ffn.time_maa_r": (1, 1, width),
            f"{block}ffn.key.weight": (ffn, width), f"{block}ffn.value.weight": (width, ffn),
            f"{block}ffn.receptance.weight": (width, width),
        }
        for name in ("receptance", "key", "value", "gate", "output"):
            shapes[f"{block}att.{name}.weight"] = (width, width)
    return shapes


def random_weights() -> dict[str, Tensor]:
    """A checkpoint in which every tensor matters."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in authors_keys().items():
        x = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            x = 0.2 * x + name.endswith("weight")
        elif name.endswith("time_decay"):
            x = 2 * x - 2
        elif len(shape) == 2 and "time_faaaa" not in name and "emb" not in name:
            x = x / shape[-1 if name.endswith("weight") else 0] ** 0.5
        elif "time_maa" in name:
            x = 0.3 * x
        weights[name] = x
    return weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rwkv6") / "model.pth"
    torch.save(random_weights(), path)
    return path


def load_authors(checkpoint: Path) -> Any:
    """The authors' model. Their package reads its settings when it is imported."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("RWKV_JIT_ON", "0")
        patch.delenv("RWKV_V7_ON", raising=False)
        from rwkv.model import RWKV

        return RWKV(model=str(checkpoint.with_suffix("")), strategy="cpu fp32", verbose=False)


@pytest.fixture(scope="module")
def authors(checkpoint: Path) -> Any:
    return load_authors(checkpoint)


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> Any:
    model = BACKBONE.build({"name": "rwkv6", **SIZES}, vocab_size=VOCAB)
    model.load_base(str(checkpoint))
    return model.eval()


@pytest.fixture(scope="module")
def expected(authors: Any) -> tuple[Tensor, State]:
    """The authors' logits [T, V] and final state."""
    with torch.no_grad():
        logits, state = authors.forward(TOKENS.tolist(), None, full_output=True)
    return logits, as_ours(state)


def as_ours(state: list[Tensor]) -> State:
    """The authors' three tensors per layer, as our named ones with one sequence."""
    named = (("att_shift", 0), ("wkv", 1), ("ffn_shift", 2))
    return {name: torch.stack(state[part::3]).unsqueeze(1) for name, part in named}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


def assert_states_close(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        for layer in range(LAYERS):
            assert_close(actual[name][layer], expected[name][layer])


@pytest.mark.slow
@torch.no_grad()
def test_a_prefill_gives_the_authors_logits_and_state(ours: Any, expected: tuple[Tensor, State]) -> None:
    hidden, state = ours(ours.embed(TOKENS), torch.tensor([0, len(TOKENS)]), return_state=True)
    assert_close(ours.logits(hidden), expected[0])
    assert_states_close(state, expected[1])


@torch.no_grad()
def test_steps_give_the_authors_logits_and_state(ours: Any, expected: tuple[Tensor, State]) -> None:
    state = ours.init_state(1)
    rows = []
    for token in TOKENS:
        hidden, state = ours.step(ours.embed(token[None]), state)
        rows.append(ours.logits(hidden))
    assert_close(torch.cat(rows), expected[0])
    assert_states_close(state, expected[1])


@pytest.mark.parametrize("cut", [1, 8, 16, 21, 36])
@torch.no_grad()
def test_a_cut_prefill_gives_the_authors_logits_and_state(
    ours: Any, expected: tuple[Tensor, State], cut: int
) -> None:
    state, rows = None, []
    for part in (TOKENS[:cut], TOKENS[cut:]):
        hidden, state = ours(ours.embed(part), torch.tensor([0, len(part)]), state, return_state=True)
        rows.append(ours.logits(hidden))
    assert_close(torch.cat(rows), expected[0])
    assert_states_close(state, expected[1])


@torch.no_grad()
def test_embeddings_that_are_no_tokens_are_read_as_the_authors_would(ours: Any, authors: Any) -> None:
    seen = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3))
    x = torch.cat([ours.embed(TOKENS[:4]), seen, ours.embed(TOKENS[4:])])
    hidden, _ = ours(x, torch.tensor([0, len(x)]))
    table = authors.w["emb.weight"]
    # the package applies ln0 to its table once, when it loads
    authors.w["emb.weight"] = torch.cat([table, ours.blocks[0].ln0(seen)])
    ids = [*TOKENS[:4].tolist(), *range(VOCAB, VOCAB + 5), *TOKENS[4:].tolist()]
    try:
        logits, _ = authors.forward(ids, None, full_output=True)
    finally:
        authors.w["emb.weight"] = table
    assert_close(ours.logits(hidden), logits)


def test_the_keys_are_the_authors() -> None:
    model = BACKBONE.build({"name": "rwkv6", **SIZES}, vocab_size=VOCAB)
    assert {name: tuple(x.shape) for name, x in model.state_dict().items()} == authors_keys()


def test_the_defaults_are_the_sizes_of_the_published_model() -> None:
    with torch.device("meta"):
        model = BACKBONE.build({"name": "rwkv6"}, vocab_size=65536)
    assert len(model.state_dict()) == 678
    assert sum(p.numel() for p in model.parameters()) == 1_599_873_024


def build() -> Any:
    return BACKBONE.build({"name": "rwkv6", **SIZES}, vocab_size=VOCAB)


def test_weights_in_bfloat16_are_read_into_the_dtype_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: x.bfloat16() for name, x in random_weights().items()}, path)
    model = build()
    model.load_base(str(path))
    assert model.head.weight.dtype is torch.float32
    assert torch.equal(model.head.weight, random_weights()["head.weight"].bfloat16().float())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    weights = random_weights()
    del weights["ln_out.bias"]
    weights["blocks.7.ln1.weight"] = torch.zeros(WIDTH)
    weights["head.weight"] = torch.zeros(VOCAB, WIDTH + 1)
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(AuroraError) as error:
        build().load_base(str(tmp_path / "model.pth"))
    assert "missing: ln_out.bias; unexpected: blocks.7.ln1.weight" in str(error.value)
    assert "head.weight (50, 129) instead of (50, 128)" in str(error.value)


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    weights = random_weights()
    del weights["ln_out.bias"]
    torch.save(weights, tmp_path / "model.pth")
    model = build()
    before = model.head.weight.clone()
    with pytest.raises(AuroraError):
        model.load_base(str(tmp_path / "model.pth"))
    assert torch.equal(model.head.weight, before)


AROUND_HF = {
    "emb.weight": "rwkv.embeddings.weight", "blocks.0.ln0.weight": "rwkv.blocks.0.pre_ln.weight",
    "blocks.0.ln0.bias": "rwkv.blocks.0.pre_ln.bias", "ln_out.weight": "rwkv.ln_out.weight",
    "ln_out.bias": "rwkv.ln_out.bias", "head.weight": "head.weight",
}


def finch_hf() -> dict[str, Tensor]:
    """The same weights by the names of RWKV/v6-Finch-1B6-HF, written down from its modelling code."""
    given, renamed = random_weights(), {}
    for i in range(LAYERS):
        ours, theirs = f"blocks.{i}.", f"rwkv.blocks.{i}."
        for kind in ("weight", "bias"):
            for norm in ("ln1", "ln2"):
                renamed[f"{theirs}{norm}.{kind}"] = given.pop(f"{ours}{norm}.{kind}")
            renamed[f"{theirs}attention.ln_x.{kind}"] = given.pop(f"{ours}att.ln_x.{kind}")
        for name in ("maa_x", "maa_w", "maa_k", "maa_v", "maa_r", "maa_g", "maa_w1", "maa_w2", "decay", "decay_w1",
                     "decay_w2", "faaaa"):
            renamed[f"{theirs}attention.time_{name}"] = given.pop(f"{ours}att.time_{name}")
        for name in ("receptance", "key", "value", "gate", "output"):
            renamed[f"{theirs}attention.{name}.weight"] = given.pop(f"{ours}att.{name}.weight")
        for name in ("time_maa_k", "time_maa_r", "key.weight", "receptance.weight", "value.weight"):
            renamed[f"{theirs}feed_forward.{name}"] = given.pop(f"{ours}ffn.{name}")
    return renamed | {AROUND_HF[name]: tensor for name, tensor in given.items()}


@pytest.mark.parametrize("files", [1, 2])
@torch.no_grad()
def test_a_finch_folder_of_hugging_face_gives_the_authors_logits(
    tmp_path: Path, expected: tuple[Tensor, State], files: int
) -> None:
    weights = finch_hf()
    sizes = {"model_type": "rwkv6", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "head_size_divisor": 8}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    if files == 1:
        torch.save(weights, tmp_path / "pytorch_model.bin")
    else:
        names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
        place = {name: names[number % 2] for number, name in enumerate(weights)}
        for file in names:
            torch.save({name: tensor for name, tensor in weights.items() if place[name] == file}, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": place}))
    model = build()
    model.load_base(str(tmp_path))
    hidden, _ = model(model.embed(TOKENS), torch.tensor([0, len(TOKENS)]))
    assert_close(model.logits(hidden), expected[0])


def test_a_finch_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rwkv6", "head_size_divisor": 1}))
    torch.save(finch_hf(), tmp_path / "pytorch_model.bin")
    with pytest.raises(AuroraError, match=r"head_size_divisor 1; backbone 'rwkv6' has 8"):
        build().load_base(str(tmp_path))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.",
                                    "_forward_module._fsdp_wrapped_module.", "model.module._orig_mod.", "net."])
@pytest.mark.parametrize("weights", [random_weights, finch_hf])
def test_what_wrappers_put_before_the_names_is_taken_away(tmp_path: Path, prefix: str, weights: Any) -> None:
    torch.save({prefix + name: tensor for name, tensor in weights().items()}, tmp_path / "model.pth")
    model = build()
    model.load_base(str(tmp_path / "model.pth"))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in random_weights().items())


def test_blocks_that_were_compiled_or_sharded_each_are_read(tmp_path: Path) -> None:
    wrapped = {}
    for name, tensor in random_weights().items():
        compiled = name.replace("blocks.1.", "blocks.1._orig_mod.")
        wrapped[compiled.replace("att.", "_checkpoint_wrapped_module.att.")] = tensor
    torch.save(wrapped, tmp_path / "model.pth")
    model = build()
    model.load_base(str(tmp_path / "model.pth"))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in random_weights().items())


def test_a_tuned_initial_state_behind_a_prefix_is_read(tmp_path: Path) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in tuned_weights().items()}, tmp_path / "model.pth")
    model = build()
    model.load_base(str(tmp_path / "model.pth"))
    assert model.initial_state is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    weights = random_weights()
    weights["blocks.1.ffn.key.weight"][3, 5] = value
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(AuroraError, match=r"model\.pth: blocks\.1\.ffn\.key\.weight holds values that are not finite"):
        build().load_base(str(tmp_path / "model.pth"))


def test_weights_that_are_quantized_are_refused(tmp_path: Path) -> None:
    weights = random_weights()
    weights["head.weight"] = weights["head.weight"].to(torch.int8)
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(AuroraError, match=r"of another type: head\.weight torch\.int8 instead of torch\.float32"):
        build().load_base(str(tmp_path / "model.pth"))


def tuned_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    states = {f"blocks.{i}.att.time_state": torch.randn(HEADS, HEAD, HEAD, generator=generator) for i in range(LAYERS)}
    return {**random_weights(), **states}


@pytest.mark.slow
def test_a_tuned_initial_state_gives_the_authors_logits(tmp_path: Path, expected: tuple[Tensor, State]) -> None:
    torch.save(tuned_weights(), tmp_path / "model.pth")
    with torch.no_grad():
        wanted, state = load_authors(tmp_path / "model.pth").forward(TOKENS.tolist(), None, full_output=True)
        model = build()
        model.load_base(str(tmp_path / "model.pth"))
        bounds = torch.tensor([0, len(TOKENS)])
        hidden, after = model(model.embed(TOKENS), bounds, return_state=True)
    assert_close(model.logits(hidden), wanted)
    assert after is not None
    assert_close(after["wkv"], as_ours(state)["wkv"])
    assert (wanted - expected[0]).abs().max() > 0.1 * wanted.abs().max()  # the state matters


def test_a_tuned_initial_state_is_written_as_it_was_read(tmp_path: Path) -> None:
    torch.save(tuned_weights(), tmp_path / "model.pth")
    model = build()
    model.load_base(str(tmp_path / "model.pth"))
    model.save_base(str(tmp_path / "again.safetensors"))
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == tuned_weights().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tuned_weights().items())


def test_tuned_initial_states_of_some_layers_are_refused(tmp_path: Path) -> None:
    torch.save({**random_weights(), "blocks.0.att.time_state": torch.zeros(HEADS, HEAD, HEAD)}, tmp_path / "m.pth")
    with pytest.raises(AuroraError, match=r"1 tuned initial states .* do not fit: this backbone has 3 layers"):
        build().load_base(str(tmp_path / "m.pth"))


def test_a_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"emb.weight": Path("a path is no tensor")}, tmp_path / "model.pth")
    with pytest.raises(AuroraError, match="not a readable file of weights"):
        build().load_base(str(tmp_path / "model.pth"))


def test_no_pickle_is_read_while_torch_is_told_to_run_them(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(AuroraError, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        build().load_base(str(checkpoint))


@pytest.mark.parametrize("name", ["absent.pth", "text.txt", "garbage.pth", "garbage.safetensors", "empty.pth"])
def test_what_is_no_file_of_weights_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if not name.startswith("absent"):
        path.write_bytes(b"" if name.startswith("empty") else b"not weights at all")
    with pytest.raises(AuroraError, match=name):
        build().load_base(str(path))


def test_a_width_between_heads_is_refused_with_the_widths_that_fit() -> None:
    with pytest.raises(AuroraError, match="64 and 128 would be"):
        BACKBONE.build({"name": "rwkv6", "hidden_size": 100}, vocab_size=VOCAB)


def test_initial_matrices_are_orthogonal_with_the_authors_gains() -> None:
    model = build()
    att, ffn = model.blocks[1].att, model.blocks[1].ffn
    gains = ((att.receptance, 1.0), (att.key, 0.1), (att.gate, 0.1), (ffn.key, 1.0), (model.head, 0.5))
    for layer, gain in gains:
        weight = layer.weight if len(layer.weight) >= layer.weight.shape[1] else layer.weight.T
        torch.testing.assert_close(weight.T @ weight, gain**2 * torch.eye(weight.shape[1]), rtol=0, atol=1e-5)
