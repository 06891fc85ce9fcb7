"""The texts that questions are put in: the same ones in training data, evaluation and on the command line."""

from collections.abc import Sequence

from aurora.errors import AuroraError

CAPTION_VIDEO = "Describe the video in detail."
CAPTION_IMAGE = "Describe the image in detail."

LETTER = "Answer with the option's letter from the given choices directly."

MAX_OPTIONS = 26


def option_label(index: int) -> str:
    """`(A)` for 0, up to `(Z)`."""
    if not 0 <= index < MAX_OPTIONS:
        raise AuroraError(f"option {index + 1} has no letter; a question has at most {MAX_OPTIONS} options")
    return f"({chr(ord('A') + index)})"


def option_letter(index: int) -> str:
    """`A` for 0, up to `Z`."""
    return option_label(index)[1]


def multiple_choice(question: str, options: Sequence[str]) -> str:
    """The question with its lettered options, in MVBench's form, which asks for an option."""
    return f"{question}\nOption:\n{_lines(question, options, '({}) {}')}Only give the best option."


def lettered_choice(question: str, options: Sequence[str]) -> str:
    """The question with its lettered options, in the form of Video-MME, which asks for a letter."""
    return f"{question}\n{_lines(question, options, '{}. {}')}{LETTER}"


def _lines(question: str, options: Sequence[str], form: str) -> str:
    if len(options) < 2:
        raise AuroraError(f"{question!r} has {len(options)} option(s); a choice needs two or more")
    return "".join(form.format(option_letter(index), option) + "\n" for index, option in enumerate(options))
