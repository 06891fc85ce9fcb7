"""Where a server listens, and the line that says so."""

import socket

from aurora.errors import AuroraError

LISTENING = "listening on "
"""What the line begins with that `aurora serve` writes to standard error once it can be reached."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. AuroraError where that is not possible."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise AuroraError(f"cannot listen on {host} port {port}: {error.strerror}; --port 0 takes one that is free"
                          ) from error


def address(listening: socket.socket) -> str:
    """The URL of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
