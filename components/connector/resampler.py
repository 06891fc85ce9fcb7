"""A resampler that leaves the number of tokens alone.

A perceiver resampler hands over a fixed number of latents; here the row is laid out by the number of tokens, which the
keep ratio decides. So latents read the whole frame, and each token then reads the latents: what a token hands over is
resampled from everything its frame shows, at a cost that is linear in the number of tokens, for any number of them.
(The two steps are the induced attention of Set Transformer, arXiv 1810.00825, section 3.1.)

Shape letters: N frames, M tokens, L latents, H heads, W = in_width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora.errors import AuroraError
from aurora.interfaces import Connector
from aurora.options import PositiveInt
from aurora.registry import CONNECTOR
from aurora.types import VisualTokens


class CrossAttention(nn.Module):
    """What `reader` [N, *, W] finds in `source` [N, *, W]; a source token of size s counts as s of them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_reader = nn.LayerNorm(width)
        self.norm_source = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, reader: Tensor, source: Tensor, size: Tensor | None = None) -> Tensor:
        query = self._split(self.query(self.norm_reader(reader)))
        key, value = (self._split(part) for part in self.key_value(self.norm_source(source)).chunk(2, dim=-1))
        bias = None if size is None else size.log().to(query.dtype)[:, None, None]  # [N, 1, 1, M]
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        written: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return written

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # [N, H, *, W / H]


@CONNECTOR.register
class Resampler(Connector):
    """Latents read the whole frame, each token reads the latents, and an MLP carries it over."""

    def __init__(
        self, *, in_width: int, out_width: int, latents: PositiveInt = 32, heads: PositiveInt = 8,
        hidden: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        hidden = out_width if hidden is None else hidden
        if in_width % heads:
            raise AuroraError(f"connector 'resampler': the vision width {in_width} is not a multiple of {heads} heads")
        self.latents = nn.Parameter(torch.randn(latents, in_width) * in_width**-0.5)
        self.gather = CrossAttention(in_width, heads)
        self.spread = CrossAttention(in_width, heads)
        self.norm = nn.LayerNorm(in_width)
        self.project = nn.Sequential(nn.Linear(in_width, hidden), nn.GELU(), nn.Linear(hidden, out_width))

    def forward(self, tokens: VisualTokens) -> Tensor:
        latents = self.latents.expand(len(tokens.features), -1, -1)  # [N, L, W]
        latents = latents + self.gather(latents, tokens.features, tokens.size)
        features = tokens.features + self.spread(tokens.features, latents)
        projected: Tensor = self.project(self.norm(features))
        return projected
