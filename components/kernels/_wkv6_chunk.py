"""WKV-6 as matrix products over chunks, in torch; autograd takes the gradients.

Shape letters: T packed positions, S sequences, N chunks, H heads, C positions per chunk, K key width, V value width.

A pair of positions s < t is weighted with exp(L[t - 1] - L[s]), L the running sum of the log-decay. A product of
matrices needs that split into a factor of t and a factor of s, and neither may overflow:

- inside a block of 8 the split is at its middle, and the exponents span four log-decays to either side. Log-decays are
  kept ≥ -20 in float32 (a retention of 2e-9) and ≥ -150 in float64, so that these stay within the format;
- from one block to the next it is at the border between them, where every exponent is ≤ 0: neighbours are paired
  first, then neighbouring pairs, up to the halves of the chunk.
"""

import torch
from torch import Tensor

from ._grid import chunk_grid, scan

# exp(-exp(10)) is 0 in every format, while the gradient of exp(-exp(w)) turns NaN from w = 89 on
LARGEST_W = 10.0
BLOCK = 8
LOWEST_LOG_DECAY = {torch.float32: -20.0, torch.float64: -150.0}


def wkv6_chunk(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """The chunked form: r, k, w [T, H, K], v [T, H, V], state [S, H, K, V] → [T, H, V], [S, H, K, V]."""
    # measured on a CPU: 8 and 16 are alike, 32 is slower; elsewhere each step of the scan costs a launch
    grid = chunk_grid(lengths, 16 if r.device.type == "cpu" else 64, r.shape[1], r.device)
    log_decay = (-torch.exp(w.clamp(max=LARGEST_W))).clamp(min=LOWEST_LOG_DECAY[w.dtype])
    r, k, v, log_decay = (grid.scatter(x) for x in (r, k, v, log_decay))
    through = log_decay.cumsum(-2)  # [N, H, C, K] up to and with each position
    before, total = through - log_decay, through[..., -1:, :]
    states, after = scan(total.mT.exp(), (k * (total - through).exp()).mT @ v, state, grid)
    scores = _scores(r, k, before, through, (r * bonus[:, None] * k).sum(-1))
    return grid.gather((r * before.exp()) @ states + scores @ v), after


def _scores(r: Tensor, k: Tensor, before: Tensor, through: Tensor, own: Tensor) -> Tensor:
    """How much of position s each position t reads: [N, H, C, C], with `own` [N, H, C] on the diagonal."""
    chunks = own.shape[:2]
    r, k, before, through = (x.reshape(*chunks, -1, BLOCK, x.shape[-1]) for x in (r, k, before, through))
    middle = through[..., BLOCK // 2 - 1, None, :]
    blocks = ((r * (before - middle).exp()) @ (k * (middle - through).exp()).mT).tril(-1)  # [N, H, C / 8, 8, 8]
    blocks = blocks + torch.diag_embed(own.reshape(*chunks, -1, BLOCK))
    while (size := blocks.shape[-1]) < own.shape[-1]:
        (_, late), (early, _), (_, before_late), (through_early, _) = (
            x.reshape(*chunks, -1, 2, size, x.shape[-1]).unbind(-3) for x in (r, k, before, through))
        border = through_early[..., -1:, :]
        pair = (late * (before_late - border).exp()) @ (early * (border - through_early).exp()).mT
        first, second = blocks.reshape(*chunks, -1, 2, size, size).unbind(-3)
        blocks = torch.cat([torch.cat([first, torch.zeros_like(first)], -1), torch.cat([pair, second], -1)], -2)
    return blocks.squeeze(-3)
