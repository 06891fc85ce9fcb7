"""What happens when the page is used. All it knows it asks the service."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from aurora.ui import views
from aurora.ui.client import Client, ServiceError
from aurora.ui.components import Components

SHOW_SECONDS = 0.05
"""At least this long between two pieces of an answer on their way to the browser."""
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}
Updates = dict[Any, Any]


class Page(Components):
    """The page of a service. One instance serves all browsers."""

    def __init__(self, client: Client, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.client = client
        self._answers: dict[str, asyncio.Task[None]] = {}  # that are being made, by the session of a browser
        with self.blocks:
            self._events()

    def _events(self) -> None:
        watching = [self.keep_ratio, self.fps, self.merge, self.sort]
        looking = [self.film, self.second, self.depth, self.keep_ratio, self.merge, self.sort]
        said = [self.problem, self.retry]
        known = [self.film, self.status, self.timeline, self.clock, self.again, self.delete, self.second, self.memory,
                 self.example, *said]
        talk = [self.conversation, self.talks, self.ask, self.stop]
        gr.on([self.question.submit, self.ask.click], self.answer,
              [self.film, self.question, self.remember, self.talks], [self.question, *talk], trigger_mode="once",
              **_QUIET)
        self.stop.click(self.stop_answer, None, None, **_QUIET)
        added = [self.film, self.drop, self.status, self.example, *said]
        for chosen in (
            gr.on([self.blocks.load, self.retry.click], self.open, self.last, [self.film, *said], **_QUIET),
            self.film.input(self.chosen, None, said, **_QUIET),
            self.drop.upload(self.add, [self.drop, *watching], added, **_QUIET),
            self.example.click(self.add_example, watching, added, **_QUIET),
            self.again.click(self.watch_again, [self.film, *watching], added, **_QUIET),
            self.delete.click(
                self.remove, [self.film, self.delete], [self.film, *said], **_QUIET,
                js="(film, sure) => [film, confirm('Delete this film? What was seen is lost.') ? 'yes' : '']"),
        ):
            chosen.then(self.show, [self.film, self.talks], [*known, self.last, *watching, *talk], **_QUIET).then(
                self.draw, looking, self.figure, **_QUIET)
        self.film.focus(self.refresh, self.film, self.film, **_QUIET)
        self.clock.tick(self.look, self.film, known, trigger_mode="once", **_QUIET).then(
            self.draw, looking, self.figure, **_QUIET)
        self.timeline.select(self.choose, None, self.second, trigger_mode="multiple", **_QUIET)
        gr.on([one.change for one in looking[1:]], self.draw, looking, self.figure, trigger_mode="always_last",
              **_QUIET)

    async def chosen(self, request: gr.Request) -> Updates:
        """Another film is to be shown."""
        await self.stop_answer(request)
        return self.fine()

    def fine(self) -> Updates:
        """Nothing went wrong."""
        return {self.problem: "", self.retry: gr.Button(visible=False)}

    def wrong(self, error: ServiceError) -> Updates:
        """What went wrong; whether it may be tried again."""
        return {self.problem: views.problem(str(error)), self.retry: gr.Button(visible=error.status is None)}

    # Films.

    async def open(self, last: str) -> Updates:
        """The films that there are, and the one that this browser looked at last, if it is still there."""
        try:
            films = await self.client.films()
        except ServiceError as error:
            return {**self.wrong(error), self.film: _choices([], None)}
        ids = [film["id"] for film in films]
        return {**self.fine(), self.film: _choices(films, last if last in ids else next(iter(ids), None))}

    async def refresh(self, film: str | None) -> gr.Dropdown:
        """The films there are now: another page may have added some."""
        try:
            return _choices(await self.client.films(), film)
        except ServiceError:
            return gr.Dropdown()  # as it was; whatever is done next says why

    async def show(self, film: str | None, talks: Mapping[str, Any]) -> Updates:
        """A film that was chosen: as `look`, its conversation, and the settings that it was watched with."""
        told = {**await self.look(film), **self._idle(), self.last: film or ""}
        try:
            if film is None:
                return {**told, **self._settings_of(self.settings["watched_with"]),
                        self.conversation: views.conversation([], False),
                        self.memory: views.memory((await self.client.settings())["memory"])}
            found = await self.client.film(film)
        except ServiceError as error:
            return {**told, **self.wrong(error)}
        turns = [{**turn, "state": "done", "took": "remembered"} for turn in found.get("turns", [])]
        talks = {key: _ended(said) for key, said in talks.items()}
        said = talks.get(film) or turns
        told |= {self.talks: {**talks, film: said}, self.second: gr.Slider(maximum=_end(found), value=0.0),
                 self.conversation: views.conversation(said, not found["error"], self.settings["shipped"])}
        return told | (self._settings_of(found["settings"]) if "settings" in found else {})

    def _settings_of(self, used: Mapping[str, Any]) -> Updates:
        return {self.keep_ratio: used["keep_ratio"], self.merge: used["merge"]["name"], self.sort: used["sort"]["name"]}

    async def look(self, film: str | None) -> Updates:
        """How far a film is; the clock ticks on while it grows."""
        if film is None:
            return self._nothing(views.nothing())
        try:
            told = await self.client.film(film)
            growing, seen = told["status"] in views.GROWING, told.get("frames", 0) > 0 and not told["error"]
            small = await self.client.thumbnails(film) if seen else []
            tokens = (await self.client.patches(film)).tokens if small else None
            settings, films = await asyncio.gather(self.client.settings(), self.client.films())
        except ServiceError as error:
            return {**self._nothing(""), **self.wrong(error)}
        return {
            self.film: _choices(films, film), self.status: views.film(told, tokens),
            self.timeline: views.timeline(small), self.second: gr.Slider(maximum=_end(told)),
            self.memory: views.memory(settings["memory"]), self.example: gr.Button(visible=False),
            self.clock: gr.Timer(active=growing), self.again: gr.Button(visible=not growing),
            self.delete: gr.Button("Stop watching" if growing else "Delete", visible=True),
        }

    def _nothing(self, status: str) -> Updates:
        """Where there is no film to be shown."""
        return {
            self.status: status, self.timeline: views.timeline([]), self.clock: gr.Timer(active=False),
            self.example: gr.Button(visible=bool(status) and self.settings["shipped"]),
            self.again: gr.Button(visible=False), self.delete: gr.Button(visible=False),
        }

    async def add(self, request: gr.Request, path: str, *watching: Any) -> AsyncIterator[Updates]:
        """A file from the browser: a film that was saved, or a video, which the service begins to watch."""
        await self.stop_answer(request)
        file = Path(path)
        try:
            async for update in self._add(file, *watching):
                yield update
        finally:
            file.unlink(missing_ok=True)

    async def add_example(self, *watching: Any) -> AsyncIterator[Updates]:
        """The video of Blocks world that comes with Aurora."""
        async for update in self._add(views.EXAMPLE, *watching):
            yield update

    async def _add(self, file: Path, *watching: Any) -> AsyncIterator[Updates]:
        yield {**self.fine(), self.status: views.busy(f"Sending {file.name} to the service …"), self.drop: None,
               self.example: gr.Button(visible=False)}
        try:
            if file.suffix == ".aurora":
                told = await self.client.load(file, file.name)
            else:
                told = await self.client.watch(file, **_options(*watching))
            yield {self.film: _choices(await self.client.films(), told["id"])}
        except ServiceError as error:
            yield self.wrong(error)

    async def watch_again(self, request: gr.Request, film: str, *watching: Any) -> Updates:
        """Watches the video of a film once more, as the page says now."""
        await self.stop_answer(request)
        try:
            kept = await self.client.video_of(await self.client.film(film))
            if kept is None:
                raise ServiceError("the service does not keep the video of this film: add it again", 404)
            again = await self.client.watch_kept(kept["id"], Path(kept["filename"]).stem, **_options(*watching))
            return {**self.fine(), self.film: _choices(await self.client.films(), again["id"])}
        except ServiceError as error:
            return self.wrong(error)

    async def remove(self, request: gr.Request, film: str | None, sure: str) -> Updates:
        """Deletes a film that the user is sure about."""
        if film is None or sure != "yes":
            return self.fine()
        await self.stop_answer(request)
        try:
            await self.client.delete(film)
            films = await self.client.films()
        except ServiceError as error:
            return self.wrong(error)
        return {**self.fine(), self.film: _choices(films, films[0]["id"] if films else None)}

    # Frames.

    def choose(self, event: gr.EventData) -> float:
        """The second of a frame of the timeline."""
        return round(float(event.second), 1)

    async def draw(self, film: str | None, second: float, depth: int, keep_ratio: float, merge: str, sort: str) -> str:
        """The tokens of a frame as the page would have them."""
        if film is None:
            return views.no_figure("")
        options = {"second": second, "depth": depth, "keep_ratio": keep_ratio, "merge": merge, "sort": sort}
        try:
            outlined = await self.client.patches(film, fill=False, **options)
            return views.figure(outlined, await self.client.patches(film, fill=True, **options))
        except ServiceError as error:
            return views.no_figure(str(error))

    # Questions.

    async def answer(self, film: str | None, question: str, remember: bool, talks: dict[str, Any], request: gr.Request
                     ) -> AsyncIterator[Updates]:
        """Asks, and shows the answer as it comes."""
        if film is None or not question.strip():
            return
        told = {"question": question.strip(), "answer": "", "state": "asking"}
        said = [*_ended(talks.get(film, [])), told]
        talks = {**talks, film: said}
        yield {self.question: "", self.ask: gr.Button(visible=False), self.stop: gr.Button(visible=True),
               self.talks: talks, self.conversation: views.conversation(said, True)}
        reading = self._answers[request.session_hash] = asyncio.create_task(self._read_answer(film, told, remember))
        shown = 0
        try:
            while not reading.done():
                await asyncio.wait({reading}, timeout=SHOW_SECONDS)
                if len(told["answer"]) > shown:
                    shown = len(told["answer"])
                    yield {self.talks: talks, self.conversation: views.conversation(said, True)}
        finally:  # also when the browser leaves
            reading.cancel()
        yield {self.talks: talks, self.conversation: views.conversation(said, True), **self._idle()}

    async def _read_answer(self, film: str, told: dict[str, Any], remember: bool) -> None:
        """Fills in an answer; what there is of it stays when this is cancelled."""
        began = time.monotonic()
        first: float | None = None
        try:
            async with aclosing(self.client.ask(film, told["question"], remember=remember)) as events:
                async for kind, piece in events:
                    seconds = time.monotonic() - began
                    first = seconds if first is None else first
                    if kind == "done":
                        told |= {"state": "done", "took": views.took(piece, first, seconds)}
                    else:
                        told["answer"] += piece["text"]
        except ServiceError as error:
            told |= {"state": "failed", "error": str(error)}
        except asyncio.CancelledError:
            told["state"] = "stopped"

    async def stop_answer(self, request: gr.Request) -> None:
        """Ends the answer that is being made for this page; `answer` then shows what there is of it."""
        reading = self._answers.pop(request.session_hash, None)
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})

    def _idle(self) -> Updates:
        return {self.ask: gr.Button(visible=True), self.stop: gr.Button(visible=False)}


def _ended(said: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A conversation in which nothing is being answered any more."""
    return [{**told, "state": "stopped"} if told["state"] == "asking" else {**told} for told in said]


def _choices(films: Sequence[Mapping[str, Any]], value: str | None) -> gr.Dropdown:
    """The films to choose from, those that are not ready marked."""
    choices = [(told["name"] if told["status"] == "ready" else f'{told["name"]} ({views.STATUS[told["status"]]})',
                told["id"]) for told in films]
    return gr.Dropdown(choices=choices, value=value if value in {told["id"] for told in films} else None)


def _options(keep_ratio: float, fps: float | None, merge: str, sort: str) -> dict[str, Any]:
    """How a video is to be watched; no rate is the model's own."""
    return {"keep_ratio": keep_ratio, "fps": fps or None, "merge": merge, "sort": sort}


def _end(told: Mapping[str, Any]) -> float:
    """The last second of a film, as far as it was watched."""
    return max(0.1, round(float(told.get("seconds", 0.0)), 1))
