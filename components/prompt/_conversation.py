"""What every form shares: turns tidied, the first one laid out around the visual tokens, the rest as plain chat."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence

from aurora.errors import AuroraError
from aurora.interfaces import Prompt, Text, Turn, Visual

MARKER = re.compile(r"<(?:image|video)>")
BLANK_LINES = re.compile(r"\s*\n\s*\n\s*")


def tidy(text: str) -> str:
    """The text without outer white space and without blank lines: a blank line is the stop."""
    return BLANK_LINES.sub("\n", text.strip())


def question(turn: Turn) -> str:
    """What the human said; the place of the visual tokens is the form's to choose, so markers are removed."""
    return tidy(re.sub(r" {2,}", " ", MARKER.sub(" ", turn.question)) if MARKER.search(turn.question)
                else turn.question)


class ConversationPrompt(Prompt):
    """`User: {before}` Visual `\\n{first question}\\n\\nAssistant:`, then ` {answer}\\n\\n`, which alone is learned.

    Further turns, and all of a conversation without anything to see, are `User: {question}\\n\\nAssistant:`.
    """

    @abstractmethod
    def before(self, turns: Sequence[Turn]) -> str:
        """The text that stands between `User: ` and the visual tokens."""

    def layout(self, turns: Sequence[Turn], *, visual: bool) -> list[Text | Visual]:
        if not turns:
            raise AuroraError("a conversation needs at least one turn")
        if any(turn.answer is None for turn in turns[:-1]):
            raise AuroraError("only the last turn of a conversation may be without an answer")
        pieces: list[Text | Visual] = []
        for number, turn in enumerate(turns):
            if visual and number == 0:
                pieces += [Text(f"User: {self.before(turns)}"), Visual(), Text(f"\n{question(turn)}\n\nAssistant:")]
            else:
                pieces.append(Text(f"User: {question(turn)}\n\nAssistant:"))
            if turn.answer is not None:
                pieces.append(Text(f" {tidy(turn.answer)}{self.stop}", learned=True))
        return pieces
