"""The contracts of the model's slots but the backbone. This file knows no implementation.

Shape letters: N frames, P patches per frame, M tokens kept per frame, Dv vision width, D backbone width, H heads,
K head width, C any width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

from torch import Tensor, nn

from aurora.errors import AuroraError
from aurora.types import VisualTokens

if TYPE_CHECKING:
    from aurora.images import ImagePreparation

F = TypeVar("F", bound=Callable[..., Any])


class BlockView(NamedTuple):
    """What a vision block shows a merge strategy, between its attention and its MLP."""

    tokens: VisualTokens  # features are those after the attention's residual
    queries: Tensor  # [N, H, M, K]
    keys: Tensor  # [N, H, M, K]
    grid: tuple[int, int]  # rows and columns of the P input patches


def compiled(name: str) -> Callable[[F], F]:
    """Marks a `match` or `order` that an encoder may compute by itself, in one call with all its blocks, as `name`. The
    mark is the function's, so a method that overrides it is called."""
    def mark(method: F) -> F:
        method.compiled_as = name  # type: ignore[attr-defined]
        return method

    return mark


class Merge(ABC):
    """A decided merge: a grouping of P tokens into P - r, the same whatever it is applied to."""

    @property
    @abstractmethod
    def target(self) -> Tensor:
        """[N, P] int64: index of the group that each token goes into."""

    @abstractmethod
    def __call__(self, x: Tensor, *, reduce: Literal["sum", "mean", "amax"]) -> Tensor:
        """[N, P, C] → [N, P - r, C]."""

    def features(self, x: Tensor, size: Tensor) -> Tensor:
        """[N, P, C], [N, P] → [N, P - r, C]: what stands for each group; by default the size-weighted mean."""
        weight = size.unsqueeze(-1).to(x.dtype)
        return self(x * weight, reduce="sum") / self(weight, reduce="sum")

    def apply(self, tokens: VisualTokens) -> VisualTokens:
        """The merged tokens, with sizes added up and every patch's owner followed."""
        return VisualTokens(
            features=self.features(tokens.features, tokens.size),
            size=self(tokens.size.unsqueeze(-1), reduce="sum").squeeze(-1),
            owner=self.target.gather(1, tokens.owner),
        )


class MergeStrategy(ABC):
    """Decides which tokens of a frame become one. Holds options, never weights; frames do not influence each other."""

    proportional_attention: bool = True
    """Whether log(size) is added to the attention scores of each key (ToMe, Eq. 2 of the paper)."""

    def keep(self, patches: int, depth: int, ratio: float) -> int:
        """How many tokens remain after `depth` blocks when `ratio` of the patches is asked for."""
        # 0.1 · 580 is 58.00000000000001 in binary; the tolerance keeps the ceiling of the decimal number
        return max(1, min(patches, math.ceil(ratio * patches - 1e-9)))

    @abstractmethod
    def schedule(self, patches: int, depth: int, keep: int) -> tuple[int, ...]:
        """How many tokens each of the `depth` blocks removes. AuroraError when `keep` cannot be reached."""

    @abstractmethod
    def match(self, view: BlockView, remove: int) -> Merge:
        """The merge that removes `remove` ≥ 1 tokens of every frame."""


class Sorter(ABC):
    """Decides the order in which the tokens of a frame are read; inside a frame only, so that a stream can be read
    frame by frame."""

    where: Literal["layer", "final"]
    """After every block that merged, or once after the last one."""

    @abstractmethod
    def order(self, tokens: VisualTokens) -> Tensor:
        """[N, M] int64: for each frame the permutation in which its tokens are read."""


class FrameSkip(ABC):
    """Decides which frames of a video need not be read because they show nothing new. Holds options, never state."""

    @abstractmethod
    def skips(self, frame: Tensor, last: Tensor) -> bool:
        """Whether a prepared frame [3, h, w] uint8 is left out, given the last one that was read."""


class VisionEncoder(nn.Module, ABC):
    """Turns frames into tokens, merging and sorting inside its blocks."""

    width: int  # Dv
    depth: int  # blocks that are computed, so the length of a merge schedule
    prepare: "ImagePreparation"
    block_class: type[nn.Module]  # what FSDP shards and activation checkpointing recomputes

    @abstractmethod
    def forward(self, pixels: Tensor, *, merge: MergeStrategy, sort: Sorter, keep: int) -> VisualTokens:
        """[N, 3, h, w] → `keep` tokens per frame.

        uint8 pixels are normalised here; floating ones are taken as already normalised. h and w are multiples of
        the patch size.
        """

    @abstractmethod
    def load_base(self, path: str) -> None:
        """Reads pretrained weights from a directory or file in the format of their makers."""


