"""What a film needs of its model: its parts, how videos are watched, and what identifies it."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Any

from torch import Tensor
from typing_extensions import Self

from aurora.config import ModelConfig, named_part
from aurora.errors import AuroraError
from aurora.inference.reading import Memory, read_tokens
from aurora.interfaces import FrameSkip, Sampling, Tokenizer, VideoReader, VisualLayout
from aurora.model import AuroraModel
from aurora.registry import MERGE, PROMPT, READER, SKIP, SORT, Slot
from aurora.version import VERSION
from aurora.weights.model_folder import state_hash

WATCHED_WITH = ("merge", "sort", "prompt", "skip", "keep_ratio")
"""What may be chosen when a film is watched."""
_PARTS: dict[str, Slot[Any]] = {"merge": MERGE, "sort": SORT, "prompt": PROMPT, "skip": SKIP}
_SAMPLE = "The quick brown fox, 0123456789: naïve Ünïcödé, 北京, \n\n<image>"
_SAMPLED_IDS = 4096


class BaseVideoModel:
    """An AuroraModel with what watching needs: its reader, sampling and keep ratio, and what identifies it.

    `chosen` names what the user has asked for other than the model's config says; a film that was watched otherwise is
    refused.
    """

    def __init__(self, model: AuroraModel, config: ModelConfig, *, adapter: str | None = None,
                 chosen: Sequence[str] = ()) -> None:
        self.model, self.config, self.adapter = model, config, adapter
        self.chosen = frozenset(chosen)
        self.runner = model.backbone.runner()
        self.reader: VideoReader = READER.build(config.reader)
        self.prefill: Callable[[Memory, Tensor], Memory] = lambda memory, x: read_tokens(self.runner, memory, x)
        """Reads tokens [T, D] of a film behind its memory [1]; a service puts its own in place of it."""

    def __copy__(self) -> Self:
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __reduce__(self) -> str:
        raise AuroraError("a model is neither pickled nor copied deeply: write it with `model.save_pretrained`, and "
                          "read that with `aurora.load`")

    @property
    def layout(self) -> VisualLayout:
        """How many tokens a frame takes."""
        return self.model.visual_layout(self.config.keep_ratio)

    @cached_property
    def skip(self) -> FrameSkip:
        """Which frames are not read."""
        return SKIP.build(self.config.skip)

    @property
    def reusable(self) -> bool:
        """Whether one reading of a video serves every question."""
        return self.model.prompt.reusable

    @property
    def settings(self) -> dict[str, Any]:
        """How films are watched, as far as their state depends on it."""
        return {key: dict(value) if isinstance(value := getattr(self.config, key), Mapping) else value
                for key in WATCHED_WITH}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a state depends on besides: it is of no use to another model. Reads all weights, once."""
        tree, model = self.config.tree, self.model
        parts = {slot: {key: value for key, value in tree[slot].items() if key != "path"}
                 for slot in ("vision", "connector", "backbone")}
        return {"weights": state_hash(model.state_dict()), **parts, "tokenizer": tokenizer_hash(model.tokenizer),
                "dtype": tree["dtype"], "quantize": tree["quantize"], "adapter": self.adapter, "version": VERSION}

    def sampling(self, *, fps: float | None = None, frames: int | None = None, max_frames: int | None = None,
                 start: float = 0.0, stop: float | None = None) -> Sampling:
        """Which frames are watched: the model's own choice, but for what is given."""
        own = self.config.sampling
        if fps is None and frames is None:
            fps, frames = own.fps, own.frames
            max_frames = own.max_frames if max_frames is None else max_frames
        return Sampling(fps=fps, frames=frames, max_frames=max_frames, start=start,
                        stop=None if stop == math.inf else stop)

    def using(self, **changes: Any) -> Self:
        """The same weights with another merge, sort, prompt or skip (a name, or a mapping with options) or keep ratio.

        AuroraError for another key, part or value, and for a keep ratio that the merge cannot reach.
        """
        changes = {key: value for key, value in changes.items() if value is not None}
        for key in changes:
            if key not in WATCHED_WITH:
                raise AuroraError(f"{key!r} cannot be changed for one film; these can: {', '.join(WATCHED_WITH)}")
        if not changes:
            return self
        made = copy(self)
        made.__dict__.pop("skip", None)
        named = {key: named_part(key, value) if key in _PARTS and isinstance(value, str) else value
                 for key, value in changes.items()}
        made.config = ModelConfig.parse(self.config.tree | named)
        made.model = copy(self.model)
        for key in named.keys() & {"merge", "sort", "prompt"}:
            setattr(made.model, key, _PARTS[key].build(made.config.part(key)))
        if named.keys() & {"merge", "keep_ratio"}:
            layout = made.layout
            patches = layout.prepare.patches(layout.prepare.size, layout.prepare.size)
            layout.merge.schedule(patches, layout.depth, layout.merge.keep(patches, layout.depth, layout.keep_ratio))
        made.chosen = self.chosen | changes.keys()
        return made


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of what a tokenizer makes of a text and of ids spread over its vocabulary."""
    every = max(1, tokenizer.vocab_size // _SAMPLED_IDS)
    decoded = [tokenizer.decode([number]) for number in range(0, tokenizer.vocab_size, every)]
    facts = (tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.encode(_SAMPLE), decoded)
    return hashlib.sha256(repr(facts).encode()).hexdigest()
