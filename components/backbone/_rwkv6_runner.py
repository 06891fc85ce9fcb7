"""Inference of RWKV-6 on a CPU by our own kernels: the same as the modules compute, in fewer passes.

Shape letters: T packed positions, S sequences, D width, H heads, K head width, L layers.
"""

import ctypes
import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from aurora.interfaces import INITIAL_STATE, InitialState, Runner
from aurora.types import State
from aurora.weights.io import large_pages

from ..kernels._native import address, altered, library, missing
from ..kernels.linear import Int8Linear, has_tiles, project
from ..kernels.rwkv6_mix import mix_five, norm_gate, norm_shift
from ..kernels.wkv6 import wkv6
from ._layers import Linear
from ._linear_rnn import Row
from ._rwkv import FEW_OF_NARROW, NARROW

MOST_SEQUENCES = 64
"""How many sequences one call steps: with more, the modules' matrix products are faster."""

SMALL = (
    "ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias", "att.time_maa_x", "att.time_maa_w", "att.time_maa_k",
    "att.time_maa_v", "att.time_maa_r", "att.time_maa_g", "att.time_maa_w1", "att.time_maa_w2", "att.time_decay",
    "att.time_decay_w1", "att.time_decay_w2", "att.time_faaaa", "att.ln_x.weight", "att.ln_x.bias", "ffn.time_maa_k",
    "ffn.time_maa_r",
)
MATRICES = (
    "att.receptance", "att.key", "att.value", "att.gate", "att.output", "ffn.key", "ffn.receptance", "ffn.value",
)
STEPS = torch.arange(MOST_SEQUENCES + 1, device="cpu")  # this may be imported where another device is the default
"""The bounds of sequences of one position each."""
DTYPES = (torch.float32, torch.bfloat16)
PLAIN: set[type[nn.Module]] = {Linear, Int8Linear, nn.LayerNorm, nn.GroupNorm, nn.Embedding, nn.ModuleList}
"""Modules that compute what the kernels do."""


