from collections.abc import Sequence

from aurora.interfaces import Turn
from aurora.registry import PROMPT

from ._conversation import ConversationPrompt


@PROMPT.register
class ImageFirstPrompt(ConversationPrompt):
    """What is seen, then the question: the form of the pretrain stage.

    `User: ` Visual `\\n{question}\\n\\nAssistant: {answer}\\n\\n`.
    """

    reusable = True

    def before(self, turns: Sequence[Turn]) -> str:
        return ""
