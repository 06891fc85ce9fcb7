"""Watching every video below a folder into a store, in any number of processes that may end at any time.

Besides films the store holds a folder `.index`:

    claims            processes claim the film that they watch in it
    begun/ID          a film that is being watched; one that a process left when it died is watched last next time
    made/ID.json      path, size and time of the file that a film was made of, so that it need not be read to skip it
"""

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from aurora.errors import AuroraError
from aurora.files import claimed, read_json, room_for
from aurora.inference.film import Film
from aurora.inference.film_file import SUFFIX
from aurora.inference.store import FilmStore
from aurora.inference.video_model import VideoModel
from aurora.inference.visuals import UnreadableVisual, check_file, file_hash
from aurora.inference.workers import WorkerModel, run_claimed
from aurora.interfaces import Executor
from aurora.media import VIDEOS, media_type
from aurora.version import VERSION

INDEX = ".index"
_NAMED_AS_VIDEO = {f".{extension}" for extension in (*VIDEOS, "mov", "m4v", "mpeg", "3gp", "m2ts", "mts")}
_REFUSED = re.compile(r"[^\w .,()+@~#-]")
_LONGEST, _MOST_BYTES = 100, 200  # of a part of a name; disks take 255 bytes, of which suffixes need some


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
    key: str = ""  # of the model and settings
    wait: bool = False  # for another process that is watching it

    @property
    def name(self) -> str:
        """The name of the film."""
        return self.video.name

    def facts(self) -> dict[str, Any]:
        """What a film was made of, as far as it is known without reading a file. OSError when one is gone."""
        film = FilmStore(self.store).path(self.name)
        return {"key": self.key, "path": self.video.path, "video": _stamp(self.video.path), "film": _stamp(film)}

    def result(self) -> Outcome | None:
        """That the film stands, where neither it nor the video has changed since; None where that is not known."""
        with suppress(AuroraError, OSError, KeyError):
            made = read_json(self._made)
            if {key: made[key] for key in ("key", "path", "video", "film")} == self.facts():
                return Outcome(*self.video, "present", "", made["frames"], made["seconds"])
        return None

    def made_of(self) -> str | None:
        """The path of the video that the film was made of; None where that is not known."""
        with suppress(AuroraError, OSError, KeyError):
            made = read_json(self._made)
            if made["film"] == _stamp(FilmStore(self.store).path(self.name)):
                return str(made["path"])
        return None

    def note(self, facts: Mapping[str, Any], outcome: Outcome) -> None:
        """Writes down what `result` reads. `facts` are those of before the video was read."""
        film = _stamp(FilmStore(self.store).path(self.name))
        made = {**facts, "film": film, "frames": outcome.frames, "seconds": outcome.seconds}
        with suppress(OSError):  # of no harm if it is missing or torn: the video is read again then
            self._made.parent.mkdir(exist_ok=True)
            self._made.write_text(json.dumps(made))

    @property
    def _made(self) -> Path:
        return Path(self.store) / INDEX / "made" / f"{_digest(self.name)[:32]}.json"


def find_videos(folder: str | Path, *, without: str | Path) -> list[FoundVideo]:
    """Every file below a folder that is a video, or is called like one, with a name for its film; none of what begins
    with a dot or lies below `without`. Links are followed, and a folder that several ways lead to is read once.
    AuroraError where there is no video."""
    root, left_out = Path(folder), Path(without).resolve()
    if not root.is_dir():
        raise AuroraError(f"{folder} {'is not a folder' if root.exists() else 'does not exist'}; give the folder that "
                          "holds the videos")
    found: list[Path] = []
    read: set[str] = set()
    tops = [root]
    for place, folders, files in chain.from_iterable(map(os.walk, tops)):  # which grow meanwhile
        if (real := os.path.realpath(place)) in read:
            folders.clear()
            continue
        read.add(real)
        folders[:] = sorted(name for name in folders if name[0] != "." and Path(place, name).resolve() != left_out)
        # behind everything else, so that a folder has the name of its own place where it is below `folder` too
        tops += [Path(place, name) for name in folders if os.path.islink(os.path.join(place, name))]
        found += [Path(place, name) for name in sorted(files) if name[0] != "." and _is_video(Path(place, name))]
    if not found:
        raise AuroraError(f"{folder} holds no video file")
    names = film_names([path.relative_to(root).as_posix() for path in found])
    return sorted(FoundVideo(name, str(root.resolve() / path.relative_to(root)))
                  for name, path in zip(names, found, strict=True))


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
    with claimed(store.folder / INDEX / "claims", name, wait=task.wait) as free:
        if not free:
            return Outcome(name, path, "busy")
        if (standing := task.result()) is not None:  # another process has made it meanwhile
            return standing
        model = task.model.load()
        with _begun(store, name):
            try:
                facts = {"key": task.key, "path": path, "video": _stamp(path)}
                outcome = _watched(task, store, model)
            except (UnreadableVisual, OSError) as error:  # one file that is gone, or that cannot be written
                return Outcome(name, path, "broken", str(error))
            except (RuntimeError, MemoryError) as error:  # such as a GPU whose memory this one video does not fit into
                return Outcome(name, path, "broken", f"{type(error).__name__}: {error}")
            if not outcome.failed:
                task.note(facts, outcome)
            return outcome


