"""What the layouts of linear RNNs share: pairs of names, sizes from shapes, RWKV by flash-linear-attention's names."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from aurora.errors import AuroraError
from aurora.interfaces import INITIAL_STATE
from aurora.weights.layouts import KeyMap, Layout, Shapes, View, require_values, same

TIME_STATE = r"blocks\.\d+\.att\.time_state"
_TUNED = f"{INITIAL_STATE}wkv"
transposed: View = Tensor.t  # [A, B] → [B, A]
flat: View = Tensor.flatten  # [1, 1, C] → [C]


def pair(ours: str, theirs: str, to_theirs: View = same, to_ours: View = same) -> KeyMap:
    """One tensor under two names."""
    return KeyMap((ours,), (theirs,), to_theirs, to_ours)


def pairs(names: Mapping[str, str], kinds: Iterable[str] = ("weight",)) -> list[KeyMap]:
    """The parameters of these kinds of modules that go by two names."""
    kinds = tuple(kinds)
    return [pair(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in names.items() for kind in kinds]


def below(ours: str, theirs: str, maps: Iterable[KeyMap]) -> list[KeyMap]:
    """The same maps between names below two prefixes."""
    return [replace(each, ours=tuple(ours + name for name in each.ours),
                    theirs=tuple(theirs + name for name in each.theirs)) for each in maps]


def deep(tensor: Tensor) -> Tensor:
    """[C] or [1, C] → [1, 1, C]."""
    return tensor.view(1, 1, -1)


def size(shapes: Shapes, name: str, axis: int) -> int:
    """A dimension of a tensor. AuroraError when it is not there: the sizes of the model are read from it."""
    if name not in shapes:
        raise AuroraError(f"the weights lack {name}, from which the model's sizes are read")
    if axis >= len(shapes[name]):
        raise AuroraError(f"{name} has the shape {shapes[name]}, which is of no model of this family")
    return shapes[name][axis]


def fla_layout(
    name: str, marks: tuple[str, ...], block: Iterable[KeyMap],
    own_config: Callable[[Mapping[str, Any]], dict[str, Any]], needed: Mapping[str, Any], notes: tuple[str, ...] = (),
) -> Layout:
    """The names of flash-linear-attention's causal RWKV `name`: `block` maps those of one layer, `own_config` and
    `needed` are what its config.json says and must say beyond what all of them do, where it says anything of it."""
    model = f"{name.upper()}ForCausalLM"
    fixed = {"model_type": name, "hidden_act": "sqrelu", "norm_first": True, "norm_bias": True,
             "tie_word_embeddings": False}

    def configure(options: Mapping[str, Any], dtype: str) -> dict[str, Any]:
        return {
            "architectures": [model], **fixed,
            "vocab_size": options["vocab_size"], "hidden_size": options["hidden_size"],
            "num_hidden_layers": options["layers"], "num_heads": options["hidden_size"] // options["head_size"],
            "intermediate_size": options["ffn_size"], **own_config(options),
            "norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 0, "dtype": dtype,
        }

    return Layout(
        name="fla",
        title=f"flash-linear-attention's {model}",
        marks=marks,
        key_maps=[
            *pairs({"emb": "model.embeddings", "head": "lm_head"}),
            *pairs({"blocks.0.ln0": "model.layers.0.pre_norm", "ln_out": "model.norm"}, ("weight", "bias")),
            *below("blocks.{}.", "model.layers.{}.", block),
        ],
        configure=configure,
        check=partial(require_values, part=f"backbone {name!r}", needed={**fixed, "attn": None, **needed}),
        notes=notes,
    )


def unpack_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's tuned initial state [L, 1, H, K, K] (key, value) as RWKV's authors have it: one tensor (value, key)
    [H, K, K] per layer; the rest as it is. All are views."""
    tuned = {f"blocks.{layer}.att.time_state": state[0].mT for layer, state in enumerate(tensors.get(_TUNED, ()))}
    return {name: tensor for name, tensor in tensors.items() if name != _TUNED} | tuned
