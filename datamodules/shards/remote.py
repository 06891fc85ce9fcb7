"""Shards in object stores and on web servers, kept in a local folder while they are needed.

`CACHE/<root>/<dataset>` mirrors a dataset: `origin.json` says of what, its index is there from the beginning, shards
come whole when they are first asked for. A shard appears by renaming once its sha256 is that of the index. Processes
share the folder: who fetches holds the lock of the shard, who reads holds one on its file, and shards are removed, the
one that was not used for the longest time first, only when nobody reads them.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from aiohttp import ClientTimeout

from aurora.errors import AuroraError, BadSample
from aurora.files import replace_file

from .index import INDEX, ORIGIN, SCHEMES, file_digest

ARRAYS = ("index.samples.npy", "index.media.npy")
LATER = (408, 425, 429)  # what a server says that may be asked again
TRIES = 5
BACKOFF_SECONDS = 1.0  # before the second try, and twice as long before each further one
CONNECT_SECONDS, STALL_SECONDS = 20.0, 60.0
T = TypeVar("T")
_log = logging.getLogger(__name__)


def mirror(root: str, datasets: Iterable[str], cache: Path, cache_bytes: int | None) -> Path:
    """The local root below which the datasets of a remote one stand; those that are not there are left out."""
    local = cache / hashlib.sha256(root.rstrip("/").encode()).hexdigest()[:16]
    for name in datasets:
        url = f"{root.rstrip('/')}/{name}"
        index = fetch_bytes(f"{url}/{INDEX}")
        if index is None:
            continue
        folder = local / name
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "index.lock"):
            _update_index(folder, url, index, {"url": url, "cache": str(cache), "cache_bytes": cache_bytes})
    return local


def _update_index(folder: Path, url: str, index: bytes, origin: Mapping[str, Any]) -> None:
    if not folder.joinpath(INDEX).is_file() or folder.joinpath(INDEX).read_bytes() != index:
        # written anew at its origin: what is here belongs to another dataset of that name
        folder.joinpath(INDEX).unlink(missing_ok=True)
        for stale in [*folder.glob("*.tar"), *folder.glob("*.tmp"), *folder.glob("*.npy")]:
            stale.unlink(missing_ok=True)
        for name in ARRAYS:
            data = fetch_bytes(f"{url}/{name}")
            if data is None:
                raise AuroraError(f"{url}/{name} is not there; write the index again: aurora shards index FOLDER")
            replace_file(folder / name, data)
    replace_file(folder / ORIGIN, json.dumps(origin).encode())
    replace_file(folder / INDEX, index)


def open_shard(folder: Path, row: Mapping[str, Any]) -> int:
    """A descriptor of a shard of a mirror, fetched unless it is there, that keeps it from being removed.

    BadSample when what comes is twice not what the index says; AuroraError when nothing comes.
    """
    path = folder / row["name"]
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            fetch_shard(folder, row)
            continue
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink:
            os.utime(descriptor)  # what is removed first is what was opened least recently
            return descriptor
        os.close(descriptor)  # it was removed in between


def fetch_shard(folder: Path, row: Mapping[str, Any]) -> None:
    """Brings a shard of a mirror here unless it is. Errors as of `open_shard`."""
    path = folder / row["name"]
    with locked(path.with_suffix(".lock")):
        if path.exists():
            return
        origin = json.loads(folder.joinpath(ORIGIN).read_bytes())
        _make_room(Path(origin["cache"]), origin["cache_bytes"], int(row["bytes"]))
        partial, url = path.with_suffix(".tmp"), f"{origin['url']}/{row['name']}"
        try:
            for _ in range(2):
                _retried(lambda files, remote: files.get_file(remote, str(partial)), url)
                wrong = _difference(partial, row)
                if wrong is None:
                    os.replace(partial, path)
                    return
                _log.warning("data: %s came with %s", url, wrong)
        except FileNotFoundError as error:
            raise AuroraError(f"data: {url}, which the index names, is not there") from error
        finally:
            partial.unlink(missing_ok=True)
        raise BadSample("shard", f"{url} came twice with {wrong}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock of all processes of the machine, which the end of a process frees."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _difference(path: Path, row: Mapping[str, Any]) -> str | None:
    """How a file differs from what the index says of it."""
    size = path.stat().st_size
    if size != row["bytes"]:
        return f"{size} bytes, not {row['bytes']}"
    with path.open("rb") as file:
        digest = file_digest(file)
    return None if digest == row["sha256"] else f"the sha256 {digest}, not {row['sha256']}"


def _make_room(cache: Path, most: int | None, needed: int) -> None:
    """Removes the shards that were opened least recently until so many bytes fit, as far as nobody reads them."""
    if most is None:
        return
    with locked(cache / "room.lock"):
        shards = [(facts.st_mtime_ns, facts.st_size, path) for path in cache.glob("*/*/*.tar")
                  for facts in [path.stat()]]
        taken = sum(size for _, size, _ in shards) + needed
        for _, size, path in sorted(shards):
            if taken <= most:
                return
            with path.open("rb") as file, suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                taken -= size
    if taken > most:
        _log.warning("data: the cache takes %d bytes, more than cache_bytes %d: all of its shards are being read",
                     taken, most)


def fetch_bytes(url: str) -> bytes | None:
    """A small file, or None where there is none."""
    try:
        return _retried(lambda files, path: bytes(files.cat_file(path)), url)
    except FileNotFoundError:
        return None


def _retried(work: Callable[[Any, str], T], url: str) -> T:
    """What `work` gives of a file system and a path, tried again after a pause. FileNotFoundError at once; AuroraError
    after the last try."""
    for attempt in range(TRIES):
        try:
            return work(*_file_system(url))
        except (FileNotFoundError, AuroraError):
            raise
        # every kind of store has errors of its own
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise AuroraError(f"data: no room for {url} in the cache ({error}); data.cache_bytes bounds "
                                  "what it keeps, data.cache says where it is") from error
            reason = f"{type(error).__name__}: {error}".strip(": ")[:300]  # some say what they got instead, in full
            status = getattr(error, "status", 0)
            if isinstance(error, PermissionError) or (400 <= status < 500 and status not in LATER):
                raise AuroraError(f"data: {url} was refused: {reason}") from error
            if attempt == TRIES - 1:
                raise AuroraError(f"data: {url} could not be read in {TRIES} tries, the last time because of {reason}"
                                  ) from error
            pause = BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.5)
            _log.warning("data: %s: %s; again in %.1f s", url, reason, pause)
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
        return fsspec.core.url_to_fs(url, use_listings_cache=False, **options)  # type: ignore[no-any-return]
    except ImportError as error:
        raise AuroraError(f"data: {scheme}:// is read by another package: pip install 'auroralong[{SCHEMES[scheme]}]'"
                          ) from error
