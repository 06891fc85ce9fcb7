"""A folder of saved films, by name: what `aurora index` writes, `aurora ask --store` reads and the service keeps."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aurora.errors import AuroraError, suggest
from aurora.inference.film import Film
from aurora.inference.film_file import SUFFIX, read_facts
from aurora.inference.video_model import VideoModel

_PART = r"(?![. ])[\w .,()+@~#-]{1,120}(?<![ .])(?<!(?i:\.aurora))"
_NAME = re.compile(rf"{_PART}(/{_PART})*")
_MOST_BYTES = 220  # of a part of a name; disks take 255, of which suffixes need some


class FilmStore:
    """Films as FOLDER/NAME.aurora. A name may have folders in it; it never leads out of the folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise AuroraError(f"{folder} is a file; a store of films is a folder")

    def names(self) -> list[str]:
        """Of all films, sorted; a file that is being written is not one of them yet."""
        found = []
        for folder, folders, files in os.walk(self.folder):  # which passes over folders that vanish meanwhile
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(folder).relative_to(self.folder)
            found += [(inside / name).with_suffix("").as_posix() for name in files if name.endswith(SUFFIX)]
        return sorted(filter(_is_name, found))

    def path(self, name: str) -> Path:
        """The file of a name. AuroraError for a name that cannot be one."""
        if not _is_name(name):
            raise AuroraError(f"{name!r} cannot name a film: letters, digits, spaces and _ . , ( ) + @ ~ # - are "
                              "possible, with / between folders; no part begins or ends with a dot or a space, ends in "
                              f"{SUFFIX}, or has more than 120 characters or {_MOST_BYTES} bytes")
        return self.folder / f"{name}{SUFFIX}"

    def require(self, name: str) -> Path:
        """The file of a film. AuroraError that lists the names when there is none."""
        path = self.path(name)
        if not path.is_file():
            raise AuroraError(f"{self.folder} has no film {name!r}.{suggest(name, self.names())}")
        return path

    def info(self, name: str) -> dict[str, Any]:
        """What the header of a film says; its state is not read."""
        return read_facts(self.require(name))

    def infos(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The same of all films that can be read."""
        for name in self.names():
            yield name, self.info(name)

    def open(self, model: VideoModel, name: str, **expected: Any) -> Film:
        """A film, checked as `VideoModel.open` does."""
        return model.open(self.require(name), **expected)

    def save(self, film: Film, name: str) -> Path:
        """Writes a film under a name, whole or not at all, in place of one that has it."""
        path = self.path(name)
        film.save(path)
        return path

    def remove(self, name: str) -> None:
        """Deletes a film. AuroraError where there is none."""
        path = self.require(name)
        path.unlink()
        for folder in path.parents:
            if folder == self.folder or any(folder.iterdir()):
                return
            folder.rmdir()


def _is_name(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and all(len(part.encode()) <= _MOST_BYTES for part in name.split("/"))
