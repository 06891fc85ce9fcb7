from collections.abc import Sequence

from aurora.interfaces import Turn
from aurora.registry import PROMPT

from ._conversation import ConversationPrompt, tidy

SHORT_ANSWER = "Answer the question using a single word or phrase."


@PROMPT.register
class SandwichPrompt(ConversationPrompt):
    """The question before and after what is seen: the paper's form.

    `User: {all questions}\\n` Visual `\\n{first question}\\n\\nAssistant: {answer}\\n\\n`.
    The leading copy leaves out the request for a short answer, which says nothing about what to look at.
    """

    def before(self, turns: Sequence[Turn]) -> str:
        questions = (tidy(turn.question.replace(SHORT_ANSWER, "")) for turn in turns)
        return "\n".join(text for text in questions if text) + "\n"
