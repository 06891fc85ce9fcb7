"""Layouts: the names and shapes under which a family's weights are stored, described relative to our own.

A part whose weights come in several layouts has them in its class attribute `layouts`, a `Family`; `aurora convert`
finds it there, for parts of other packages as well.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any, NamedTuple

from torch import Tensor

from aurora.errors import AuroraError

View = Callable[[Tensor], Tensor]
Shapes = Mapping[str, tuple[int, ...]]


def same(tensor: Tensor) -> Tensor:
    return tensor


class Piece(NamedTuple):
    """A tensor, seen through views, the first one first."""

    name: str
    views: tuple[View, ...] = ()

    def view(self, tensor: Tensor) -> Tensor:
        """What is seen of the tensor."""
        return reduce(lambda seen, view: view(seen), self.views, tensor)


Table = dict[str, tuple[Piece, ...]]
"""For each name the pieces that stand behind each other, along the first dimension, in its tensor."""


def unchanged(names: Iterable[str]) -> Table:
    """Every tensor as it is."""
    return {name: (Piece(name),) for name in names}


@dataclass(frozen=True)
class KeyMap:
    """The same values under our names and under theirs; one of the two may be several equal parts of the other.

    Where the names hold `{}`, which is the number of a layer, this is so in every layer. `to_theirs` gives one of our
    tensors the shape that it has in theirs, `to_ours` the other way round.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_theirs: View = same
    to_ours: View = same

    def of_layer(self, layer: int) -> "KeyMap":
        """With the number of the layer in the names."""
        ours, theirs = (tuple(name.format(layer) for name in names) for names in (self.ours, self.theirs))
        return replace(self, ours=ours, theirs=theirs)


@dataclass(frozen=True)
class Layout:
    """One way of storing a family's weights."""

    name: str
    title: str
    marks: tuple[str, ...]  # patterns of names that together only this layout has
    key_maps: Sequence[KeyMap] = ()  # none: our own names
    ignored: tuple[str, ...] = ()  # patterns of names that belong to it and have no place among ours
    copies: Mapping[str, str] = field(default_factory=dict)  # names that repeat another one and may be absent
    writes_copies: bool = False
    carried: tuple[str, ...] = ()  # patterns of names that may be there and are kept inside the layout only
    configure: Callable[[Mapping[str, Any], str], dict[str, Any]] | None = None  # (options, dtype) → config.json
    check: Callable[[Mapping[str, Any]], None] = lambda config: None  # AuroraError for a config.json of another kind
    notes: tuple[str, ...] = ()  # what its readers must know and no config says

    def fits(self, names: Collection[str]) -> bool:
        """Whether every mark of this layout is among the names."""
        return all(any(re.search(mark, name) for name in names) for mark in self.marks)

    def our_tensors(self, names: Collection[str]) -> Table:
        """How our tensors are made of this layout's, of as many layers as its names count."""
        if not self.key_maps:
            return unchanged(names)
        first = next(each.theirs[0] for each in self.key_maps if "{}" in each.theirs[0])
        return {name: pieces for each in self._maps(count_layers(names, first.partition("{}")[0]))
                for name, pieces in _table(each.theirs, each.ours, each.to_ours).items()}

    def their_tensors(self, ours: Collection[str]) -> Table:
        """How this layout's tensors are made of ours."""
        if not self.key_maps:
            return unchanged(ours)
        return {name: pieces for each in self._maps(count_layers(ours)) if all(name in ours for name in each.ours)
                for name, pieces in _table(each.ours, each.theirs, each.to_theirs).items()}

    def _maps(self, layers: int) -> Iterator[KeyMap]:
        inside = [each for each in self.key_maps if "{}" in each.ours[0]]
        yield from (each for each in self.key_maps if each not in inside)
        yield from (each.of_layer(layer) for layer in range(layers) for each in inside)

    def carries(self, name: str) -> bool:
        """Whether a name is kept where source and target are both in this layout."""
        return any(re.fullmatch(pattern, name) for pattern in self.carried)

    def knows(self, name: str) -> bool:
        """Whether a name belongs to the layout although it has no place among ours."""
        return name in self.copies or any(re.fullmatch(pattern, name) for pattern in (*self.ignored, *self.carried))


@dataclass(frozen=True)
class Family:
    """A part with its layouts; the first one is what its `load_base` reads."""

    slot: str
    part: str
    layouts: tuple[Layout, ...]
    options: Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]
    """(the shapes of our tensors, config.json) → the options of the part."""

    unpack: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    """What a model folder holds of the part, by the names of the layout that is our own."""

    def layout(self, names: Iterable[str]) -> Layout | None:
        """The layout that names are of."""
        names = list(names)
        return next((layout for layout in self.layouts if layout.fits(names)), None)


