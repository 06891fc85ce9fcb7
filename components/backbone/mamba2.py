"""Mamba-2, arXiv 2405.21060, with one group of keys and queries and tied embeddings, as its published models have.

Shape letters: T packed positions, S sequences, D width, I inner width, H heads, K state width, W positions that a
convolution sees, E = I + 2 K convolved channels, L layers, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aurora.errors import AuroraError
from aurora.options import PositiveInt
from aurora.registry import BACKBONE
from aurora.types import State

from ..kernels.ssd import ssd, ssd_step
from ._layers import Linear, fill_steps
from ._layouts_mamba2 import FAMILY
from ._linear_rnn import ConvSize, LinearRNN, Span, convolve, latest

NORM_EPS = 1e-5


class Mixer(nn.Module):
    """A short convolution, then the state space operator, then a gate."""

    def __init__(self, width: int, inner: int, head_size: int, state_size: int, conv_size: int) -> None:
        super().__init__()
        self.heads = inner // head_size
        self.conv_size = conv_size
        self.splits = [inner, inner + 2 * state_size, self.heads]
        self.parts = [inner, state_size, state_size]
        channels = inner + 2 * state_size
        self.in_proj = Linear(width, sum(self.splits))
        self.conv1d = nn.Conv1d(channels, channels, conv_size, groups=channels)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.norm = nn.RMSNorm(inner, eps=NORM_EPS)
        self.out_proj = Linear(inner, width)

    def forward(self, x: Tensor, row: Span, state: State) -> tuple[Tensor, State]:
        """[T, D] → [T, D] and the next state: conv [S, W - 1, E], the latest input last, ssm [S, H, K, I / H]."""
        gate, inputs, step = torch.split(self.in_proj(x), self.splits, dim=-1)
        seen = row.window(inputs, state.get("conv"), self.conv_size)
        convolved = F.silu(convolve(seen, self.conv1d.weight, self.conv1d.bias))
        values, keys, queries = torch.split(convolved, self.parts, dim=-1)
        values = values.reshape(len(x), self.heads, -1)
        wide = torch.promote_types(x.dtype, torch.float32)
        step = F.softplus(step.to(wide) + self.dt_bias.to(wide))  # [T, H]
        log_decay = -step * self.A_log.to(wide).exp()
        y, ssm = row.recur(ssd, ssd_step, queries, keys, values * step.unsqueeze(-1), log_decay, state=state.get("ssm"))
        y = (y + values * self.D.unsqueeze(-1)).to(x.dtype).flatten(-2)
        out = self.out_proj(self.norm(y * F.silu(gate)))
        return out, {} if ssm is None else {"conv": latest(seen, row), "ssm": ssm}

    def initialise(self, layers: int) -> None:
        """Fills the parameters, of one of so many layers."""
        nn.init.kaiming_uniform_(self.in_proj.weight, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        self.out_proj.weight.div_(math.sqrt(layers))
        self.conv1d.reset_parameters()
        self.norm.reset_parameters()
        nn.init.ones_(self.D)
        self.A_log.uniform_(1, 16).log_()
        fill_steps(self.dt_bias)


class Block(nn.Module):
    """One layer."""

    def __init__(self, width: int, inner: int, head_size: int, state_size: int, conv_size: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mixer = Mixer(width, inner, head_size, state_size, conv_size)

    def forward(self, x: Tensor, row: Span, state: State) -> tuple[Tensor, State]:
        """[T, D] → [T, D] and the next state."""
        mixed, after = self.mixer(self.norm(x), row, state)
        return x + mixed, after


@BACKBONE.register
class Mamba2(LinearRNN):
    """Mamba-2, a linear RNN with one decay per head; defaults are those of the 1.3B model.

    Parameters are named as `transformers` names them.
    """

    block_class = Block
    recurrence = "ssm"
    part_names = ("embeddings", "layers", "norm_f")
    layouts = FAMILY

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: PositiveInt = 2048,
        layers: PositiveInt = 48,
        head_size: PositiveInt = 64,
        state_size: PositiveInt = 128,
        expand: PositiveInt = 2,
        conv_size: ConvSize = 4,
    ) -> None:
        inner = expand * hidden_size
        if inner % head_size:
            raise AuroraError(f"backbone 'mamba2': expand · hidden_size = {inner} (hidden_size {hidden_size}) is not a "
                              f"multiple of head_size {head_size}")
        super().__init__(vocab_size, hidden_size, {
            "conv": (conv_size - 1, inner + 2 * state_size),
            "ssm": (inner // head_size, state_size, head_size),
        })
        self.embeddings = nn.Embedding(vocab_size, hidden_size, _weight=torch.empty(vocab_size, hidden_size))
        self.layers = nn.ModuleList(
            Block(hidden_size, inner, head_size, state_size, conv_size) for _ in range(layers)
        )
        self.norm_f = nn.RMSNorm(hidden_size, eps=NORM_EPS)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fills every parameter as the authors do before training."""
        if self.embeddings.weight.is_meta:
            return
        nn.init.normal_(self.embeddings.weight, std=0.02)
        self.norm_f.reset_parameters()
        for block in self.layers:
            assert isinstance(block, Block)
            block.norm.reset_parameters()
            block.mixer.initialise(len(self.layers))

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embeddings.weight)

    def makers_name(self, name: str) -> str:
        return f"backbone.{name}"
