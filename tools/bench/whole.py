"""A whole model that reads frames: tower, connector and language model up to the logits that follow the last frame.

Shape letters: N frames, M tokens per frame, D width of the language model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from aurora.interfaces import Runner
from aurora.registry import CONNECTOR
from aurora.types import VisualTokens
from tools.bench import language, towers
from tools.bench.case import ROUNDED, Case, Contestant, Outcome, Settings
from tools.bench.machine import DTYPES, Cost, missing
from tools.bench.readers import Authors, load_backbone
from tools.bench.timing import Work
from tools.bench.towers import TowerSize

Encode = Callable[[Tensor], Tensor]
THEIRS = "theirs"


def case(settings: Settings, tower: TowerSize, frames: int, ratio: float, dtype: str) -> Case:
    """Ours with merged tokens, ours with all of them, and the towers of others, which cannot merge."""
    build = partial(_ours, settings, tower, frames, dtype)
    files = partial(_files, settings, tower, dtype)
    return Case(
        f"whole model, {frames} frames, {dtype}",
        [
            Contestant(f"aurora, tome {ratio}", partial(build, ratio), None, files, result=str(ratio),
                       cost=_cost(settings, tower, frames, dtype, ratio)),
            Contestant("aurora, unmerged", partial(build, 1.0), None, files, result="1.0"),
            Contestant("transformers + rwkv, unmerged", partial(_theirs, settings, tower, frames, dtype),
                       missing("transformers") or missing("rwkv"), files, result=THEIRS),
        ],
        _cost(settings, tower, frames, dtype, 1.0), ROUNDED, partial(_right, settings, tower, frames, dtype),
        items=frames, unit="frames", heavy=True,
    )


def _files(settings: Settings, tower: TowerSize, dtype: str) -> None:
    towers.random_tower(settings.folder, tower)
    language.weights_file(settings, dtype)


def _ours(settings: Settings, tower: TowerSize, frames: int, dtype: str, ratio: float) -> Work:
    encode, read = _our_encoder(settings, tower, dtype, ratio), _by_us(settings, dtype)
    pixels = tower.pixels(frames, DTYPES[dtype], settings.device)
    return lambda: read(encode(pixels))


def _theirs(settings: Settings, tower: TowerSize, frames: int, dtype: str) -> Work:
    encode, read = _their_encoder(settings, tower, dtype), _by_authors(settings, dtype, frames * tower.patches)
    pixels = tower.pixels(frames, DTYPES[dtype], settings.device)
    return lambda: read(encode(pixels))


def _right(settings: Settings, tower: TowerSize, frames: int, dtype: str, result: str) -> Outcome:
    """What the modules of our backbone make of the same tokens in float32.

    The towers are compared in their own cases: where the language model starts from slightly different tokens, what it
    makes of them says little.
    """
    pixels = tower.pixels(frames, DTYPES[dtype], settings.device)
    encode = _their_encoder(settings, tower, dtype) if result == THEIRS else _our_encoder(
        settings, tower, dtype, float(result))
    return _by_us(settings, dtype, exact=True)(encode(pixels).float())


def _our_encoder(settings: Settings, tower: TowerSize, dtype: str, ratio: float) -> Encode:
    """Pixels [N, 3, h, w] → what the language model reads [N M, D]."""
    kind = DTYPES[dtype]
    loaded = towers.load_tower(towers.random_tower(settings.folder, tower), tower, kind, settings.device)
    encode, connect = towers.ours(loaded, tower.patches, ratio), _connector(settings, tower, kind)
    return torch.inference_mode()(lambda pixels: connect(encode(pixels).features).flatten(0, 1))


def _their_encoder(settings: Settings, tower: TowerSize, dtype: str) -> Encode:
    kind = DTYPES[dtype]
    encode = towers.theirs(towers.random_tower(settings.folder, tower), "eager", kind, settings.device)
    connect = _connector(settings, tower, kind)
    return torch.inference_mode()(lambda pixels: connect(encode(pixels)).flatten(0, 1))


def _connector(settings: Settings, tower: TowerSize, kind: torch.dtype) -> Encode:
    torch.manual_seed(0)
    connector = CONNECTOR.build({"name": "mlp"}, in_width=tower.width, out_width=language.size_of(settings).hidden_size)
    connector = connector.to(settings.device, kind).eval().requires_grad_(False)
    nothing = torch.empty(0)
    return lambda features: connector(VisualTokens(features, nothing, nothing))


def _by_us(settings: Settings, dtype: str, *, exact: bool = False) -> Encode:
    """Our backbone reading embeddings [T, D] → logits [V]; `exact`: its modules, in float32."""
    backbone = load_backbone(language.weights_file(settings, dtype), language.size_of(settings),
                             "float32" if exact else dtype, settings.device)
    runner = Runner(backbone) if exact else backbone.runner()

    @torch.inference_mode()
    def read(x: Tensor) -> Tensor:
        hidden, _ = runner.prefill(x, torch.tensor([0, len(x)]))
        return backbone.logits(hidden)[0]

    return read


def _by_authors(settings: Settings, dtype: str, tokens: int) -> Encode:
    """The `rwkv` package reading embeddings [T, D] → logits [V]: they are put, normalised as its own are, behind its
    table, and read by the ids that they get there."""
    path = language.weights_file(settings, dtype)
    model = Authors(path, dtype, settings.device).model
    first = torch.load(path, mmap=True, weights_only=True)
    norm = nn.LayerNorm(language.size_of(settings).hidden_size).to(settings.device, DTYPES[dtype])
    norm.load_state_dict({name: first[f"blocks.0.ln0.{name}"] for name in ("weight", "bias")})
    table, vocab = model.w["emb.weight"], language.size_of(settings).vocab_size
    model.w["emb.weight"] = torch.cat([table, table.new_zeros(tokens, table.shape[1])])
    ids = list(range(vocab, vocab + tokens))

    @torch.inference_mode()
    def read(x: Tensor) -> Tensor:
        model.w["emb.weight"][vocab:] = norm(x)
        return model.forward(ids, None)[0]  # type: ignore[no-any-return]

    return read


def _cost(settings: Settings, tower: TowerSize, frames: int, dtype: str, ratio: float) -> Cost:
    counts = towers.merged_tokens(tower, ratio) if ratio < 1 else None
    tokens = frames * (counts[-1][1] if counts else tower.patches)
    size = language.size_of(settings)
    seen, read = towers.cost(tower, frames, dtype, counts), language.cost(size, dtype, tokens)
    connecting = 2 * tokens * (tower.width + size.hidden_size) * size.hidden_size
    return Cost(seen.flops + connecting + read.flops, seen.bytes + read.bytes, dtype, read.product)