def build_index(videos: Sequence[FoundVideo], store: FilmStore, model: WorkerModel, executor: Executor, *,
                checkpoint_seconds: float | None = None) -> Iterator[Outcome]:
    """What becomes of every video, as it comes. A film that stands keeps its name, though another file may have come
    or gone since that differs in the suffix alone."""
    videos = _under_standing_names(videos, store, model)
    key = hashlib.sha256(f"{model.digest()} {checkpoint_seconds} {VERSION}".encode()).hexdigest()
    died = set(_left_over(store, [video.name for video in videos]))
    tasks = []
    for video in sorted(videos, key=lambda video: video.name in died):
        task = WatchTask(video, str(store.folder), model, checkpoint_seconds, key)
        if (standing := task.result()) is None:
            tasks.append(task)
        else:
            yield standing
    yield from _survived(tasks, store, lambda some: run_claimed(lambda more: executor.run(watch_video, more), some))


def _under_standing_names(videos: Sequence[FoundVideo], store: FilmStore, model: WorkerModel) -> list[FoundVideo]:
    """The videos, each with the name that the store has a film of it under: with the suffix or without."""
    def stands(video: FoundVideo) -> bool:
        return WatchTask(video, str(store.folder), model).made_of() == video.path

    used, named = {video.name for video in videos}, []
    for video in videos:
        stem, suffix = os.path.splitext(video.name)
        own = Path(video.path).suffix
        other = video._replace(name=stem if suffix == own else video.name + own)
        named.append(other if other.name not in used and stands(other) and not stands(video) else video)
    return named


def _survived(tasks: Sequence[WatchTask], store: FilmStore, run: Callable[[Sequence[WatchTask]], Iterator[Outcome]]
              ) -> Iterator[Outcome]:
    """The outcomes of all tasks. Those that were being done when a process died are done again, each alone: what ends
    its process then too is broken."""
    left = {task.name: task for task in tasks}
    while left:
        try:
            for outcome in run(list(left.values())):
                del left[outcome.name]
                yield outcome
        except AuroraError:
            suspects = [left.pop(name) for name in _left_over(store, left)]
            if not suspects:
                raise
            for task in suspects:
                yield from _alone(task, store, run)


def _alone(task: WatchTask, store: FilmStore, run: Callable[[Sequence[WatchTask]], Iterator[Outcome]]
           ) -> Iterator[Outcome]:
    try:
        yield from run([task])
    except AuroraError as error:
        if not _left_over(store, [task.name]):
            raise
        _note(store, task.name).unlink()
        yield Outcome(*task.video, "broken", str(error).partition(". Run again")[0])


def _watched(task: WatchTask, store: FilmStore, model: VideoModel) -> Outcome:
    """The outcome of watching, or of a film that stands. UnreadableVisual."""
    name, path = task.video
    standing = _facts(store, name)
    if store.path(name).is_dir():
        return Outcome(name, path, "taken", f"{store.path(name)} is a folder")
    check_file(path)
    if standing is not None and not _is_of(standing, path, made_of := task.made_of()):
        return Outcome(name, path, "taken", f"the store has a film of this name, of {made_of or standing['name']}")
    if standing is not None and _is_current(standing, model, path, task.checkpoint_seconds):
        return Outcome(name, path, "present", "", standing["now"]["frames"], standing["now"]["seconds"])
    began = time.monotonic()
    film = model.watch(path, checkpoint_seconds=task.checkpoint_seconds)
    store.save(film, name)
    return Outcome(name, path, "watched", _thinned(film), film.frames, film.seconds, time.monotonic() - began)


def _thinned(film: Film) -> str:
    """How far apart the frames are where `max_frames` left some out; empty where it did not."""
    sampling = film.media[0].sampling
    fps, most = sampling.get("fps"), sampling.get("max_frames")
    if fps is None or film.frames != most or film.seconds * fps <= most + 1:
        return ""
    return f"{film.frames} frames, one every {film.seconds / film.frames:.3g} s"


def _stamp(path: str | Path) -> list[int]:
    """The size of a file, and when it was changed."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns]


def _is_video(path: Path) -> bool:
    if path.suffix.lower() in _NAMED_AS_VIDEO and path.is_symlink() and not path.exists():
        return True  # a broken one, which is named
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
    taken = _REFUSED.sub("_", part)[:_LONGEST].encode()[:_MOST_BYTES].decode(errors="ignore").strip(" .")
    if taken.lower().endswith(SUFFIX):
        taken = f"{taken[:-len(SUFFIX)]}_{SUFFIX[1:]}"
    return taken or "_"


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def _facts(store: FilmStore, name: str) -> dict[str, Any] | None:
    """The header of a film; None where there is none that can be read."""
    with suppress(AuroraError):
        return store.info(name)
    return None


def _is_of(facts: Mapping[str, Any], path: str, made_of: str | None) -> bool:
    """Whether a film is one of this file alone, however it was watched: it was made of a file that lay there, or of one
    that holds the same."""
    media = facts["media"]
    return len(media) == 1 and (made_of == path or media[0]["sha256"] == file_hash(path))


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
    note = _note(store, name)
    with room_for(note):
        note.parent.mkdir(exist_ok=True)
        note.write_text(name, encoding="utf-8")
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def _note(store: FilmStore, name: str) -> Path:
    return store.folder / INDEX / "begun" / _digest(name)[:32]


def _left_over(store: FilmStore, names: Iterable[str]) -> list[str]:
    """Those of the films that were being watched when their processes died."""
    begun = {note.name for note in (store.folder / INDEX / "begun").glob("*")}
    found = []
    for name in names:
        if _note(store, name).name in begun:
            with claimed(store.folder / INDEX / "claims", name) as free:
                found += [name] * free
    return found
