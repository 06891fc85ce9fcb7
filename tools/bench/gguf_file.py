"""RWKV-6 weights as llama.cpp reads them: tensors in the authors' layout become a GGUF of architecture `rwkv6`.

Shape letters: D width, R rank of the mixing, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aurora.errors import AuroraError

CONTEXT = 2**20  # the context length of a model that has no limit
_TOP = {"emb.weight": "token_embd", "head.weight": "output",
        "ln_out": "output_norm", "blocks.0.ln0": "token_embd_norm"}
_MIXED = "wkvrg"  # the order in which llama.cpp stacks the constant parts of the five mixtures
_MATRICES = ("key", "value", "receptance", "gate", "output")


def write_gguf(weights: Mapping[str, Tensor], path: Path, dtype: torch.dtype) -> None:
    """Writes the weights, a tensor at a time: the large matrices in `dtype` (float32 or bfloat16), the rest in float32.

    The file holds the size of the vocabulary but no words: it is fed ids. AuroraError for weights of another model.
    """
    import gguf

    if "blocks.0.att.time_maa_w2" not in weights or "head.weight" not in weights:
        raise AuroraError("these are no RWKV-6 weights: blocks.0.att.time_maa_w2 or head.weight is missing")
    bfloat16 = dtype == torch.bfloat16
    writer = gguf.GGUFWriter(path, "rwkv6")
    _describe(writer, weights, gguf.LlamaFileType.MOSTLY_BF16 if bfloat16 else gguf.LlamaFileType.ALL_F32)
    tensors = dict(_renamed(weights))
    for name, tensor in tensors.items():
        half = bfloat16 and _is_large(name)
        kind = gguf.GGMLQuantizationType.BF16 if half else gguf.GGMLQuantizationType.F32
        writer.add_tensor_info(name, tuple(tensor.shape), None, tensor.numel() * (2 if half else 4), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        # numpy has no bfloat16: the bits travel as integers
        plain = tensor.to(torch.bfloat16).contiguous().view(torch.int16) if bfloat16 and _is_large(name) else (
            tensor.float().contiguous())
        writer.write_tensor_data(plain.numpy())
    writer.close()


def _describe(writer: Any, weights: Mapping[str, Tensor], file_type: int) -> None:
    vocab, width = weights["emb.weight"].shape
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(sum(name.endswith("att.time_maa_w2") for name in weights))
    writer.add_layer_norm_eps(1e-5)
    writer.add_rescale_every_n_layers(0)
    writer.add_wkv_head_size(weights["blocks.0.att.time_faaaa"].shape[-1])
    writer.add_time_mix_extra_dim(weights["blocks.0.att.time_maa_w2"].shape[1])
    writer.add_time_decay_extra_dim(weights["blocks.0.att.time_decay_w2"].shape[0])
    writer.add_feed_forward_length(weights["blocks.0.ffn.key.weight"].shape[0])
    writer.add_head_count(0)  # must be there, is not read
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("none")
    writer.add_file_type(file_type)


def _renamed(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under llama.cpp's name and in its orientation."""
    for name, tensor in weights.items():
        base, _, kind = name.rpartition(".")
        if name in _TOP:
            yield f"{_TOP[name]}.weight", tensor
        elif base in _TOP:
            yield f"{_TOP[base]}.{kind}", tensor
        else:
            _, layer, part = name.split(".", 2)
            yield from ((f"blk.{layer}.{new}", x) for new, x in _of_block(part, tensor, weights, layer))


def _of_block(part: str, tensor: Tensor, weights: Mapping[str, Tensor], layer: str) -> Iterator[tuple[str, Tensor]]:
    home, _, rest = part.partition(".")
    mix = "time_mix" if home == "att" else "channel_mix"
    name, _, kind = rest.partition(".")
    if home in ("ln1", "ln2"):
        yield f"attn_norm{'' if home == 'ln1' else '_2'}.{rest}", tensor
    elif name == "ln_x":
        yield f"{mix}_ln.{kind}", tensor
    elif name in _MATRICES:
        yield f"{mix}_{name}.weight", tensor
    elif name == "time_maa_w1":
        yield f"{mix}_w1.weight", tensor.T
    elif name == "time_maa_w2":
        yield f"{mix}_w2.weight", tensor.transpose(1, 2)  # [5, R, D] → [5, D, R]
    elif name == "time_faaaa":
        yield f"{mix}_first.weight", tensor
    elif name == "time_decay":
        yield f"{mix}_decay.weight", tensor.flatten()
    elif name.startswith("time_decay_"):
        yield f"{mix}_decay_{name[-2:]}.weight", tensor.T
    elif home == "ffn" or name == "time_maa_x":
        yield f"{mix}_lerp_{name[-1]}.weight", tensor
    elif name == "time_maa_w":
        stacked = [weights[f"blocks.{layer}.att.time_maa_{letter}"].flatten() for letter in _MIXED]
        yield f"{mix}_lerp_fused.weight", torch.stack(stacked)[:, None, None]  # [5, 1, 1, D]


def _is_large(name: str) -> bool:
    base = name.removesuffix(".weight").rpartition(".")[2]
    return base in ("token_embd", "output") or base.partition("_mix_")[2] in _MATRICES
