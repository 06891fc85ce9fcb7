"""Films of the videos that requests bring along: watched once, and kept on the disk under the digest of all that makes
them, as STORE/.service/cache/DIGEST.aurora."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from aurora.files import remove
from aurora.inference.film import Film
from aurora.inference.film_file import SUFFIX
from aurora.inference.store import FilmStore
from aurora.inference.video_model import VideoModel
from aurora.inference.visuals import file_hash
from aurora.interfaces import Sampling
from aurora.serving.film_memory import FilmMemory
from aurora.serving.metrics import Metrics
from aurora.serving.watching import Watch, Watcher


class RequestFilms:
    """Keeps up to `most_bytes` on the disk; those that were not used for longest go."""

    def __init__(self, folder: Path, most_bytes: int, model: VideoModel, watcher: Watcher, memory: FilmMemory,
                 metrics: Metrics) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.store, self.most_bytes, self.model = FilmStore(folder), most_bytes, model
        self._watcher, self._memory, self._metrics = watcher, memory, metrics
        self._watches: dict[str, Watch] = {}
        self._saving = threading.Lock()

    async def of_files(self, files: Sequence[Path], sampling: Sampling, folder: Path) -> Film:
        """The film of videos and images, watched unless that was done before; the `folder` they lie in is removed then.
        Watching ends when nobody waits for it any more."""
        key = await asyncio.to_thread(self._key, files, sampling)
        watch = self._watches.get(key)
        if watch is None and (kept := self.store.path(key)).exists():
            self._metrics.film_hits.inc()
            remove(folder)
            kept.touch()
            return await self._memory.load(key, lambda: self.store.open(self.model, key))
        if watch is None:
            watch = self._watcher.start("video", files, sampling, lambda film: self._keep(film, key))
            self._watches[key] = watch
            watch.done.add_done_callback(lambda _: remove(folder))
        else:
            self._metrics.film_hits.inc()
            remove(folder)
        watch.users += 1
        try:
            done = asyncio.wrap_future(watch.done)
            done.add_done_callback(lambda one: one.cancelled() or one.exception())  # whoever waits is told
            film = await asyncio.shield(done)
        finally:
            watch.users -= 1
            if watch.users == 0:
                self._watches.pop(key, None)
                watch.stop()
        self._memory.put(key, film)
        return film

    def _key(self, files: Sequence[Path], sampling: Sampling) -> str:
        facts = [*map(file_hash, files), asdict(sampling), self.model.settings, self.model.identity]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _keep(self, film: Film, key: str) -> None:
        with self._saving:
            self.store.save(film, key)
            self._metrics.films_watched.inc()
            paths = self.store.folder.glob(f"*{SUFFIX}")
            kept = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in paths)
            total = sum(size for _, size, _ in kept)
            for _, size, path in kept[:-1]:
                if total <= self.most_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= size
