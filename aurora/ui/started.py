"""The service that the page starts when it is given none."""

import json
import os
import secrets
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from typing_extensions import Self

from aurora.errors import AuroraError
from aurora.serving.listening import LISTENING

# Ends with the page, even if that is killed (PR_SET_PDEATHSIG). Not with -m: the service's decoders would warn that
# they import aurora.cli a second time.
_SERVE = """
import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
from aurora.cli import main
sys.exit(main())
"""


class StartedService:
    """`aurora serve` in a process of its own, on a free port of this machine, for this page alone."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.token = secrets.token_hex(32)
        environment = {**os.environ, "AURORA_TOKEN": self.token}
        command = [sys.executable, "-c", _SERVE, "serve", "--port", "0", *arguments]
        # in a session of its own: ^C is meant for the page, which then ends its service
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", env=environment,
                                         start_new_session=True)
        self._said: deque[str] = deque(maxlen=20)
        self.url = self._wait()
        self._draining = threading.Thread(target=self._drain, daemon=True)
        self._draining.start()

    def _wait(self) -> str:
        """The address, once it listens. AuroraError with what it said when it ended instead."""
        for line in self._lines():
            if line.startswith(LISTENING):
                return line.removeprefix(LISTENING)
        self._process.wait()
        self._process.stderr.close()  # type: ignore[union-attr]
        said = "\n".join(self._said).removeprefix("aurora: error: ")
        raise AuroraError(said or f"the service ended with status {self._process.returncode}")

    def _lines(self) -> Iterator[str]:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if not _is_routine(line):
                self._said.append(line.rstrip("\n"))
            yield line.rstrip("\n")

    def _drain(self) -> None:
        for line in self._lines():
            if not _is_routine(line):
                sys.stderr.write(f"{line}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Lets it finish, then ends it."""
        self._process.terminate()
        try:
            self._process.wait(45)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._draining.join()
        self._process.stderr.close()  # type: ignore[union-attr]


def _is_routine(line: str) -> bool:
    """A line of the service's log that nobody at this terminal waits for."""
    try:
        told = json.loads(line)
    except ValueError:
        return False
    return isinstance(told, Mapping) and told.get("level") == "info"