class FusedRunner(Runner):
    """Holds the addresses of the weights, and lays out those that the step reads."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.dtype = model.emb.weight.dtype
        first = model.blocks[0]
        rank = first.att.time_maa_w2.shape[1], first.att.time_decay_w1.shape[1]
        self.width, self.heads = model.hidden_size, first.att.heads
        sizes = (len(model.blocks), self.width, self.heads, first.ffn.key.weight.shape[0], *rank,
                 self.width <= NARROW)
        self._sizes = (ctypes.c_int64 * len(sizes))(*sizes)
        self._eps = first.att.ln_x.eps
        self._is_int8 = isinstance(first.att.key, Int8Linear)
        self.most_positions = _most_positions(self.width, self.dtype, is_int8=self._is_int8)
        self._read = library("rwkv6").rwkv6_read
        for block in model.blocks:
            for name in _laid_out(self.width):
                _transpose(block.get_submodule(name))
        table = []
        for block in model.blocks:
            table += [block.get_parameter(name).data_ptr() for name in SMALL]
            table += [block.get_submodule(name).weight.data_ptr() for name in MATRICES]
            scales = [getattr(block.get_submodule(name), "scale", None) for name in MATRICES]
            table += [0 if scale is None else scale.data_ptr() for scale in scales]
        self._pointers = (ctypes.c_void_p * len(table))(*table)
        ends = (model.blocks[0].ln0, model.ln_out)
        self._ends = (ctypes.c_void_p * 4)(*(tensor.data_ptr() for norm in ends for tensor in _pair(norm)))
        self._modules = _modules(model)
        # a module's dictionary, a name in it, what that names, and where that lies in memory if it is a tensor
        self._places: list[tuple[Mapping[str, Any], str, Any, int | None]] = [
            (held, name, value, value.data_ptr() if isinstance(value, Tensor) else None)
            for module in self._modules for held in (module._modules, module._parameters, module._buffers)
            for name, value in held.items()
        ]

    @torch.no_grad()
    def read(
        self, x: Tensor, cu_seqlens: Tensor, state: State | None = None, *, return_state: bool = True
    ) -> tuple[Tensor, State | None]:
        if x.dtype is not self.dtype or torch.is_autocast_enabled("cpu"):
            return super().read(x, cu_seqlens, state, return_state=return_state)
        _check_bounds(cu_seqlens, len(x))
        if state is None:
            state = self.backbone.init_state(len(cu_seqlens) - 1)
        if len(x) <= self.most_positions and self.fuses(x, len(cu_seqlens) - 1, state):
            hidden, after = self._fused(x, cu_seqlens, state)
            return hidden, after if return_state else None
        self._check()
        return _read(self.backbone, x, Row.of(cu_seqlens, x.device, return_state), state)

    @torch.no_grad()
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if len(x) <= MOST_SEQUENCES and self.fuses(x, len(x), state):
            return self._fused(x, STEPS[: len(x) + 1], state)
        return super().step(x, state)

    def fuses(self, x: Tensor, sequences: int, state: State) -> bool:
        """Whether one call can read the positions x [T, D] of so many sequences. In it nothing depends on what else is
        read, and nothing else of the interpreter waits for it."""
        return (
            len(x) >= 1 and x.shape[1] == self.width
            and state["att_shift"].dtype is state["ffn_shift"].dtype is x.dtype is self.dtype
            and state["wkv"].dtype is torch.float32
            and all(tensor.device.type == "cpu" for tensor in (x, *state.values()))
            and state["att_shift"].shape == state["ffn_shift"].shape == (self._sizes[0], sequences, self.width)
            and state["wkv"].shape[:3] == (self._sizes[0], sequences, self.heads)
        )

    def _fused(self, x: Tensor, cu_seqlens: Tensor, state: State) -> tuple[Tensor, State]:
        self._check()
        given = {name: tensor.contiguous() for name, tensor in state.items()}
        after = {name: torch.empty_like(tensor) for name, tensor in given.items()}
        x, bounds = x.contiguous(), cu_seqlens.to("cpu", torch.int64).contiguous()
        hidden = torch.empty_like(x, memory_format=torch.contiguous_format)
        names = ("att_shift", "wkv", "ffn_shift")
        tensors = (x, *(given[name] for name in names), hidden, *(after[name] for name in names), bounds)
        self._read(
            self._sizes, self._eps, self._pointers, self._ends, *map(address, tensors), len(bounds) - 1,
            x.dtype is torch.bfloat16, self._is_int8, _threads(len(x), self.width),
        )
        return hidden, after

    def _check(self) -> None:
        """RuntimeError unless every module and tensor is still what and where it was."""
        if not all(
            name in held and held[name] is value and (place is None or value.data_ptr() == place)
            for held, name, value, place in self._places
        ) or altered(self._modules):
            raise RuntimeError("modules, weights or hooks of the backbone have changed since this runner was made for "
                               "them; make another one with backbone.runner(), or a new session")


def runner_of(model: Any, plain: set[type[nn.Module]]) -> Runner:
    """The fused runner of an RWKV-6 model on a CPU, or one that calls the modules and says why; `plain` are the
    classes of its modules, whose subclasses may compute something else."""
    reason = _reason(model, plain | PLAIN)
    return FusedRunner(model) if reason is None else Runner(model, reason)


def _reason(model: Any, plain: set[type[nn.Module]]) -> str | None:
    """Why our kernels cannot read this model; None where they can."""
    weight = model.emb.weight
    if weight.device.type != "cpu" or weight.dtype not in DTYPES:
        return f"the fused runner is for float32 and bfloat16 on a CPU, not {weight.dtype} on {weight.device.type}"
    if (lacking := missing("rwkv6") or missing("rwkv6_mix")) is not None:
        return lacking
    for module in _modules(model):
        if type(module) not in plain:
            return f"the fused runner does not know {type(module).__name__}"
        if altered([module]):
            return f"a {type(module).__name__} has a hook, or a forward of its own"
    if len({type(block.get_submodule(name)) for block in model.blocks for name in MATRICES}) > 1:
        return "some matrices are rounded and others are not"
    for name, p in model.named_parameters():
        if not name.startswith(INITIAL_STATE) and not (
            type(p) is nn.Parameter and p.dtype is weight.dtype and p.device.type == "cpu"
            and (p.is_contiguous() or name.removesuffix(".weight").endswith(_laid_out(model.hidden_size)))
        ):
            return f"{name} has another type, dtype, device or layout than the other weights"
    for name, b in model.named_buffers():
        if b.device.type != "cpu" or not (b.dtype is torch.float32 or name.endswith(".weight")):
            return f"{name} has another dtype or device than the other weights"
    return None


def _read(model: Any, x: Tensor, row: Row, state: State | None) -> tuple[Tensor, State | None]:
    """[T, D] → the hidden states [T, D], and each sequence's state when asked for."""
    x = model.blocks[0].ln0(x.contiguous())
    after: dict[str, list[Tensor]] = {"att_shift": [], "wkv": [], "ffn_shift": []}
    delta = gate = att_shift = wkv = ffn_shift = None
    for layer, block in enumerate(model.blocks):
        if state is not None:
            att_shift, ffn_shift = (state[name][layer].to(x.dtype).contiguous() for name in ("att_shift", "ffn_shift"))
            wkv = state["wkv"][layer]
        sum_, a, (x_mix,) = norm_shift(
            x, _pair(block.ln1), [block.att.time_maa_x], row.cu_seqlens, att_shift, delta=delta, gate=gate
        )
        mixed, ended = _time_mix(block.att, a, x_mix, row, att_shift, wkv)
        x, f, (k, r) = norm_shift(
            sum_, _pair(block.ln2), [block.ffn.time_maa_k, block.ffn.time_maa_r], row.cu_seqlens, ffn_shift, delta=mixed
        )
        delta = project(project(k, block.ffn.key, activation="squared_relu"), block.ffn.value)
        gate = project(r, block.ffn.receptance)
        if row.keeps:
            for name, tensor in zip(after, (a[row.last], ended, f[row.last]), strict=True):
                assert tensor is not None
                after[name].append(tensor)
    _, hidden, _ = norm_shift(x, _pair(model.ln_out), [], row.cu_seqlens, delta=delta, gate=gate)
    return hidden, {name: torch.stack(tensors) for name, tensors in after.items()} if row.keeps else None


