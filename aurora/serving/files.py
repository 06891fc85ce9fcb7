"""Uploaded files, kept over restarts under ids that the server makes: `/v1/files`."""

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from aurora.files import room_for, sync
from aurora.serving.errors import ApiError

_ID = re.compile(r"file-[0-9a-f]{32}")
_UNSEEN = re.compile(r"[\x00-\x1f\x7f]")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class StoredFile:
    """What is known of an uploaded file; the name is a label, never a path."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    sha256: str = ""

    def shown(self) -> dict[str, object]:
        """As OpenAI's clients expect it."""
        return {"object": "file", "status": "processed", **asdict(self)}


class UploadedFiles:
    """A folder of files. What was not uploaded to its end is swept away at the start."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        folder.mkdir(parents=True, exist_ok=True)
        whole = {file.id for file in self.all()}
        for path in folder.iterdir():
            if path.name.partition(".")[0] not in whole or path.suffix == ".part":
                path.unlink()

    def all(self) -> list[StoredFile]:
        """All files, the oldest first."""
        found = [_read(path) for path in self.folder.glob("file-*.json")]
        return sorted((file for file in found if file is not None), key=lambda file: (file.created_at, file.id))

    def add(self, source: BinaryIO, filename: str, purpose: str, most: int) -> StoredFile:
        """Keeps what a client sends. ApiError 413 when it is too large, 507 when the server keeps enough already."""
        file_id = f"file-{time.time_ns():016x}{secrets.token_hex(8)}"  # in the order of uploads
        path, part = self.folder / file_id, self.folder / f"{file_id}.part"
        kept, digest = sum(file.bytes for file in self.all()), hashlib.sha256()
        try:
            with room_for(path), part.open("wb") as file:
                for block in iter(lambda: source.read(_BLOCK), b""):
                    file.write(block)
                    digest.update(block)
                    if file.tell() > most:
                        raise ApiError(413, f"the file has more than {most} bytes")
                    if kept + file.tell() > self.most_bytes:
                        raise ApiError(507, f"the server keeps at most {self.most_bytes} bytes of files; delete some")
                size = file.tell()
                file.flush()
                os.fsync(file.fileno())
            if size == 0:
                raise ApiError(400, "the file is empty", param="file")
            label = _UNSEEN.sub("", filename.replace("\\", "/").rpartition("/")[2])[:200] or "upload"
            told = StoredFile(file_id, size, int(time.time()), label, _UNSEEN.sub("", purpose)[:64],
                              digest.hexdigest())
            os.replace(part, path)
            part.write_text(json.dumps(asdict(told)))
            sync(part)
            os.replace(part, path.with_suffix(".json"))  # from here on it is there
            sync(self.folder)
        except BaseException:
            part.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise
        return told

    def get(self, file_id: str) -> StoredFile:
        """What is known of a file. ApiError 404 for an id that was never given, or whose file was deleted."""
        found = _read(self.folder / f"{file_id}.json") if _ID.fullmatch(file_id) else None
        if found is None:
            raise ApiError(404, f"there is no file {file_id[:64]!r}")
        return found

    def path(self, file_id: str) -> Path:
        """Where the file of an id lies."""
        return self.folder / self.get(file_id).id

    def of_sha256(self, sha256: str | None) -> Path | None:
        """Where a file of this digest lies; None where there is none."""
        return next((self.folder / file.id for file in self.all() if sha256 and file.sha256 == sha256), None)

    def link(self, file_id: str, target: Path) -> None:
        """Gives the file a second name, so that deleting it takes nothing away from whoever watches it."""
        source = self.path(file_id)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # a file system without links
            shutil.copyfile(source, target)

    def remove(self, file_id: str) -> None:
        """Deletes a file."""
        path = self.path(file_id)
        path.with_suffix(".json").unlink()
        path.unlink()


def blocks(file: BinaryIO) -> Iterator[bytes]:
    """An open file in blocks; it is closed at the end."""
    with file:
        yield from iter(lambda: file.read(_BLOCK), b"")


def _read(path: Path) -> StoredFile | None:
    try:
        return StoredFile(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
