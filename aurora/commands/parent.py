"""What a process owes the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

SIGNAL_ON_PARENT_DEATH = 1  # PR_SET_PDEATHSIG


def end_with_parent() -> None:
    """Ends this process with the one that started it, when that was torchrun or Lightning on this machine: the others
    are gone then, and alone it would wait for them for half an hour, or train on beside the next attempt."""
    started = "TORCHELASTIC_RUN_ID" in os.environ or ("LOCAL_RANK" in os.environ and "RANK" not in os.environ)
    if started and sys.platform == "linux":
        ctypes.CDLL(None).prctl(SIGNAL_ON_PARENT_DEATH, signal.SIGTERM)
