"""SigLIP's vision transformer (arXiv 2303.15343), of any size, merging and sorting tokens inside its blocks.

Shape letters: N frames, P patches, M tokens of the moment, W width, H heads, K head width, p patch side.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora.errors import AuroraError
from aurora.files import write_json
from aurora.images import ImagePreparation, Resize
from aurora.interfaces import BlockView, MergeStrategy, Sorter, VisionEncoder
from aurora.options import PositiveInt
from aurora.registry import VISION
from aurora.types import VisualTokens
from aurora.weights.convert import load_base, open_source
from aurora.weights.io import SAFETENSORS, SINGLE_FILE
from aurora.weights.layouts import count_layers
from aurora.weights.loading import write_tensors

from ..kernels.vision import affine, attention, gelu_tanh, reorder
from ._layouts_siglip import FAMILY, TRANSFORMERS, tower_config
from ._siglip_fused import EPS, fused_read

UNSHAPED = ("hidden_size", "patch_size", "num_attention_heads", "layer_norm_eps", "hidden_act")
"""What a config states about a tower that the shapes of its tensors need not show."""


class Linear(nn.Linear):
    """A linear layer whose product is chosen by the device."""

    def forward(self, input: Tensor) -> Tensor:
        return affine(input, self.weight, self.bias)


class Attention(nn.Module):
    """Self-attention that also shows its queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """[N, M, W] and what is added to each key's scores [N, M] → [N, M, W], queries, keys [N, H, M, K]."""
        query, key, value = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).unbind(2)
        mixed: Tensor = self.out(attention(query, key, value, bias))
        return mixed, query.transpose(1, 2), key.transpose(1, 2)


class Mlp(nn.Module):
    """Two layers around SigLIP's GELU, which is the tanh approximation."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.down(gelu_tanh(self.up(x)))
        return mixed


class SiglipBlock(nn.Module):
    """A pre-norm block that may merge between attention and MLP; forward hooks see in its tokens where patches went."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, eps=EPS)
        self.attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, mlp_width)

    def forward(
        self, tokens: VisualTokens, merge: MergeStrategy, sort: Sorter, remove: int, grid: tuple[int, int]
    ) -> VisualTokens:
        mixed, queries, keys = self.attention(self.norm_attention(tokens.features), size_bias(tokens, merge))
        tokens = tokens._replace(features=mixed.add_(tokens.features))  # the product's own memory serves again
        if remove:
            tokens = merge.match(BlockView(tokens, queries, keys, grid), remove).apply(tokens)
        tokens = tokens._replace(features=self.mlp(self.norm_mlp(tokens.features)).add_(tokens.features))
        return reorder(tokens, sort.order(tokens)) if remove and sort.where == "layer" else tokens


def size_bias(tokens: VisualTokens, merge: MergeStrategy) -> Tensor | None:
    """[N, M]: log(size), so that a token of s patches draws the attention of s; None while all sizes are 1."""
    # sizes are 1 as long as there are as many tokens as patches; without a bias torch's fastest kernels apply
    if not merge.proportional_attention or tokens.size.shape == tokens.owner.shape:
        return None
    return tokens.size.log()


def fresh(features: Tensor) -> VisualTokens:
    """[N, P, Dv] → tokens that stand for one patch each."""
    frames, patches, _ = features.shape
    size = torch.ones(frames, patches, device=features.device)
    owner = torch.arange(patches, device=features.device).expand(frames, -1)
    return VisualTokens(features, size, owner)


