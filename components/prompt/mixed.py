import hashlib
from collections.abc import Sequence

from aurora.errors import AuroraError
from aurora.interfaces import Prompt, Text, Turn, Visual
from aurora.registry import PROMPT

from .generic import GenericPrompt
from .sandwich import SandwichPrompt


@PROMPT.register
class MixedPrompt(Prompt):
    """A share of the conversations as `generic`, the rest as `sandwich`: for training a model that is used with both.

    A conversation is always laid out the same way: its questions and answers decide.
    """

    def __init__(self, *, generic_share: float = 0.5, timestamps: bool = False) -> None:
        if not 0 <= generic_share <= 1:
            raise AuroraError(f"prompt 'mixed': generic_share {generic_share} is outside [0, 1]; 0.5 lays out half of "
                              "the conversations as generic")
        self.generic_share, self.timestamps = generic_share, timestamps
        self.generic, self.sandwich = GenericPrompt(), SandwichPrompt()

    def layout(self, turns: Sequence[Turn], *, visual: bool) -> list[Text | Visual]:
        form = self.generic if self._drawn(turns) < self.generic_share else self.sandwich
        return form.layout(turns, visual=visual)

    def _drawn(self, turns: Sequence[Turn]) -> float:
        """A number in [0, 1). Answers count too: thousands of videos share a question such as "Describe the video"."""
        said = "\0".join(f"{turn.question}\0{turn.answer or ''}" for turn in turns)
        return int.from_bytes(hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48
