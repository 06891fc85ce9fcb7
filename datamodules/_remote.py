"""Files in object stores and on web servers, read with patience."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from aiohttp import ClientTimeout

from aurora.errors import AuroraError

from .shards.tar import SCHEMES

LATER = (408, 425, 429)  # what a server says that may be asked again
TRIES = 5
BACKOFF_SECONDS = 1.0  # before the second try, and twice as long before each further one
CONNECT_SECONDS, STALL_SECONDS = 20.0, 60.0
T = TypeVar("T")
_log = logging.getLogger(__name__)


def fetch_bytes(url: str) -> bytes | None:
    """A small file, or None where there is none."""
    def read() -> bytes | None:
        files, path = _file_system(url)
        return bytes(files.cat_file(path))

    try:
        return _tried(read, url)
    except FileNotFoundError:
        return None


def fetch_file(url: str, target: Path) -> None:
    """Brings a file here. Errors as of `_tried`."""
    def get() -> None:
        files, path = _file_system(url)
        files.get_file(path, str(target))

    _tried(get, url)


def _tried(work: Callable[[], T], url: str) -> T:
    """What `work` gives, tried again after a pause. FileNotFoundError at once; AuroraError after the last try."""
    for attempt in range(TRIES):
        try:
            return work()
        except (FileNotFoundError, AuroraError):
            raise
        # every kind of store has errors of its own
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise AuroraError(f"data: there is no room for {url} in the cache ({error}); data.cache_bytes bounds "
                                  "what it keeps, data.cache says where it is") from error
            told = f"{type(error).__name__}: {error}".strip(": ")[:300]  # some say what they got instead, in full
            status = getattr(error, "status", 0)
            if isinstance(error, PermissionError) or (400 <= status < 500 and status not in LATER):
                raise AuroraError(f"data: {url} is refused to us: {told}") from error
            if attempt == TRIES - 1:
                raise AuroraError(f"data: {url} could not be read in {TRIES} tries, the last time because of {told}"
                                  ) from error
            pause = BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.5)
            _log.warning("data: %s: %s; again in %.1f s", url, told, pause)
            time.sleep(pause)
    raise AssertionError


def _file_system(url: str) -> tuple[Any, str]:
    scheme = url.partition(":")[0]
    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS)
        options = {"client_kwargs": {"timeout": timeout}}
    elif scheme == "s3":
        options = {"config_kwargs": {"connect_timeout": CONNECT_SECONDS, "read_timeout": STALL_SECONDS}}
    try:
        # listings are of no use here, and kept ones could be old
        files, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    except ImportError as error:
        raise AuroraError(f"data: {scheme}:// is read by another package: pip install 'auroralong[{SCHEMES[scheme]}]'"
                          ) from error
    return files, path
