"""The texts that questions are put in: the same ones in training data, evaluation and on the command line."""

from collections.abc import Sequence

from aurora.errors import AuroraError

CAPTION_VIDEO = "Describe the video in detail."
CAPTION_IMAGE = "Describe the image in detail."

MAX_OPTIONS = 26


def option_label(index: int) -> str:
    """`(A)` for 0, up to `(Z)`."""
    if not 0 <= index < MAX_OPTIONS:
        raise AuroraError(f"option {index + 1} has no letter; a question has at most {MAX_OPTIONS} options")
    return f"({chr(ord('A') + index)})"


def multiple_choice(question: str, options: Sequence[str]) -> str:
    """The question with its lettered options, in MVBench's form."""
    if len(options) < 2:
        raise AuroraError(f"{question!r} has {len(options)} option(s); a choice needs two or more")
    lettered = "".join(f"{option_label(index)} {option}\n" for index, option in enumerate(options))
    return f"{question}\nOption:\n{lettered}Only give the best option."
