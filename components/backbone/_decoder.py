"""A stack of blocks, each a mixer that reads the past and a SwiGLU MLP; gated linear attention and its successors.

Parameters are named as the models of flash-linear-attention name them, without the `model.` before most of them.

Shape letters: T packed positions, S sequences, D width, L layers, V vocabulary.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from aurora.errors import AuroraError
from aurora.types import State
from aurora.weights.io import open_tensors
from aurora.weights.layouts import looks_like
from aurora.weights.loading import fill, unwrapped

from ..kernels.linear import project
from ._layers import Linear, SwiGLU
from ._linear_rnn import LinearRNN, Span

NORM_EPS = 1e-6
INITIAL_STD = 0.02


class Block(nn.Module):
    """One layer. Its mixer is called as the layer is, and fills what is neither projection nor norm in `initialise`."""

    def __init__(self, width: int, mixer: nn.Module, ffn_size: int) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.attn = mixer
        self.mlp_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = SwiGLU(width, ffn_size)

    def forward(self, x: Tensor, row: Span, state: State) -> tuple[Tensor, State]:
        """[T, D] → [T, D] and the next state, empty where none is kept."""
        mixed, after = self.attn(self.attn_norm(x), row, state)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), after


class Decoder(LinearRNN):
    """The model around the mixers; a backbone gives its mixers and the shapes of what one layer remembers."""

    block_class = Block
    recurrence = "kv"
    part_names = ("embeddings", "layers", "norm")

    def __init__(
        self, vocab_size: int, hidden_size: int, ffn_size: int | None, mixers: Sequence[nn.Module],
        state_shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        super().__init__(vocab_size, hidden_size, state_shapes)
        if ffn_size is None:
            # as many parameters as an MLP of four times the width without a gate has, in multiples of 256
            ffn_size = -(-(8 * hidden_size // 3) // 256) * 256
        self.embeddings = nn.Embedding(vocab_size, hidden_size, _weight=torch.empty(vocab_size, hidden_size))
        self.layers = nn.ModuleList(Block(hidden_size, mixer, ffn_size) for mixer in mixers)
        self.norm = nn.RMSNorm(hidden_size, eps=NORM_EPS)
        self.lm_head = Linear(hidden_size, vocab_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fills every parameter as flash-linear-attention does before training."""
        if self.embeddings.weight.is_meta:
            return
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d):
                nn.init.normal_(module.weight, std=INITIAL_STD)
            elif isinstance(module, nn.RMSNorm):
                module.reset_parameters()
        for block in self.layers:
            block.attn.initialise()  # type: ignore[operator, union-attr]

    def logits(self, hidden: Tensor) -> Tensor:
        return project(hidden, self.lm_head)

    def load_base(self, path: str) -> None:
        """Reads a checkpoint of flash-linear-attention, `.pth` or `.safetensors`."""
        first = "layers.0.attn_norm.weight"
        tensors = unwrapped(open_tensors(path), lambda names: first in map(_ours, names))
        tensors = {_ours(name): tensor for name, tensor in tensors.items()}
        if first not in tensors:
            like = f", and looks like {looks_like(tensors)}" if looks_like(tensors) else ""
            raise AuroraError(f"{path} is in another layout: it has no model.{first}{like}. Models of "
                              "flash-linear-attention are read, and what save_base writes")
        fill(self, tensors, path)

    def makers_name(self, name: str) -> str:
        return name if name.startswith("lm_head.") else f"model.{name}"


def expanded(backbone: str, option: str, expand: float, head_size: int) -> int:
    """expand · head_size. AuroraError that names the option unless it is a whole number above 0."""
    width = round(expand * head_size)
    if width < 1 or width != expand * head_size:
        raise AuroraError(f"backbone {backbone!r}: {option} · head_size = {expand * head_size} ({option} {expand}, "
                          f"head_size {head_size}) is the width of a head and must be a whole number above 0")
    return width


def _ours(name: str) -> str:
    # the norm goes by another name where it is not fused with its gate
    return name.removeprefix("model.").replace(".attn.g_norm.", ".attn.g_norm_swish_gate.")
