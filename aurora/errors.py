"""The exceptions that speak to the user: the command line prints them without a traceback."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

TRY_AGAIN = 75  # EX_TEMPFAIL, the exit status when the same command may well succeed


class AuroraError(ValueError):
    """Something the user gave is wrong; the message says what was given, what would be right, and where."""


class BadSample(Exception):
    """A sample that cannot be used: counted under `reason` and skipped, unlike an error of the user's."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@contextmanager
def bad_sample(reason: str, errors: tuple[type[Exception], ...] = (AuroraError,)) -> Iterator[None]:
    """Raises such errors as BadSample."""
    try:
        yield
    except errors as error:
        raise BadSample(reason, str(error)) from error


class LostProcess(RuntimeError):
    """Another process of the run is gone: nothing that the user has to change. The exit status is TRY_AGAIN."""


def suggest(given: str, known: Iterable[str]) -> str:
    """' Did you mean ...? Known: ...' for an error about a misspelt name."""
    names = list(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(names) or 'none'}"
