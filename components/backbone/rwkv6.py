"""RWKV-6 (Finch, x060), arXiv 2404.05892; parameters are named as in the authors' checkpoints.

Shape letters: T packed positions, S sequences, D width, H heads, K head width, F width of the channel mix, L layers,
V vocabulary.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aurora.errors import AuroraError
from aurora.interfaces import INITIAL_STATE, Runner
from aurora.options import PositiveInt
from aurora.registry import BACKBONE
from aurora.types import State
from aurora.weights.convert import load_base, open_source
from aurora.weights.loading import write_tensors

from ..kernels.wkv6 import wkv6, wkv6_step
from ._layers import Linear, check_heads, orthogonal, parameter, with_range
from ._layouts_rwkv6 import FAMILY
from ._linear_rnn import Span
from ._rwkv import GROUP_NORM_EPS, RWKV, Block
from ._rwkv6_runner import runner_of

TIME_STATE = ".att.time_state"  # a tuned initial state, as the authors name it inside a checkpoint or alone


class TimeMix(nn.Module):
    """Reads the past through the WKV operator."""

    def __init__(self, width: int, head_size: int, mix_rank: int, decay_rank: int) -> None:
        super().__init__()
        self.heads = width // head_size
        self.time_maa_x = parameter(1, 1, width)
        self.time_maa_w = parameter(1, 1, width)
        self.time_maa_k = parameter(1, 1, width)
        self.time_maa_v = parameter(1, 1, width)
        self.time_maa_r = parameter(1, 1, width)
        self.time_maa_g = parameter(1, 1, width)
        self.time_maa_w1 = parameter(width, 5 * mix_rank)
        self.time_maa_w2 = parameter(5, mix_rank, width)
        self.time_decay = parameter(1, 1, width)
        self.time_decay_w1 = parameter(width, decay_rank)
        self.time_decay_w2 = parameter(decay_rank, width)
        self.time_faaaa = parameter(self.heads, head_size)
        self.receptance = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.gate = Linear(width, width)
        self.output = Linear(width, width)
        self.ln_x = nn.GroupNorm(self.heads, width, eps=GROUP_NORM_EPS)

    def forward(self, x: Tensor, before: Tensor, *, row: Span, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[T, D], what stood before each position [T, D], state [S, H, K, K] → [T, D] and the next state."""
        w, k, v, r, g = self._mix(x, before)
        r, k, v = (with_range(part) for part in (self.receptance(r), self.key(k), self.value(v)))
        inputs = (part.view(len(x), self.heads, -1) for part in (r, k, v, self._decay(w)))
        y, state = row.recur(wkv6, wkv6_step, *inputs, self.time_faaaa, state=state)
        return self.output(self.ln_x(y.flatten(-2)) * F.silu(self.gate(g))), state

    def _mix(self, x: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        """Five mixtures of each position and the one before it, their ratios read from both."""
        difference = before - x
        hidden = torch.tanh((x + difference * self.time_maa_x[0]) @ self.time_maa_w1)
        ratios = hidden.view(len(x), 5, -1).transpose(0, 1) @ self.time_maa_w2  # [5, T, D]
        constant = (self.time_maa_w, self.time_maa_k, self.time_maa_v, self.time_maa_r, self.time_maa_g)
        return tuple(
            torch.addcmul(x, difference, ratio + maa[0]) for maa, ratio in zip(constant, ratios, strict=True)
        )

    def _decay(self, x: Tensor) -> Tensor:
        """[T, D], raw: the decay exp(-exp(w)) would lose all in bfloat16, so it stays wide from here on."""
        wide = torch.promote_types(x.dtype, torch.float32)
        change = torch.tanh(x @ self.time_decay_w1) @ self.time_decay_w2
        return self.time_decay[0].to(wide) + change.to(wide)

    def initialise(self, depth: float, height: float) -> None:
        """Early channels look at the position before and forget fast, late ones remember (appendix of the paper)."""
        width = self.time_maa_x.shape[-1]
        channel = torch.arange(width, device=self.time_maa_x.device)
        share = channel / width
        for maa in (self.time_maa_x, self.time_maa_w, self.time_maa_k):
            maa.copy_(1 - share**height)
        self.time_maa_v.copy_(1 - (share**height + 0.3 * depth))
        for maa in (self.time_maa_r, self.time_maa_g):
            maa.copy_(1 - share ** (0.5 * height))
        nn.init.uniform_(self.time_maa_w1, -1e-4, 1e-4)
        nn.init.uniform_(self.time_maa_w2, -1e-2, 1e-2)

        along = channel / max(1, width - 1)
        self.time_decay.copy_(-6 + 5 * along ** (0.7 + 1.3 * depth))
        nn.init.uniform_(self.time_decay_w1, -1e-4, 1e-4)
        nn.init.uniform_(self.time_decay_w2, -1e-2, 1e-2)
        zigzag = 0.1 * ((channel + 1) % 3 - 1)
        self.time_faaaa.copy_((depth * (1 - along) + zigzag).view_as(self.time_faaaa))

        orthogonal(self.receptance.weight, 1.0)
        orthogonal(self.key.weight, 0.1)
        orthogonal(self.value.weight, 1.0)
        orthogonal(self.gate.weight, 0.1)
        nn.init.zeros_(self.output.weight)


class ChannelMix(nn.Module):
    """Works on each position and the one before it."""

    def __init__(self, width: int, ffn_size: int) -> None:
        super().__init__()
        self.time_maa_k = parameter(1, 1, width)
        self.time_maa_r = parameter(1, 1, width)
        self.key = Linear(width, ffn_size)
        self.receptance = Linear(width, width)
        self.value = Linear(ffn_size, width)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """[T, D], what stood before each position [T, D] → [T, D]."""
        difference = before - x
        k = torch.addcmul(x, difference, self.time_maa_k[0])
        r = torch.addcmul(x, difference, self.time_maa_r[0])
        value: Tensor = self.value(torch.relu(self.key(k)).square())
        return torch.sigmoid(self.receptance(r)) * value

    def initialise(self, height: float) -> None:
        """Fills the parameters; `height` falls from 1 to almost 0 with depth."""
        width = self.time_maa_k.shape[-1]
        share = torch.arange(width, device=self.time_maa_k.device) / width
        for maa in (self.time_maa_k, self.time_maa_r):
            maa.copy_(1 - share**height)
        orthogonal(self.key.weight, 1.0)
        nn.init.zeros_(self.receptance.weight)
        nn.init.zeros_(self.value.weight)


@BACKBONE.register
class RWKV6(RWKV):
    """RWKV-6 (Finch), a linear RNN whose decay depends on what it reads; defaults are those of the 1.6B model."""

    layouts = FAMILY

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: PositiveInt = 2048,
        layers: PositiveInt = 24,
        head_size: PositiveInt = 64,
        ffn_size: PositiveInt | None = None,
        mix_rank: PositiveInt = 32,
        decay_rank: PositiveInt = 64,
    ) -> None:
        ffn_size = max(32, int(3.5 * hidden_size) // 32 * 32) if ffn_size is None else ffn_size
        check_heads("rwkv6", hidden_size, head_size)
        super().__init__(vocab_size, hidden_size, head_size, (
            (TimeMix(hidden_size, head_size, mix_rank, decay_rank), ChannelMix(hidden_size, ffn_size))
            for _ in range(layers)
        ))

    def runner(self) -> Runner:
        """On a CPU our own kernels, in fewer passes than the modules."""
        return runner_of(self, {RWKV6, Block, TimeMix, ChannelMix})

    def load_base(self, path: str) -> None:
        """Reads a checkpoint in any layout of `aurora convert`, with or without a tuned initial state."""
        source = open_source(path, FAMILY)
        tuned = self.import_state(
            {name: source.tensors.pop(name) for name in [*source.tensors] if name.endswith(TIME_STATE)})
        load_base(self, source)
        if tuned:
            self.start_from(tuned)

    def save_base(self, path: str) -> None:
        """Writes what `load_base` reads: `.pth` or `.safetensors` by the ending of the path."""
        own = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(INITIAL_STATE)}
        tuned = {} if self.initial_state is None else self.export_state(self.initial_state.values())
        write_tensors(own | tuned, path)

    def export_state(self, state: State) -> dict[str, Tensor]:
        """`wkv` [L, 1, H, K, K] (key, value) → blocks.0.att.time_state [H, K, K] (value, key), …; other states stay."""
        tensors = {name: tensor for name, tensor in state.items() if name != "wkv"}
        for layer, memory in enumerate(state.get("wkv", ())):
            tensors[f"blocks.{layer}{TIME_STATE}"] = memory[0].mT.contiguous()
        return tensors

    def import_state(self, tensors: Mapping[str, Tensor]) -> State:
        state = {name: tensor for name, tensor in tensors.items() if not name.endswith(TIME_STATE)}
        given = {name: tensor for name, tensor in tensors.items() if name.endswith(TIME_STATE)}
        if not given:
            return state
        names = [f"blocks.{layer}{TIME_STATE}" for layer in range(len(self.blocks))]
        shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
        wanted = self.state_shapes["wkv"]
        if shapes != dict.fromkeys(names, wanted):
            first = next(iter(shapes))
            raise AuroraError(f"{len(shapes)} tuned initial states such as {first} {shapes[first]} do not fit: this "
                              f"backbone has {len(names)} layers of {wanted}")
        state["wkv"] = torch.stack([given[name].float().mT for name in names]).unsqueeze(1)
        return state
