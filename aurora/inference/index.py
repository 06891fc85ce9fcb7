"""Watching every video below a folder into a store, in any number of processes that may end at any time.

Besides films the store holds `.index/claims`, in which processes claim the film that they watch, and `.index/begun`
with a file for every film that is being watched: what is left of one whose process died is watched last next time.
"""

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from aurora.errors import AuroraError
from aurora.files import claimed
from aurora.inference.film_file import SUFFIX
from aurora.inference.store import FilmStore
from aurora.inference.video_model import VideoModel
from aurora.inference.visuals import UnreadableVisual, check_file, file_hash
from aurora.inference.workers import WorkerModel
from aurora.interfaces import Executor
from aurora.media import VIDEOS, media_type

INDEX = ".index"
_NAMED_AS_VIDEO = {f".{extension}" for extension in (*VIDEOS, "mov", "m4v", "mpeg", "3gp", "m2ts", "mts")}
_REFUSED = re.compile(r"[^\w .,()+@~#-]")
_LONGEST = 100


class FoundVideo(NamedTuple):
    """A video file, and what its film is called."""

    name: str
    path: str


class Outcome(NamedTuple):
    """What became of one video: its film was made, stands already, is being made by another process, could not be made,
    or its name belongs to a film of something else."""

    name: str
    path: str
    status: Literal["watched", "present", "busy", "broken", "taken"]
    detail: str = ""
    frames: int = 0
    seconds: float = 0.0  # of the film
    elapsed: float = 0.0  # seconds that watching took

    @property
    def failed(self) -> bool:
        """Whether there is no film of this video."""
        return self.status in ("broken", "taken")


@dataclass(frozen=True)
class WatchTask:
    """One video to be watched into a store."""

    video: FoundVideo
    store: str
    model: WorkerModel
    checkpoint_seconds: float | None = None


def find_videos(folder: str | Path, *, without: str | Path) -> list[FoundVideo]:
    """Every file below a folder that is a video, or is called like one, with a name for its film; none of what begins
    with a dot or lies below `without`. AuroraError where there is none."""
    root, left_out = Path(folder), Path(without).resolve()
    if not root.is_dir():
        raise AuroraError(f"{folder} is {'not a folder' if root.exists() else 'not there'}; give the one that holds "
                          "the videos")
    found: list[Path] = []
    for place, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name[0] != "." and Path(place, name).resolve() != left_out)
        found += [Path(place, name) for name in sorted(files) if name[0] != "." and _is_video(Path(place, name))]
    if not found:
        raise AuroraError(f"{folder} holds no video file")
    names = film_names([path.relative_to(root).as_posix() for path in found])
    return sorted(FoundVideo(name, str(path.resolve())) for name, path in zip(names, found, strict=True))


def film_names(files: Sequence[str]) -> list[str]:
    """For relative paths the names of their films: without the suffix, or with it where another file has the same name
    without; what a store does not take is replaced, and a digest tells such names apart."""
    stems = [_without_suffix(file) for file in files]
    counts = Counter(stems)
    chosen = [file if counts[stem] > 1 else stem for file, stem in zip(files, stems, strict=True)]
    # a file may be called like another one with its suffix
    counts = Counter(chosen)
    chosen = [file if counts[name] > 1 else name for file, name in zip(files, chosen, strict=True)]
    made = ["/".join(map(_part, name.split("/"))) for name in chosen]
    counts = Counter(name.casefold() for name in made)  # some disks do not tell capitals
    return [name if name == wanted and counts[name.casefold()] == 1 else f"{name}~{_digest(file)[:8]}"
            for name, wanted, file in zip(made, chosen, files, strict=True)]


def watch_video(task: WatchTask) -> Outcome:
    """Makes the film of one video, unless the store has just this film."""
    (name, path), store = task.video, FilmStore(task.store)
    with claimed(store.folder / INDEX / "claims", name) as free:
        if not free:
            return Outcome(name, path, "busy", "another process is watching it")
        with _begun(store, name):
            model = task.model.load()
            standing = _facts(store, name)
            if standing is not None and not _is_of(standing, path):
                return Outcome(name, path, "taken", f"the store has a film of this name, of {standing['name']}")
            try:
                check_file(path)
                if standing is not None and _is_current(standing, model, path, task.checkpoint_seconds):
                    return Outcome(name, path, "present", "", standing["now"]["frames"], standing["now"]["seconds"])
                began = time.monotonic()
                film = model.watch(path, checkpoint_seconds=task.checkpoint_seconds)
            except UnreadableVisual as error:
                return Outcome(name, path, "broken", str(error))
            store.save(film, name)
            return Outcome(name, path, "watched", "", film.frames, film.seconds, time.monotonic() - began)


def build_index(videos: Sequence[FoundVideo], store: FilmStore, model: WorkerModel, executor: Executor, *,
                checkpoint_seconds: float | None = None) -> Iterator[Outcome]:
    """What becomes of every video, as it comes. AuroraError that names what was being watched when a process died."""
    died = set(_left_over(store))
    ordered = sorted(videos, key=lambda video: video.name in died)
    try:
        yield from executor.run(watch_video, [
            WatchTask(video, str(store.folder), model, checkpoint_seconds) for video in ordered])
    except AuroraError as error:
        watching = _left_over(store)
        if not watching:
            raise
        raise AuroraError(f"{error}. Being watched: {', '.join(watching)}; what ends a process again and again is "
                          "watched last, and can be moved away") from error


def _is_video(path: Path) -> bool:
    if path.suffix.lower() == SUFFIX or not path.is_file():
        return False
    if path.suffix.lower() in _NAMED_AS_VIDEO:
        return True
    try:
        return media_type(path).moving
    except AuroraError:
        return False


def _without_suffix(file: str) -> str:
    return Path(file).with_suffix("").as_posix()


def _part(part: str) -> str:
    """One part of a name as a store takes it."""
    return _REFUSED.sub("_", part)[:_LONGEST].strip(" .") or "_"


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def _facts(store: FilmStore, name: str) -> dict[str, Any] | None:
    """The header of a film; None where there is none that can be read."""
    with suppress(AuroraError):
        return store.info(name)
    return None


def _is_of(facts: Mapping[str, Any], path: str) -> bool:
    """Whether a film is one of this file alone, however it was watched."""
    return len(facts["media"]) == 1 and facts["media"][0]["name"] == Path(path).name


def _is_current(facts: Mapping[str, Any], model: VideoModel, path: str, checkpoint_seconds: float | None) -> bool:
    """Whether a film is what watching the file would give now."""
    used, medium = model.blank().model, facts["media"][0]
    sampling = {key: value for key, value in asdict(used.sampling()).items() if value is not None}
    return bool(facts["identity"] == used.identity and facts["settings"] == used.settings
                and facts["checkpoint_seconds"] == checkpoint_seconds and medium["sampling"] == sampling
                and medium["sha256"] == file_hash(path))


@contextmanager
def _begun(store: FilmStore, name: str) -> Iterator[None]:
    """Leaves a file for as long as the film is being watched, which stays if the process dies."""
    note = store.folder / INDEX / "begun" / _digest(name)[:32]
    note.parent.mkdir(exist_ok=True)
    note.write_text(name, encoding="utf-8")
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def _left_over(store: FilmStore) -> list[str]:
    """The films that were being watched when their processes died."""
    found = []
    for note in sorted((store.folder / INDEX / "begun").glob("*")):
        with suppress(OSError, UnicodeDecodeError):
            found.append(note.read_text(encoding="utf-8"))
    return found