@VISION.register
class Siglip(VisionEncoder):
    """SigLIP's vision transformer of any size; defaults are those of SigLIP-L/16-384.

    `feature_layer` counts hidden states from the end as `transformers` does: -1 is the last one, after the final
    layer norm; -2 is what the last block would read, so that block and the final norm do not exist here.
    """

    block_class = SiglipBlock
    layouts = FAMILY

    def __init__(
        self,
        *,
        image_size: PositiveInt = 384,
        patch_size: PositiveInt = 16,
        width: PositiveInt = 1024,
        layers: PositiveInt = 24,
        heads: PositiveInt = 16,
        mlp_width: PositiveInt = 4096,
        feature_layer: int = -2,
        resize: Resize = "crop",
    ) -> None:
        super().__init__()
        if not -layers <= feature_layer <= -1:
            raise AuroraError(f"vision 'siglip': feature_layer is {feature_layer}; it counts from the end, -1 to "
                              f"-{layers}")
        if width % heads:
            raise AuroraError(f"vision 'siglip': width {width} is not a multiple of {heads} heads")
        self.prepare = ImagePreparation(size=image_size, patch_size=patch_size, resize=resize)
        self.width, self.heads, self.mlp_width = width, heads, mlp_width
        self.layers, self.depth = layers, layers + 1 + feature_layer
        self.side = image_size // patch_size  # patches along each side of the position table
        self.patch = nn.Linear(3 * patch_size**2, width)
        self.position = nn.Parameter(torch.empty(self.side**2, width))
        if not self.position.is_meta:  # where drawing normal numbers imports torch's compiler: over a second
            nn.init.normal_(self.position, std=width**-0.5)
        self.blocks = nn.ModuleList(SiglipBlock(width, heads, mlp_width) for _ in range(self.depth))
        self.norm = nn.LayerNorm(width, eps=EPS) if feature_layer == -1 else None
        self.apply(_initialise)

    def forward(self, pixels: Tensor, *, merge: MergeStrategy, sort: Sorter, keep: int) -> VisualTokens:
        grid = self._grid(pixels)
        removed = merge.schedule(grid[0] * grid[1], self.depth, keep)
        positions = self._positions(grid)
        tokens = fused_read(self, pixels, positions, merge, sort, removed, PLAIN)
        if tokens is None:
            tokens = fresh(self._embed(pixels, grid, positions))
            for block, remove in zip(self.blocks, removed, strict=True):
                tokens = block(tokens, merge, sort, remove, grid)
        if sort.where == "final":
            tokens = reorder(tokens, sort.order(tokens))
        if tokens.size.shape[1] != keep:
            raise AuroraError(f"{type(merge).__name__} left {tokens.size.shape[1]} tokens per frame where {keep} fit")
        return tokens if self.norm is None else tokens._replace(features=self.norm(tokens.features))

    def load_base(self, path: str) -> None:
        """Reads a `transformers` SigLIP directory (the whole model or its vision tower), or weights in any layout of
        `aurora convert`.

        The text tower, the pooling head and the blocks above `feature_layer` are left out. AuroraError for other sizes.
        """
        source = open_source(path, FAMILY)
        blocks = count_layers(source.layout.our_tensors(source.tensors), "blocks.")
        if blocks not in (self.layers, self.depth):
            raise AuroraError(f"{path} has {blocks} blocks where layers={self.layers} of vision 'siglip' are needed")
        own, config = self.base_config(), source.config.get("vision_config", source.config)
        if "heads" in config:  # of a model folder
            config = tower_config(config)
        for name in UNSHAPED:
            if config.get(name, own[name]) != own[name]:
                raise AuroraError(f"{path}: {name} is {config[name]} where {own[name]} of vision 'siglip' is needed")
        load_base(self, source, some_of=True)

    def save_base(self, path: str) -> None:
        """Writes what `load_base` reads: a .safetensors file, or a directory that `transformers` opens too."""
        if path.endswith(SAFETENSORS):
            write_tensors(self.base_state_dict(), path)
        else:
            write_tensors(self.base_state_dict(), str(Path(path, SINGLE_FILE)))
            write_json(Path(path, "config.json"), self.base_config())

    def base_state_dict(self) -> dict[str, Tensor]:
        """A copy of the weights under the names and in the shapes of `transformers`."""
        own = self.state_dict()
        return {name: piece.view(own[piece.name]).clone(memory_format=torch.contiguous_format)
                for name, (piece,) in TRANSFORMERS.their_tensors(own).items()}

    def base_config(self) -> dict[str, Any]:
        """The sizes in the words of `transformers`, for the blocks that exist here."""
        return tower_config({
            "image_size": self.prepare.size, "patch_size": self.prepare.patch_size, "width": self.width,
            "layers": self.depth, "feature_layer": -1, "heads": self.heads, "mlp_width": self.mlp_width,
        })

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        height, width = pixels.shape[-2:]
        side = self.prepare.patch_size
        if height % side or width % side or not height * width:
            raise AuroraError(f"vision 'siglip': {height}×{width} pixels cannot be cut into patches of {side}×{side}")
        return height // side, width // side

    def _embed(self, pixels: Tensor, grid: tuple[int, int], positions: Tensor) -> Tensor:
        """[N, 3, h, w] and what is added at each place [P, W] → [N, P, W]."""
        if pixels.dtype == torch.uint8:
            pixels = pixels.float().div_(127.5).sub_(1)  # SigLIP's mean and deviation are 0.5
        side = self.prepare.patch_size
        patches = pixels.reshape(len(pixels), 3, grid[0], side, grid[1], side)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [N, P, 3 p p]
        embedded: Tensor = self.patch(patches.to(self.patch.weight.dtype)) + positions
        return embedded

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """[P, W]: the table, stretched bicubically to grids that it was not learned for."""
        if grid == (self.side, self.side):
            return self.position
        table = self.position.float().view(1, self.side, self.side, self.width).permute(0, 3, 1, 2)
        stretched = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
        return stretched[0].flatten(1).T.to(self.position.dtype)


PLAIN: set[type[nn.Module]] = {Siglip, SiglipBlock, Attention, Mlp, Linear, nn.Linear, nn.LayerNorm}
"""The modules whose computation the fused kernel knows."""


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
