"""RWKV-6 on a CPU by our own kernels, where no gradient is wanted: the same as the modules compute, in fewer passes.

Shape letters: T packed positions, S sequences, D width, H heads, K head width, L layers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from aurora.interfaces import INITIAL_STATE, InitialState
from aurora.types import State

from ..kernels._native import arguments, library, missing, pointer, threads
from ..kernels.int8 import Int8Linear
from ..kernels.linear import project
from ..kernels.rwkv6_mix import mix_five, norm_gate, norm_shift
from ..kernels.wkv6 import wkv6
from ._layers import Linear
from ._packing import Row

MOST_SEQUENCES = 8
"""How many sequences one call can step."""

SMALL = (
    "ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias", "att.time_maa_x", "att.time_maa_w", "att.time_maa_k",
    "att.time_maa_v", "att.time_maa_r", "att.time_maa_g", "att.time_maa_w1", "att.time_maa_w2", "att.time_decay",
    "att.time_decay_w1", "att.time_decay_w2", "att.time_faaaa", "att.ln_x.weight", "att.ln_x.bias", "ffn.time_maa_k",
    "ffn.time_maa_r",
)
MATRICES = (
    "att.receptance", "att.key", "att.value", "att.gate", "att.output", "ffn.key", "ffn.receptance", "ffn.value",
)
DTYPES = (torch.float32, torch.bfloat16)


Place = tuple[dict[str, Any], str, Any, "int | None"]
"""A module's dictionary, a name in it, what that names, and where it lies in memory if it is a tensor."""


class Plan:
    """Where the weights of a model lie, as long as they lie there."""

    def __init__(self, model: Any) -> None:
        self.dtype = model.emb.weight.dtype
        # a tuned initial state is no weight: it comes in as a state
        modules = [module for module in model.modules() if not isinstance(module, InitialState)]
        # the model itself is not held: it lives as long as others hold it
        self.modules = [module for module in modules if module is not model]
        self.fit = _fits(model, modules)
        self.places: list[Place] = list(_places(modules))
        self.steps = False  # whether there are tables for stepping
        if self.fit:
            self._measure(model)

    def holds(self, model: nn.Module) -> bool:
        """Whether every module and tensor of the model is still what and where it was."""
        return all(
            name in held and held[name] is value and (place is None or value.data_ptr() == place)
            for held, name, value, place in self.places
        ) and not any(_hooked(module) for module in (model, *self.modules))

    def prepare(self, model: Any) -> None:
        """Lays out weights for stepping, and tells the kernels where they lie. A model that only reads rows keeps its
        weights as they are: it may be in the middle of its training."""
        if self.steps:
            return
        with torch.inference_mode(False), torch.no_grad():
            for block in model.blocks:
                _transpose(block.ffn.value)
        self.places = list(_places([model, *self.modules]))
        table = []
        for block in model.blocks:
            table += [block.get_parameter(name).data_ptr() for name in SMALL]
            table += [block.get_submodule(name).weight.data_ptr() for name in MATRICES]
            scales = [getattr(block.get_submodule(name), "scale", None) for name in MATRICES]
            table += [0 if scale is None else scale.data_ptr() for scale in scales]
        ends = (model.blocks[0].ln0, model.ln_out)
        self.pointers = (ctypes.c_void_p * len(table))(*table)
        self.ends = (ctypes.c_void_p * 4)(*(tensor.data_ptr() for norm in ends for tensor in _pair(norm)))
        self.steps = True

    def _measure(self, model: Any) -> None:
        first = model.blocks[0]
        rank = first.att.time_maa_w2.shape[1], first.att.time_decay_w1.shape[1]
        self.width, self.heads = model.hidden_size, first.att.heads
        sizes = (len(model.blocks), self.width, self.heads, first.ffn.key.weight.shape[0], *rank, 1)
        self.sizes = (ctypes.c_int64 * len(sizes))(*sizes)
        self.eps = first.att.ln_x.eps
        self.is_int8 = isinstance(first.att.key, Int8Linear)
        self.step = library("rwkv6").rwkv6_step
        self.step.argtypes = arguments("pfpp pppp pppp liii")
        self.step.restype = None


_plans: WeakKeyDictionary[nn.Module, Plan] = WeakKeyDictionary()