def count_layers(names: Collection[str], prefix: str = "") -> int:
    """How many layers there are, by the first number in each name that begins with the prefix."""
    last = max((int(found[1]) for name in names if name.startswith(prefix)
                and (found := re.search(r"\.(\d{1,9})\.", name))), default=-1)
    return min(last + 1, len(names))  # a name that counts to a billion is not believed


def _table(sources: tuple[str, ...], targets: tuple[str, ...], view: View) -> Table:
    if len(targets) == 1:
        return {targets[0]: tuple(Piece(source, (view,)) for source in sources)}
    return {target: (Piece(sources[0], (partial(_chunk, number=number, of=len(targets)), view)),)
            for number, target in enumerate(targets)}


def _chunk(tensor: Tensor, *, number: int, of: int) -> Tensor:
    return tensor.chunk(of)[number]


def require_values(config: Mapping[str, Any], *, part: str, needed: Mapping[str, Any]) -> None:
    """AuroraError when a config.json says something else than what a part (such as "backbone 'rwkv6'") needs."""
    for key, value in needed.items():
        if config.get(key, value) != value:
            raise AuroraError(f"config.json says {key} {config[key]!r}; {part} has {value!r}")


_FAMILY_MARKS = (
    (r"(^|\.)backbone\.blocks\.|^(vision|connector)\.", "a whole Aurora model, which is read as a model folder"),
    (r"\.lora_[AB]\.", "a LoRA adapter (peft), which needs the model it was trained on"),
    (r"\.att\.time_state$", "state-tuned RWKV"),
    (r"blocks\.\d+\.att\.(r_k|k_k)$", "RWKV-7 (x070) by the authors' names"),
    (r"rwkv\.blocks\.\d+\.attention\.time_maa_x$", "RWKV-6 in the layout of the RWKV/v6-Finch-*-HF repositories"),
    (r"blocks\.\d+\.att\.time_maa_x$", "RWKV-6 (x060) by the authors' names"),
    (r"rwkv\.blocks\.\d+\.attention\.(ln_x\.weight|time_mix_gate)$", "RWKV-5 in the layout of RWKV/v5-Eagle-*-HF"),
    (r"blocks\.\d+\.att\.(gate\.weight|time_mix_g|time_faaaa|ln_x\.weight)$", "RWKV-5 (x052)"),
    (r"blocks\.\d+\.(att|attention)\.(time_first|time_mix_k(ey)?)$", "RWKV-4"),
    (r"layers\.\d+\.attn\.x_proj\.0\.mu$", "RWKV-6 by flash-linear-attention's names"),
    (r"layers\.\d+\.attn\.(k_k|w_lora\..*)$", "RWKV-7 by flash-linear-attention's names"),
    (r"layers\.\d+\.attn\.(A_log|b_proj\.weight)$", "a gated delta network by flash-linear-attention's names"),
    (r"layers\.\d+\.attn\.gk_proj\.", "gated linear attention (GLA) by flash-linear-attention's names"),
    (r"layers\.\d+\.mixer\.(x_proj|dt_proj)\.", "Mamba-1"),
    (r"layers\.\d+\.mixer\.(dt_bias|norm\.weight)$", "Mamba-2"),
    (r"layers\.\d+\.temporal_block\.", "RecurrentGemma"),
    (r"layers\.\d+\.block_sparse_moe\.", "Mixtral"),
    (r"layers\.\d+\.self_attn\.q_norm\.", "Qwen 3"),
    (r"^model\.layers\.\d+\.self_attn\.q_proj\.bias$", "Qwen 2"),
    (r"model\.layers\.\d+\.self_attn\.", "a transformer such as Llama"),
    (r"h\.\d+\.attn\.c_attn\.", "GPT-2"),
    (r"gpt_neox\.layers\.", "GPT-NeoX"),
    (r"vision_model\.pre_layrnorm\.", "CLIP"),
    (r"vision_model\.encoder\.layers\.", "SigLIP or CLIP"),
    (r"blocks\.\d+\.attn\.qkv\.", "a vision transformer of timm"),
)


def looks_like(names: Iterable[str]) -> str | None:
    """The family whose weights have such names, such as 'Mamba-1'; None where it is not known here."""
    names = list(names)
    return next((family for mark, family in _FAMILY_MARKS if any(re.search(mark, name) for name in names)), None)
