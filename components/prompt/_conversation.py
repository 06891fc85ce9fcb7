"""What every form shares: turns tidied, the first one laid out around the visual tokens, the rest as plain chat."""

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise

from aurora.errors import AuroraError
from aurora.interfaces import Prompt, Text, Turn, Visual

BLANK_LINES = re.compile(r"\s*\n\s*\n\s*")


def tidy(text: str) -> str:
    """The text without outer white space and without blank lines: a blank line is the stop."""
    return BLANK_LINES.sub("\n", text.strip())


class ConversationPrompt(Prompt):
    """`User: {before}` Visual `\\n{first question}\\n\\nAssistant:`, then ` {answer}\\n\\n`, which alone is learned.

    Further turns, and all of a conversation without anything to see, are `User: {question}\\n\\nAssistant:`. Images
    between which text stands are at their places, each on a line of its own. With `timestamps` the second of every
    frame stands in front of it.
    """

    def __init__(self, *, timestamps: bool = False) -> None:
        self.timestamps = timestamps

    @abstractmethod
    def before(self, turns: Sequence[Turn]) -> str:
        """The text that stands between `User: ` and the visual tokens."""

    def layout(self, turns: Sequence[Turn], *, visual: bool) -> list[Text | Visual]:
        if not turns:
            raise AuroraError("a conversation needs at least one turn")
        if any(turn.answer is None for turn in turns[:-1]):
            raise AuroraError("only the last turn of a conversation may be without an answer")
        pieces: list[Text | Visual] = []
        placed = visual and any(turn.places for turn in turns)
        for number, turn in enumerate(turns):
            opening = f"User: {self.before(turns)}" if visual and number == 0 else "User: "
            if placed and turn.places:
                pieces += _placed(opening, turn)
            elif visual and number == 0 and not placed:
                pieces += [Text(opening), Visual(), Text(f"\n{tidy(turn.question)}\n\nAssistant:")]
            else:
                pieces.append(Text(f"{opening}{tidy(turn.question)}\n\nAssistant:"))
            if turn.answer is not None:
                pieces.append(Text(f" {tidy(turn.answer)}{self.stop}", learned=True))
        return pieces


def _placed(opening: str, turn: Turn) -> Iterator[Text | Visual]:
    """A question with images inside."""
    first, *others = (tidy(turn.question[start:stop])
                      for start, stop in pairwise((0, *turn.places, len(turn.question))))
    text, images = f"{opening}{first}\n" if first else opening, 0
    for words in others:
        if text:
            yield Text(text)
        text, images = "", images + 1
        if words:
            yield Visual(images)
            text, images = f"\n{words}\n", 0
    if images:
        yield Visual(images)
    yield Text(text.removesuffix("\n") + "\n\nAssistant:")
