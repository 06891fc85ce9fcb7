"""The names and shapes of the published RWKV checkpoints, written down from the authors' and held against our parts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from aurora.registry import BACKBONE

VOCAB = 65536
Shapes = dict[str, tuple[int, ...]]


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def around(width: int) -> Shapes:
    return {"emb.weight": (VOCAB, width), "head.weight": (VOCAB, width), **norm("blocks.0.ln0", width),
            **norm("ln_out", width)}


def x060(width: int, layers: int, ffn: int, mix: int, decay: int) -> Shapes:
    shapes = around(width)
    for i in range(layers):
        block, att, ffn_ = f"blocks.{i}", f"blocks.{i}.att", f"blocks.{i}.ffn"
        shapes |= norm(f"{block}.ln1", width) | norm(f"{block}.ln2", width) | norm(f"{att}.ln_x", width)
        shapes |= {f"{att}.time_maa_{letter}": (1, 1, width) for letter in "xwkvrg"}
        shapes |= {
            f"{att}.time_maa_w1": (width, 5 * mix), f"{att}.time_maa_w2": (5, mix, width),
            f"{att}.time_decay": (1, 1, width), f"{att}.time_decay_w1": (width, decay),
            f"{att}.time_decay_w2": (decay, width), f"{att}.time_faaaa": (width // 64, 64),
        }
        shapes |= {f"{att}.{name}.weight": (width, width) for name in ("receptance", "key", "value", "gate", "output")}
        shapes |= {
            f"{ffn_}.time_maa_k": (1, 1, width), f"{ffn_}.time_maa_r": (1, 1, width),
            f"{ffn_}.key.weight": (ffn, width),
            f"{ffn_}.receptance.weight": (width, width), f"{ffn_}.value.weight": (width, ffn),
        }
    return shapes


def x070(width: int, layers: int, decay: int, rate: int, value: int, gate: int) -> Shapes:
    shapes = around(width)
    for i in range(layers):
        block, att, ffn = f"blocks.{i}", f"blocks.{i}.att", f"blocks.{i}.ffn"
        shapes |= norm(f"{block}.ln1", width) | norm(f"{block}.ln2", width) | norm(f"{att}.ln_x", width)
        shapes |= {f"{att}.x_{letter}": (1, 1, width) for letter in "rwkvag"}
        shapes |= {f"{att}.w0": (1, 1, width), f"{att}.w1": (width, decay), f"{att}.w2": (decay, width)}
        shapes |= {f"{att}.a0": (1, 1, width), f"{att}.a1": (width, rate), f"{att}.a2": (rate, width)}
        if i:  # the first layer's is in some files and read by none
            shapes |= {f"{att}.v0": (1, 1, width), f"{att}.v1": (width, value), f"{att}.v2": (value, width)}
        shapes |= {f"{att}.g1": (width, gate), f"{att}.g2": (gate, width)}
        shapes |= {f"{att}.k_k": (1, 1, width), f"{att}.k_a": (1, 1, width), f"{att}.r_k": (width // 64, 64)}
        shapes |= {f"{att}.{name}.weight": (width, width) for name in ("receptance", "key", "value", "output")}
        shapes |= {f"{ffn}.x_k": (1, 1, width), f"{ffn}.key.weight": (4 * width, width),
                   f"{ffn}.value.weight": (width, 4 * width)}
    return shapes


OFFICIAL = [
    # RWKV-x060-World: 1.6B, 3B, 7B, 14B; ranks 64 and 128 from a width of 4096 on
    ("rwkv6", {}, x060(2048, 24, 7168, 32, 64), 678, 1_599_873_024),
    ("rwkv6", {"hidden_size": 2560, "layers": 32}, x060(2560, 32, 8960, 32, 64), 902, 3_099_863_040),
    ("rwkv6", {"hidden_size": 4096, "layers": 32, "mix_rank": 64, "decay_rank": 128}, x060(4096, 32, 14336, 64, 128),
     902, 7_635_746_816),
    ("rwkv6", {"hidden_size": 4096, "layers": 61, "mix_rank": 64, "decay_rank": 128}, x060(4096, 61, 14336, 64, 128),
     1714, 14_069_088_256),
    # RWKV-x070-World; the paper counts 2DV + 4D + LD (12D + 2 (dw + da + dv + dg) + 19) - (2 D dv + D) parameters
    ("rwkv7", {"hidden_size": 768, "layers": 12}, x070(768, 12, 64, 64, 32, 128), 399, 191_034_624),
    ("rwkv7", {"hidden_size": 1024}, x070(1024, 24, 64, 64, 32, 128), 795, 450_767_872),
    ("rwkv7", {}, x070(2048, 24, 96, 96, 64, 256), 795, 1_527_404_544),
    ("rwkv7", {"hidden_size": 2560, "layers": 32}, x070(2560, 32, 96, 96, 64, 320), 1059, 2_947_735_040),
]


@pytest.mark.parametrize(("name", "options", "official", "keys", "parameters"), OFFICIAL,
                         ids=["x060-1.6B", "x060-3B", "x060-7B", "x060-14B", "x070-0.1B", "x070-0.4B", "x070-1.5B",
                              "x070-2.9B"])
def test_our_part_has_the_names_and_shapes_of_the_published_checkpoint(
    name: str, options: dict[str, Any], official: Shapes, keys: int, parameters: int
) -> None:
    with torch.device("meta"):
        part = BACKBONE.build({"name": name, **options}, vocab_size=VOCAB)
    assert {key: tuple(tensor.shape) for key, tensor in part.state_dict().items()} == official
    assert (len(official), sum(map(math.prod, official.values()))) == (keys, parameters)
