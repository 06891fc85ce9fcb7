"""Standing questions: asked again and again about a film that grows, and told of when the answer becomes yes."""

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from aurora.errors import AuroraError
from aurora.inference.generation import Generation

if TYPE_CHECKING:
    from aurora.inference.film import Film

_YES = re.compile(r"\W*yes\b", re.IGNORECASE)
_SHORT = Generation(max_new_tokens=16)


class Alert(NamedTuple):
    """A standing question whose answer has become what is wanted."""

    seconds: float  # of the film, up to which it was answered from
    question: str
    answer: str


def says_yes(answer: str) -> bool:
    """Whether an answer begins with yes."""
    return _YES.match(answer) is not None


class StandingQuestion:
    """A question that is asked about every `every_seconds` seconds of a film, such as "Is there a red ball?".

    What `wanted` says of the answer is remembered from one check to the next: an alert is given when it becomes true,
    and again only after it was false in between. `options` default to at most 16 tokens.
    """

    def __init__(self, question: str, *, every_seconds: float = 5.0, wanted: Callable[[str], bool] = says_yes,
                 options: Generation | None = None) -> None:
        if not question.strip():
            raise AuroraError("a standing question is empty")
        if not 0 < every_seconds < math.inf:
            raise AuroraError(f"a standing question is asked every so many seconds, above 0, not {every_seconds}")
        self.question, self.every_seconds, self.wanted = question, every_seconds, wanted
        self.options = options or _SHORT
        self.due = 0.0
        """The second of the film from which on it is asked next."""
        self.holds = False

    def check(self, film: "Film") -> Alert | None:
        """Asks when it is due; the alert when the answer has become what is wanted."""
        if not film.frames or film.seconds < self.due:
            return None
        self.due = (math.floor(film.seconds / self.every_seconds) + 1) * self.every_seconds
        answer = film.ask(self.question, options=self.options)
        before, self.holds = self.holds, self.wanted(answer)
        return Alert(film.seconds, self.question, str(answer)) if self.holds and not before else None
