import time
from collections.abc import Iterator
from typing import Any

from aurora.errors import AuroraError


class Deadline:
    """How long the work on one video may take. While a caller has a frame in hand, the clock stands still."""

    def __init__(self, seconds: float | None, source: str | bytes) -> None:
        self.seconds, self.source = seconds, source
        self._left = float("inf") if seconds is None else seconds
        self._since = time.perf_counter()

    def check(self) -> None:
        """AuroraError once the time is used up."""
        if time.perf_counter() - self._since > self._left:
            raise AuroraError(f"{label(self.source)} took longer than {self.seconds:g} s to read; a larger "
                              "reader.timeout_seconds allows more")

    def timed(self, frames: Iterator[Any]) -> Iterator[Any]:
        """The same frames; what happens between two of them is not counted."""
        for frame in frames:
            self._left -= time.perf_counter() - self._since
            yield frame
            self._since = time.perf_counter()
            self.check()


def label(source: str | bytes) -> str:
    """How an error names a source."""
    return repr(source) if isinstance(source, str) else f"a video of {len(source)} bytes"
