"""The films of a server: kept in its store, in memory as long as there is room, and watched where they are new.

    STORE/NAME.aurora               films with a name, which `aurora index` and `aurora ask --store` share
    STORE/.service/jobs/ID.json     films to be watched, and ID.0 their video, so that a restart goes on with them
"""

import asyncio
import hashlib
import json
import logging
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aurora.errors import AuroraError
from aurora.files import replace_file
from aurora.inference.film import Film
from aurora.inference.film_file import FilmMismatch, differences
from aurora.inference.snapshot import Medium
from aurora.inference.store import FilmStore
from aurora.inference.video_model import VideoModel
from aurora.interfaces import Sampling
from aurora.serving.errors import ApiError
from aurora.serving.film_memory import FilmMemory
from aurora.serving.metrics import Metrics
from aurora.serving.settings import Settings
from aurora.serving.watching import Live, Watch, Watcher

log = logging.getLogger(__name__)

SERVICE = ".service"
"""What the server keeps in the store besides films; stores do not list what begins with a dot."""
Version = tuple[int, int, int]
"""Of a film's file: another program may replace it at any time."""
ROUTES = ("ask", "events", "extend", "fork", "frame", "patches", "state", "thumbnails")
"""What follows a film's name in the address of what is done with it; no folder holds a film that is called so."""
_ID = re.compile(r"film_[0-9a-f]{24}")
_LABEL = re.compile(r"[^A-Za-z0-9]+")