@dataclass(frozen=True)
class Timestamps:
    """The second of a frame as the text `h:mm:ss`. Each character is tokenized by itself, so that every second takes as
    many tokens."""

    digits: tuple[tuple[int, ...], ...]  # the ids of 0 to 9
    colon: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> "Timestamps":
        """Those of a tokenizer. AuroraError where its digits are not ten different texts of as many tokens."""
        digits = tuple(tuple(tokenizer.encode(str(digit))) for digit in range(10))
        if len({len(ids) for ids in digits}) > 1 or len({*digits}) < 10:
            raise AuroraError(f"a prompt with timestamps needs a tokenizer whose digits are ten different texts of as "
                              f"many tokens; those of {type(tokenizer).__name__} are {list(map(list, digits))}")
        return cls(digits, tuple(tokenizer.encode(":")))

    @property
    def tokens(self) -> int:
        """How many each of them takes."""
        return len(self.ids(0.0))

    def ids(self, seconds: float) -> list[int]:
        """The ids of a second, rounded down; `9:59:59` stands for all from ten hours on."""
        # the moments of a video that is read in parts differ by float noise from those of one that is read at once
        second = min(int(seconds + 1e-3), 35_999)
        text = f"{second // 3600}:{second // 60 % 60:02}:{second % 60:02}"
        return [token for sign in text for token in (self.colon if sign == ":" else self.digits[int(sign)])]


@dataclass(frozen=True)
class VisualLayout:
    """How many row positions a frame takes: the only place where a keep ratio becomes a count."""

    prepare: "ImagePreparation"
    merge: MergeStrategy
    depth: int
    keep_ratio: float
    timestamps: Timestamps | None = None  # in front of every frame

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise AuroraError(f"keep_ratio {self.keep_ratio} is outside (0, 1]; 0.1 keeps a tenth of the patches")

    def tokens(self, height: int, width: int) -> int:
        """Tokens kept of an image of this height and width in pixels, before preparation."""
        return self.merge.keep(self.prepare.patches(height, width), self.depth, self.keep_ratio)

    def timestamp(self, seconds: float) -> list[int]:
        """The ids of the text in front of a frame; none without timestamps."""
        return [] if self.timestamps is None else self.timestamps.ids(seconds)

    def positions(self, height: int, width: int) -> int:
        """Row positions of such an image: those of its timestamp and its tokens."""
        return len(self.timestamp(0.0)) + self.tokens(height, width)


class Connector(nn.Module, ABC):
    """Hands visual tokens to the backbone. The constructor is given `in_width` and `out_width`."""

    @abstractmethod
    def forward(self, tokens: VisualTokens) -> Tensor:
        """[N, M, Dv] → [N, M, D]; the number of tokens stays, since the row is laid out by it."""


class Tokenizer(ABC):
    """Text to ids and back. Ids run from 0 to vocab_size - 1."""

    vocab_size: int
    end_of_text: int  # the id that ends a document
    files: ClassVar[tuple[Path, ...]] = ()  # of its own, for those who read an exported model without Aurora

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text; nothing is added before or after, and no text is read as a special token."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""


class Turn(NamedTuple):
    """One exchange; `answer` is None where the model is to speak.

    `places` are the characters of the question in front of which an image stands, one each and in order, where text
    stands between several images; otherwise a prompt chooses where all that is seen stands.
    """

    question: str
    answer: str | None = None
    places: tuple[int, ...] = ()


class Text(NamedTuple):
    """A piece of a prompt that is tokenized by itself; `learned` pieces carry loss."""

    text: str
    learned: bool = False


class Visual(NamedTuple):
    """The place where visual tokens stand, in time order: those of the next `media` images, or of all that is seen."""

    media: int | None = None


class Prompt(ABC):
    """Lays a conversation about images or a video out as text and visual pieces."""

    stop: ClassVar[str] = "\n\n"
    """What ends an answer: learned with it, and ends generation."""
    reusable: ClassVar[bool] = False
    """Whether the text before what is seen is the same for every question, so that a video is read once for all."""
    timestamps: bool = False
    """Whether the second of every frame stands in front of it, see `Timestamps`. That of an image is 0."""

    @abstractmethod
    def layout(self, turns: Sequence[Turn], *, visual: bool) -> list[Text | Visual]:
        """The pieces of a conversation, with exactly one Visual when there is something to see, or, where turns have
        `places`, several that say how many `media` each stands for.

        A last turn without an answer ends where the model is to speak.
        """