def _time_mix(
    att: Any, a: Tensor, x_mix: Tensor, row: Row, before: Tensor | None, wkv: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    hidden = torch.tanh(x_mix @ att.time_maa_w1)
    ratios = hidden.view(len(a), 5, -1).transpose(0, 1) @ att.time_maa_w2
    constants = (att.time_maa_w, att.time_maa_k, att.time_maa_v, att.time_maa_r, att.time_maa_g)
    w, k, v, r, g = mix_five(a, ratios, constants, row.cu_seqlens, before)
    heads = (len(a), att.heads, -1)
    y, after = wkv6(
        project(r, att.receptance).view(heads), project(k, att.key).view(heads), project(v, att.value).view(heads),
        att._decay(w).view(heads), att.time_faaaa, row.cu_seqlens, wkv, return_state=row.keeps,
    )
    gated = norm_gate(y.flatten(-2), project(g, att.gate), _pair(att.ln_x), att.heads, att.ln_x.eps)
    return project(gated, att.output), after


def _most_positions(width: int, dtype: torch.dtype, *, is_int8: bool) -> int:
    """Up to how many positions one call reads them, by what was measured with a width of 768 on a processor without a
    tile unit; with one, by caution. Narrow models are always read so: that is faster in bfloat16 and with few
    positions, and nothing ever depends on what else is read."""
    if width <= NARROW:
        return sys.maxsize
    if has_tiles():
        return 16
    return 128 if is_int8 or dtype is torch.bfloat16 else 32


def _threads(positions: int, width: int) -> int:
    """Threads that read so many positions: of a narrow model few are read before other threads have begun."""
    return 1 if width <= NARROW and positions <= FEW_OF_NARROW else torch.get_num_threads()


def _check_bounds(cu_seqlens: Tensor, positions: int) -> None:
    """ValueError unless sequences that are not empty make up all positions: kernels would read behind the end."""
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != positions or any(start >= end for start, end in pairwise(bounds)):
        raise ValueError(f"cu_seqlens {bounds} are not the bounds of sequences, none of them empty, that make up "
                         f"{positions} positions")


def _pair(norm: Any) -> tuple[Tensor, Tensor]:
    return norm.weight, norm.bias


def _modules(model: nn.Module) -> list[nn.Module]:
    """The model and what it consists of; a tuned initial state is not a weight: it comes in as a state."""
    return [module for module in model.modules() if not isinstance(module, InitialState)]


def _laid_out(width: int) -> tuple[str, ...]:
    """The matrices that are read input by input: of a narrow model all, since sums then stay in registers; of others
    the one whose inputs are mostly silent, so that their weights need not be read."""
    return MATRICES if width <= NARROW else ("ffn.value",)


def _transpose(matrix: Linear | Int8Linear) -> None:
    """Lays the weights of each input side by side."""
    weight = matrix.weight
    # what is to be trained later must not become an inference tensor
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        if not weight.t().is_contiguous():
            weight.data = large_pages(torch.empty(*weight.shape[::-1], dtype=weight.dtype)).copy_(weight.t()).t()