class Films:
    """Every film by the id that the server makes of its name. Its methods run in the event loop, what takes long in
    threads."""

    def __init__(self, model: VideoModel, settings: Settings, metrics: Metrics) -> None:
        self.model, self.settings, self.metrics = model, settings, metrics
        self.store = FilmStore(settings.folder)
        self.jobs = settings.folder / SERVICE / "jobs"
        for folder in (settings.folder, self.jobs):
            folder.mkdir(parents=True, exist_ok=True)
        self.watcher = Watcher(model, settings)
        self.watches: dict[str, Watch] = {}  # by name: films that are watched, and those that could not be
        self.memory = FilmMemory(settings.memory_bytes)
        self._facts: dict[str, tuple[Version, dict[str, Any]]] = {}
        self._versions: dict[str, Version | None] = {}  # of the file that what is known of a film came from
        self._named: set[str] = set()
        self._saving = threading.RLock()
        self._remembering = asyncio.Lock()

    # What there is.

    def names(self) -> list[str]:
        """Of all films, those that are watched among them."""
        stored = self.store.names()
        for gone in self._facts.keys() - stored:
            del self._facts[gone]
        for gone in self._versions.keys() - stored:
            self._versions.pop(gone, None)
        return sorted({*stored, *self.watches})

    def find(self, film_id: str) -> str:
        """The name of a film by its id or name. ApiError 404."""
        names = self.names()
        for name in names:
            if film_id == id_of(name):
                return name
        if film_id in names:
            return film_id
        raise ApiError(404, f"there is no film {film_id[:100]!r}")

    def watching(self, name: str) -> Watch | None:
        """Who watches a film. None for one that is saved, also after more of it could not be watched."""
        watch = self.watches.get(name)
        return None if watch is not None and watch.error is not None and self.store.path(name).exists() else watch

    def shown(self, name: str) -> dict[str, Any]:
        """What clients are told of a film."""
        watch = self.watching(name)
        told: dict[str, Any] = {"id": id_of(name), "object": "film", "name": name, "model": f"film:{name}"}
        if watch is not None:
            film = watch.film
            seen = {"frames": 0, "seconds": 0.0} if film is None else {
                "frames": film.frames, "seconds": film.seconds, "state_bytes": film.state_bytes,
                "settings": film.model.settings}
            return told | {"status": watch.status, **seen, "progress": _progress(watch),
                           "error": watch.error and watch.error.detail,
                           "sha256": [] if watch.sha256 is None else [watch.sha256]}
        try:
            facts = self.facts(name)
        except AuroraError as error:
            return told | {"status": "damaged", "error": str(error).replace(str(self.settings.folder), "STORE")}
        wrong = differences(facts["identity"], self.model.identity, [*self.model.identity])
        reason = f"it is a film of another model; what differs: {', '.join(wrong)}" if wrong else None
        failed = self.watches[name].error if name in self.watches else None
        warnings = [] if failed is None else [f"it could not be extended, and is as it was: {failed.detail}"]
        frames, seconds = facts["now"]["frames"], facts["now"]["seconds"]
        few = thinned(frames, seconds, [medium["sampling"] for medium in facts["media"]])
        return told | {"status": "other_model" if wrong else "ready" if frames else "waiting", "frames": frames,
                       "seconds": seconds, "progress": 1.0 if frames else 0.0, "error": reason,
                       "warnings": [*warnings, *(f"{text}; a larger max_frames reads more" for text in few)],
                       "state_bytes": facts["state_bytes"], "digest": facts["id"], "settings": facts["settings"],
                       "media": [medium["name"] for medium in facts["media"]],
                       "sha256": [medium["sha256"] for medium in facts["media"]]}

    def turns(self, name: str) -> list[dict[str, str | None]]:
        """The questions and answers that a film remembers."""
        watch = self.watching(name)
        if watch is not None:
            turns = () if watch.film is None else watch.film.turns
            return [{"question": turn.question, "answer": turn.answer} for turn in turns]
        return [{key: turn[key] for key in ("question", "answer")} for turn in self.facts(name)["turns"]]

    def facts(self, name: str) -> dict[str, Any]:
        """What the header of a saved film says; read again only when the file was replaced."""
        version = _version(self.store.require(name))
        if self._facts.get(name, (None,))[0] != version:
            self._facts[name] = version, self.store.info(name)
        return self._facts[name][1]

    async def open(self, name: str) -> Film:
        """A film to be asked: as far as it was seen. ApiError 409 while nothing was, or when it is another model's."""
        watch = self.watching(name)
        if watch is not None and watch.error is not None:
            raise ApiError(409, f"the film could not be watched: {watch.error.detail}")
        film = await self.saved(name) if watch is None else watch.film
        if film is None or not film.frames:
            raise ApiError(409, "nothing of the film was seen yet; ask again once something was")
        return film

    async def saved(self, name: str) -> Film:
        """A film as it stands in the store now: read again where its file was replaced."""
        version = _version(self.store.require(name))
        if version != self._versions.get(name):
            self.memory.drop(f"film:{name}")
            self._versions[name] = version
        film = self.memory.get(f"film:{name}")
        if film is None:
            try:
                film = await asyncio.to_thread(self.store.open, self.model, name)
            except FilmMismatch as error:
                raise ApiError(409, str(error).replace(str(self.settings.folder), "STORE")) from error
            if self._versions.get(name) == version:
                self.memory.put(f"film:{name}", film)
        return film

    # What changes.

    @contextmanager
    def naming(self, chosen: str | None, label: str | None) -> Iterator[str]:
        """A name that nobody else is given meanwhile: the one that a client chose, else one that the server makes of a
        label. ApiError 409 when it is taken."""
        if chosen is not None and _ID.fullmatch(chosen):
            raise ApiError(400, f"the name {chosen!r} looks like the id of another film", param="name")
        if chosen is not None and "/" in chosen and chosen.rpartition("/")[2] in ROUTES:
            raise ApiError(400, f"the name {chosen!r} ends like the address of a route: {', '.join(ROUTES)}",
                           param="name")
        word = _LABEL.sub("-", Path(label or "film").stem).strip("-")[:60] or "film"
        name = chosen or f"{word}-{secrets.token_hex(6)}"
        self.store.path(name)
        if name in self._named or name in self.names():
            raise ApiError(409, f"there is a film {name!r} already", param="name")
        self._named.add(name)
        self._versions.pop(name, None)
        try:
            yield name
        finally:
            self._named.discard(name)

    def save(self, film: Film, name: str) -> None:
        """Writes a film; returns when it is on the disk. ApiError 409 where its file is not the one that the film came
        from: what another program has made of it is not overwritten."""
        path = self.store.path(name)
        with self._saving:
            if self._versions.get(name) != (_version(path) if path.exists() else None):
                raise ApiError(409, f"the film {name!r} was replaced or removed by another program meanwhile")
            self.store.save(film, name)
            self._versions[name] = _version(path)

    def _save_over(self, version: Version | None, film: Film, name: str) -> None:
        """Writes a film where its file is still of that version: one that was watched further meanwhile stays."""
        with self._saving:
            if self._versions.get(name) != version:
                raise ApiError(409, "the film was watched further while the question was answered; ask again")
            self.save(film, name)

    def keep(self, name: str, film: Film) -> None:
        """A film that was saved is asked from memory from now on."""
        self.memory.put(f"film:{name}", film)

    async def remember(self, name: str, question: str, answer: str, shown: Sequence[Medium]) -> None:
        """Makes an exchange about what was shown part of a film's conversation; returns when it is on the disk, also
        of a film that is being watched. After an error the conversation is as it was; ApiError 409 where the film is
        another one meanwhile."""
        async with self._remembering:
            watch, film = self.watching(name), await self.open(name)
            if not _begins_with(film.media, shown):
                raise ApiError(409, "the film was replaced while the question was answered")
            turn, before = film.turn(question)._replace(answer=answer), film.turns
            if watch is not None:
                film.turns = (*before, turn)
            try:
                if isinstance(watch, Live):
                    await asyncio.to_thread(watch.save)
                elif watch is not None and not self.store.path(name).exists():
                    self.note_job(name, {**watch.job, "turns": [one._asdict() for one in film.turns]})
                else:
                    # a fork: others ask the film while it is saved, and it stays where that fails
                    saved = (film if watch is None else await self.saved(name)).fork()
                    saved.turns = (*saved.turns, turn)
                    await asyncio.to_thread(self._save_over, self._versions.get(name), saved, name)
                    self.keep(name, saved)
            except Exception:
                film.turns = before
                raise

    def start_job(self, name: str, job: Mapping[str, Any], file: Path, film: Film | None) -> None:
        """Writes down what is to be watched, so that a restart goes on with it, and watches it. QueueFull."""
        self.note_job(name, job)
        try:
            self.watch(name, job, file, film)
        except BaseException:
            self.jobs.joinpath(f"{id_of(name)}.json").unlink()
            file.unlink()
            raise

    def watch(self, name: str, job: Mapping[str, Any], file: Path, film: Film | None) -> Watch:
        """Watches the video of a job, behind what a film has seen where there is one."""
        job_id = id_of(name)

        def finish(film: Film) -> None:
            if job["extends"] is not None and self.facts(name)["id"] != job["extends"]:
                raise ApiError(409, "the film was replaced while this was watched")
            self.save(film, name)
            self.jobs.joinpath(f"{job_id}.json").unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            self.metrics.films_watched.inc()

        watch = self.watcher.start(name, [file], Sampling(**job["sampling"]), finish, film=film, using=job["using"],
                                   checkpoint_seconds=job["checkpoint_seconds"], turns=job.get("turns", ()))
        watch.sha256, watch.job = job.get("sha256"), job
        self.watches[name] = watch
        self._when_done(watch, file)
        return watch

    def _when_done(self, watch: Watch, file: Path) -> None:
        loop = asyncio.get_running_loop()

        def ended() -> None:
            if self.watches.get(watch.name) is not watch:
                return
            if watch.status == "ready" and watch.film is not None:
                del self.watches[watch.name]
                self.jobs.joinpath(f"{id_of(watch.name)}.json").unlink(missing_ok=True)  # of what failed before it
                self.keep(watch.name, watch.film)
                if len(watch.film.turns) > len(self.facts(watch.name)["turns"]):  # said while it was being saved
                    loop.run_in_executor(None, self.save, watch.film, watch.name)
            elif watch.status == "failed" and watch.error is not None:
                file.unlink(missing_ok=True)
                self.note_job(watch.name, {**watch.job, "error": watch.error.detail, "status": watch.error.status_code})

        watch.done.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(ended))

    def note_job(self, name: str, job: Mapping[str, Any]) -> None:
        """Writes down what is to be watched."""
        replace_file(self.jobs / f"{id_of(name)}.json", json.dumps({"name": name, **job}).encode())

    def resume(self) -> None:
        """Goes on with the films that were not watched to their end when the server ended."""
        for path in sorted(self.jobs.glob("film_*.json")):
            job = json.loads(path.read_text())
            name, file = job.pop("name"), path.with_suffix(".0")
            if "error" in job:
                failed = Watch(name)
                failed.status, failed.error = "failed", ApiError(job["status"], job["error"])
                failed.sha256 = job.get("sha256")
                self.watches[name] = failed
            elif not file.exists() or self._was_done(name, job):
                path.unlink()
                file.unlink(missing_ok=True)
            else:
                self._resume(name, job, file)
        for file in self.jobs.glob("film_*.0"):
            if not file.with_suffix(".json").exists():
                file.unlink()

    def _resume(self, name: str, job: Mapping[str, Any], file: Path) -> None:
        try:
            film = None
            if job["extends"] is not None:
                self._versions[name] = _version(self.store.require(name))
                film = self.store.open(self.model, name)
            self.watch(name, job, file, film)
        except AuroraError as error:
            log.warning("%s is not watched on: %s", name, error)

    def _was_done(self, name: str, job: Mapping[str, Any]) -> bool:
        """Whether the film was saved, and only its job was left when the server was killed."""
        saved = name in self.store.names()
        return saved if job["extends"] is None else not saved or self.facts(name)["id"] != job["extends"]

    def live(self, name: str, film: Film) -> Live:
        """Begins to read the frames that a client sends."""
        watch = Live(name, film, lambda grown: self.save(grown, name))
        self.watches[name] = watch
        self._when_done(watch, self.jobs / f"{id_of(name)}.0")
        watch.start()
        return watch

    async def remove(self, name: str) -> None:
        """Deletes a film and what is left of its watching."""
        watch = self.watches.pop(name, None)
        if watch is not None:
            watch.discard()
        for suffix in (".json", ".0"):
            self.jobs.joinpath(f"{id_of(name)}{suffix}").unlink(missing_ok=True)
        self.memory.drop(f"film:{name}")
        await asyncio.to_thread(self._remove, name)

    def _remove(self, name: str) -> None:
        with self._saving:
            if self.store.path(name).exists():
                self.store.remove(name)

    async def every_second(self) -> None:
        """Saves films that grow."""
        while True:
            await asyncio.sleep(1.0)
            for watch in [*self.watches.values()]:
                if not isinstance(watch, Live):
                    continue
                try:
                    await asyncio.to_thread(watch.save_if_due)
                except Exception as error:  # of one film; it is tried again when it has grown
                    log.warning("the live film %s is not saved: %s", watch.name, error)

    def close(self) -> None:
        """Ends what is being watched, and saves it where it is live."""
        lives = [watch for watch in self.watches.values() if isinstance(watch, Live)]
        for live in lives:
            live.stop()
        self.watcher.close()
        for live in lives:
            live.join()


def id_of(name: str) -> str:
    """The id that the server makes of a film's name."""
    return f"film_{hashlib.sha256(name.encode()).hexdigest()[:24]}"


def _version(path: Path) -> Version:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _begins_with(media: Sequence[Medium], before: Sequence[Medium]) -> bool:
    """Whether a film is one that was asked before, or that one watched further: by its first videos, whose hashes are
    known once they were watched to their end."""
    return len(media) >= len(before) and all(
        (now.name, now.start) == (then.name, then.start)
        and (None in (now.sha256, then.sha256) or now.sha256 == then.sha256)
        for now, then in zip(media, before, strict=False))


def thinned(frames: int, seconds: float, samplings: Sequence[Mapping[str, Any]]) -> list[str]:
    """How far apart the frames of a film are where `max_frames` left some out of its video."""
    sampling = samplings[0] if len(samplings) == 1 else {}
    fps, most = sampling.get("fps"), sampling.get("max_frames")
    if fps is None or frames != most or seconds * fps <= most + 1:
        return []
    return [f"the video is longer than {most} frames at {fps:g} a second: one was read every {seconds / frames:.3g} s"]


def _progress(watch: Watch) -> float | None:
    return None if watch.total is None else min(1.0, watch.frames / max(1, watch.total))