def plan_of(model: nn.Module, x: Tensor) -> Plan | None:
    """How our kernels read this model for inputs like x; None where they cannot."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return None
    if x.device.type != "cpu" or x.dtype not in DTYPES or model.training or missing("rwkv6") is not None:
        return None
    plan = _plans.get(model)
    if plan is None or not plan.holds(model):
        with torch.inference_mode(False), torch.no_grad():
            plan = _plans[model] = Plan(model)
    return plan if plan.fit and plan.dtype is x.dtype else None


def forward(model: Any, x: Tensor, row: Row, state: State | None, return_state: bool) -> tuple[Tensor, State | None]:
    """[T, D] → the hidden states [T, D], and each sequence's state when asked for."""
    x = model.blocks[0].ln0(x.contiguous())
    after: dict[str, list[Tensor]] = {"att_shift": [], "wkv": [], "ffn_shift": []}
    delta = gate = None
    for layer, block in enumerate(model.blocks):
        given = {name: None if state is None else state[name][layer].contiguous() for name in after}
        sum_, a, (x_mix,) = norm_shift(
            x, _pair(block.ln1), [block.att.time_maa_x], row.cu_seqlens, given["att_shift"], delta=delta, gate=gate
        )
        mixed, wkv = _time_mix(block.att, a, x_mix, row, given["att_shift"], given["wkv"], return_state)
        x, f, (k, r) = norm_shift(
            sum_, _pair(block.ln2), [block.ffn.time_maa_k, block.ffn.time_maa_r], row.cu_seqlens, given["ffn_shift"],
            delta=mixed,
        )
        delta = project(project(k, block.ffn.key, activation="squared_relu"), block.ffn.value)
        gate = project(r, block.ffn.receptance)
        if return_state:
            for name, tensor in zip(after, (a[row.last], wkv, f[row.last]), strict=True):
                assert tensor is not None
                after[name].append(tensor)
    _, hidden, _ = norm_shift(x, _pair(model.ln_out), [], row.cu_seqlens, delta=delta, gate=gate)
    return hidden, {name: torch.stack(tensors) for name, tensors in after.items()} if return_state else None


def _time_mix(
    att: Any, a: Tensor, x_mix: Tensor, row: Row, before: Tensor | None, wkv: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    hidden = torch.tanh(x_mix @ att.time_maa_w1)
    ratios = hidden.view(len(a), 5, -1).transpose(0, 1) @ att.time_maa_w2
    constants = (att.time_maa_w, att.time_maa_k, att.time_maa_v, att.time_maa_r, att.time_maa_g)
    w, k, v, r, g = mix_five(a, ratios, constants, row.cu_seqlens, before)
    heads = (len(a), att.heads, -1)
    y, after = wkv6(
        project(r, att.receptance).view(heads), project(k, att.key).view(heads), project(v, att.value).view(heads),
        att._decay(w).view(heads), att.time_faaaa, row.cu_seqlens, wkv, return_state=return_state,
    )
    gated = norm_gate(y.flatten(-2), project(g, att.gate), _pair(att.ln_x), att.heads, att.ln_x.eps)
    return project(gated, att.output), after


def _pair(norm: Any) -> tuple[Tensor, Tensor]:
    return norm.weight, norm.bias


def step(model: nn.Module, plan: Plan, x: Tensor, state: State) -> tuple[Tensor, State]:
    """[S, D] → [S, D] and the next state."""
    plan.prepare(model)
    given = {name: tensor.contiguous() for name, tensor in state.items()}
    after = {name: torch.empty_like(tensor) for name, tensor in given.items()}
    x, hidden = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    plan.step(
        plan.sizes, plan.eps, plan.pointers, plan.ends, pointer(x), pointer(given["att_shift"]), pointer(given["wkv"]),
        pointer(given["ffn_shift"]), pointer(hidden), pointer(after["att_shift"]), pointer(after["wkv"]),
        pointer(after["ffn_shift"]), len(x), x.dtype is torch.bfloat16, plan.is_int8, threads(),
    )
    return hidden, after


def can_step(plan: Plan | None, x: Tensor, state: State) -> bool:
    """Whether these sequences can be stepped by one call."""
    return (
        plan is not None and 1 <= len(x) <= MOST_SEQUENCES and x.shape[1] == plan.width
        and state["att_shift"].dtype is state["ffn_shift"].dtype is x.dtype and state["wkv"].dtype is torch.float32
        and all(tensor.device.type == "cpu" for tensor in state.values())
        and state["att_shift"].shape == state["ffn_shift"].shape == (plan.sizes[0], len(x), plan.width)
        and state["wkv"].shape[:3] == (plan.sizes[0], len(x), plan.heads)
    )


def _fits(model: Any, modules: list[nn.Module]) -> bool:
    from .rwkv6 import RWKV6, Block, ChannelMix, TimeMix

    plain = {RWKV6, Block, TimeMix, ChannelMix, Linear, nn.LayerNorm, nn.GroupNorm, nn.Embedding, nn.ModuleList}
    matrices = {type(block.get_submodule(name)) for block in model.blocks for name in MATRICES}
    return (
        {type(module) for module in modules} <= plain | {Int8Linear} and len(matrices) == 1
        and not any(map(_hooked, modules))
        and all(
            type(p) is nn.Parameter and p.dtype is model.emb.weight.dtype and p.device.type == "cpu"
            and (p.is_contiguous() or name.endswith("ffn.value.weight"))
            for name, p in model.named_parameters() if not name.startswith(INITIAL_STATE)
        )
        and all(
            b.device.type == "cpu" and (b.dtype is torch.float32 or name.endswith(".weight"))
            for name, b in model.named_buffers()
        )
    )


def _hooked(module: nn.Module) -> bool:
    """Whether somebody wants to be there when the module is called, or to stand in for it."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)


def _transpose(value: Linear | Int8Linear) -> None:
    """Lays the weights of each hidden unit side by side, so that those of silent ones need not be read."""
    weight = value.weight
    if not weight.t().is_contiguous():
        weight.data = weight.data.t().contiguous().t()


def _places(modules: list[nn.Module]) -> Iterator[Place]:
    for module in modules:
        for name, child in module._modules.items():
            yield module._modules, name, child, None
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                yield tensors, name, tensor, None if tensor is None else tensor.data_ptr()
