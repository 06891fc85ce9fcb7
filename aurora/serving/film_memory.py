"""Films that are kept in memory, as long as there is room."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from aurora.inference.film import Film
from aurora.types import state_bytes


class FilmMemory:
    """Films in memory up to a number of bytes; the least recently used ones are let go, since the store has them."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._films: OrderedDict[str, tuple[Film, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._films)

    def get(self, key: str) -> Film | None:
        """The film, which becomes the most recently used one."""
        if key not in self._films:
            return None
        self._films.move_to_end(key)
        return self._films[key][0]

    def put(self, key: str, film: Film) -> None:
        """Keeps a film, unless it alone is too large."""
        self.drop(key)
        size = film_bytes(film)
        self._films[key] = film, size
        self.bytes += size
        while self.bytes > self.most_bytes and self._films:
            self.drop(next(iter(self._films)))

    async def load(self, key: str, read: Callable[[], Film]) -> Film:
        """The film, read in a thread where it is not here."""
        film = self.get(key)
        if film is None:
            film = await asyncio.to_thread(read)
            self.put(key, film)
        return film

    def drop(self, key: str) -> None:
        """Lets a film go."""
        self.bytes -= self._films.pop(key, (None, 0))[1]


def film_bytes(film: Film) -> int:
    """What the states of a film take, those of earlier moments among them."""
    pictures = sum(len(small.jpeg) for small in film.thumbnails)
    pending = sum(shot.pixels.numel() for shot in film.now.pending)
    return pictures + pending + sum(state_bytes(seen.memory.state) for seen in (film.now, *film.history))
