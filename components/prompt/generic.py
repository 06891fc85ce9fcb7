from collections.abc import Sequence

from aurora.errors import AuroraError
from aurora.interfaces import Turn
from aurora.registry import PROMPT

from ._conversation import ConversationPrompt, tidy


@PROMPT.register
class GenericPrompt(ConversationPrompt):
    """A fixed text, then what is seen, then the question: one encoded video serves many questions.

    `User: {text}\\n` Visual `\\n{question}\\n\\nAssistant: {answer}\\n\\n`.
    """

    reusable = True

    def __init__(self, *, text: str = "Look closely and remember what you see. A question follows.",
                 timestamps: bool = False) -> None:
        super().__init__(timestamps=timestamps)
        if not text or tidy(text) != text:
            raise AuroraError(f"prompt 'generic': text {text!r} must not be empty, start or end with white space, "
                              "or hold a blank line, which ends an answer")
        self.text = text

    def before(self, turns: Sequence[Turn]) -> str:
        return f"{self.text}\n"
