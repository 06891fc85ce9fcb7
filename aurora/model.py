"""AuroraModel: frames → vision(merge, sort) → connector → row → backbone. Plain torch.

Shape letters: N frames, M tokens kept per frame, T packed positions, D backbone width, S sequences.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from aurora.interfaces import (
    Backbone,
    Connector,
    MergeStrategy,
    Prompt,
    Sorter,
    Timestamps,
    Tokenizer,
    VisionEncoder,
    VisualLayout,
)
from aurora.losses import chunked_cross_entropy
from aurora.types import Frames, PackedBatch, State, TokenLoss, join_states, map_state, select_state


class AuroraModel(nn.Module):
    """Every slot by its name. Only `vision`, `connector` and `backbone` hold weights."""

    def __init__(
        self, *, vision: VisionEncoder, merge: MergeStrategy, sort: Sorter, connector: Connector, backbone: Backbone,
        tokenizer: Tokenizer, prompt: Prompt,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.merge = merge
        self.sort = sort
        self.connector = connector
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.prompt = prompt

    def forward(self, batch: PackedBatch, memory: State | None = None) -> TokenLoss:
        """The summed next-token loss of one packed row; `memory` is what the row before gave, where it goes on;
        none when every block is handed its part by itself."""
        x = self.embed_row(batch.tokens, batch.frames)
        start = self._start(memory, len(batch.cu_seqlens) - 1) if batch.continues else None
        hidden, after = self.backbone(x, batch.cu_seqlens, start, return_state=batch.unfinished or batch.return_states)
        loss = chunked_cross_entropy(hidden, batch.targets, self.backbone.logits, self.backbone.vocab_size)
        if after is None:
            return loss
        states = map_state(Tensor.detach, after)
        return loss._replace(memory=select_state(states, [batch.open_sequence]) if batch.unfinished else None,
                             states=states if batch.return_states else None)

    def _start(self, memory: State | None, sequences: int) -> State:
        """The states that a row begins with whose first sequence has been read in part."""
        # a tuned state is gathered when it is asked for, which must be once on every rank
        start = self.backbone.init_state(sequences, learned=True)
        if memory is None:
            return start
        if self.backbone.initial_state is not None:
            # Nothing is learned of it here, but it must be in the graph: no rank may leave the others waiting.
            memory = {name: tensor + 0 * start[name][:, :1] for name, tensor in memory.items()}
        return join_states([memory, select_state(start, torch.arange(1, sequences))])

    def embed_row(self, tokens: Tensor, frames: Sequence[Frames]) -> Tensor:
        """[T] → [T, D]: embedded text with the visual tokens in their places."""
        x = self.backbone.embed(tokens)
        for group in frames:
            visual = self.encode(group.pixels, group.positions.shape[1])
            x = x.index_copy(0, group.positions.flatten(), visual.flatten(0, 1).to(x.dtype))
        return x

    def encode(self, pixels: Tensor, keep: int) -> Tensor:
        """[N, 3, h, w] → [N, M, D]: what the backbone reads of each frame; M = `keep`."""
        tokens: Tensor = self.connector(self.vision(pixels, merge=self.merge, sort=self.sort, keep=keep))
        return tokens

    def encode_frames(self, pixels: Tensor, keep: int, seconds: Sequence[float], *,
                      encode: Callable[[Tensor, int], Tensor] | None = None) -> Tensor:
        """[N, 3, h, w], shown at N seconds → [T, D]: all that stands in a row for these frames. `encode` may take the
        place of the method."""
        visual = (encode or self.encode)(pixels, keep)
        stamps = self._timestamps(self.prompt)
        if stamps is not None:
            ids = torch.tensor([stamps.ids(second) for second in seconds], device=pixels.device)
            text = self.backbone.embed(ids)
            visual = torch.cat([text, visual.to(text.dtype)], dim=1)
        return visual.flatten(0, 1)

    def visual_layout(self, keep_ratio: float, prompt: Prompt | None = None) -> VisualLayout:
        """How many positions a frame takes at a keep ratio, in a prompt other than the model's where one is given.
        AuroraError for a tokenizer that cannot give the timestamps of the prompt."""
        stamps = self._timestamps(self.prompt if prompt is None else prompt)
        return VisualLayout(self.vision.prepare, self.merge, self.vision.depth, keep_ratio, stamps)

    def _timestamps(self, prompt: Prompt) -> Timestamps | None:
        return Timestamps.of(self.tokenizer) if prompt.timestamps else None
