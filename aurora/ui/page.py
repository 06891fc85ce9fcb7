"""The page: what stands where, and what happens when it is used. All it knows it asks the service."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from aurora.ui import views
from aurora.ui.client import Client, ServiceError

EXAMPLE = Path(__file__).parents[1] / "assets" / "example.mp4"
"""A video of Blocks world."""
POLL_SECONDS = 0.7
SHOW_SECONDS = 0.05
"""At least this long between two pieces of an answer on their way to the browser."""
MEDIA = ["video", "image", ".mkv", ".webm", ".avi", ".mov", ".aurora"]
_TIMELINE_JS = (Path(__file__).parent / "timeline.js").read_text(encoding="utf-8")
_NAME = re.compile(r"[^\w .,()+@~#-]+")
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}
Updates = dict[Any, Any]


class Page:
    """The components of the page, and what their events do. One instance serves all browsers: what belongs to one of
    them is in its components."""

    def __init__(self, client: Client, settings: Mapping[str, Any]) -> None:
        self.client, self.settings = client, settings
        with gr.Blocks(title="Aurora", analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as blocks:
            self.blocks = blocks
            self.talks = gr.State({})  # by film, what was asked and answered
            self.last = gr.BrowserState("", storage_key="aurora-film", secret="aurora")  # the film that was chosen last
            self.clock = gr.Timer(POLL_SECONDS, active=False)
            gr.HTML(views.header(), elem_id="head")
            gr.HTML(views.note(settings), elem_id="note")
            self.problem = gr.HTML(elem_id="problem")
            self.retry = gr.Button("Try again", visible=False, elem_id="retry", size="sm")
            with gr.Column(elem_id="page"):
                for name, part in (("film", self._film), ("talk", self._talk), ("look", self._look),
                                   ("settings", self._settings), ("foot", self._foot)):
                    with gr.Column(elem_id=f"{name}-part", min_width=0):
                        part()
            self._events()

    def _film(self) -> None:
        self.film = gr.Dropdown(label="Film", choices=[], elem_id="films")
        self.drop = gr.File(label="Add a video, or a saved film (.aurora)", file_types=MEDIA, elem_id="drop")
        self.status = gr.HTML(elem_id="status")
        self.example = gr.Button("Watch the example of Blocks world", visible=False, elem_id="example", size="sm")
        self.timeline = gr.HTML(views.timeline([]), elem_id="timeline", js_on_load=_TIMELINE_JS)
        self.delete = gr.Button("Delete", size="sm", visible=False, elem_id="delete", min_width=0)

    def _talk(self) -> None:
        self.conversation = gr.HTML(views.conversation([], False), elem_id="conversation", autoscroll=True,
                                    max_height=560)
        with gr.Row(elem_id="ask-row"):
            self.question = gr.Textbox(
                placeholder="Ask about the film", label="Question", show_label=False, container=False, lines=1,
                max_lines=5, max_length=4096, elem_id="question", scale=1, min_width=0,
                html_attributes=gr.InputHTMLAttributes(autocomplete="off", enterkeyhint="send"))
            self.ask = gr.Button("Ask", variant="primary", elem_id="ask", scale=0, min_width=88)
            self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop", scale=0, min_width=88)
        self.remember = gr.Checkbox(False, label="Remember this conversation", elem_id="remember", container=False,
                                    info="Later questions follow on from it, and it is saved with the film.")

    def _look(self) -> None:
        with gr.Accordion("Merged patches", open=True, elem_id="patches"):
            self.figure = gr.HTML(views.no_figure(""), elem_id="figure")
            with gr.Row():
                self.second = gr.Slider(0.0, 1.0, 0.0, step=0.1, label="Second", elem_id="second", buttons=[])
                depth = self.settings["depth"]
                self.depth = gr.Slider(0, depth, depth, step=1, label="Depth in blocks", elem_id="depth", buttons=[])

    def _settings(self) -> None:
        choices, used = self.settings["choices"], self.settings["watched_with"]
        with gr.Accordion("How it is watched", open=True, elem_id="settings"):
            with gr.Row():
                self.keep_ratio = gr.Slider(
                    0.02, 1.0, used["keep_ratio"], step=0.01, label="Keep ratio", elem_id="keep-ratio", buttons=[],
                    info="Share of a frame's tokens that is kept")
                self.fps = gr.Number(
                    0, label="Frames per second", minimum=0, maximum=self.settings["limits"]["max_fps"], step=0.5,
                    elem_id="fps", info="0: as the model was trained")
            with gr.Row():
                self.merge = gr.Dropdown(choices["merge"], value=used["merge"]["name"], label="Merge", elem_id="merge")
                self.sort = gr.Dropdown(choices["sort"], value=used["sort"]["name"], label="Order", elem_id="sort")
            self.again = gr.Button("Watch again with these settings", size="sm", visible=False, elem_id="again")

    def _foot(self) -> None:
        self.memory = gr.HTML(elem_id="memory")
        gr.HTML(views.keys(), elem_id="keys")

    def _events(self) -> None:
        watching = [self.keep_ratio, self.fps, self.merge, self.sort]
        looking = [self.film, self.second, self.depth, self.keep_ratio, self.merge, self.sort]
        known = [self.status, self.timeline, self.conversation, self.talks, self.clock, self.again, self.delete,
                 self.problem, self.memory, self.example]
        start = [self.film, self.retry, *watching, *known]
        gr.on([self.blocks.load, self.retry.click], self.open, self.last, start, **_QUIET)
        self.film.change(self.show, [self.film, self.talks], [*known, self.film, self.last, self.second, *watching],
                         **_QUIET).then(self.draw, looking, self.figure, **_QUIET)
        self.film.focus(self.refresh, self.film, self.film, **_QUIET)
        self.clock.tick(self.look, [self.film, self.talks], [*known, self.film, self.second], trigger_mode="once",
                        **_QUIET).then(self.draw, looking, self.figure, **_QUIET)
        added = [self.film, self.drop, self.status, self.problem, self.example]
        self.drop.upload(self.add, [self.drop, *watching], added, **_QUIET)
        self.example.click(self.add_example, watching, added, **_QUIET)
        self.again.click(self.watch_again, [self.film, *watching], added, **_QUIET)
        self.delete.click(self.remove, [self.film, self.delete], [self.film, self.problem], **_QUIET,
                          js="(film, sure) => [film, confirm('Delete this film? What was seen is lost.') ? 'yes' : '']")
        self.timeline.select(self.choose, None, self.second, **_QUIET)
        gr.on([one.change for one in looking[1:]], self.draw, looking, self.figure, trigger_mode="always_last",
              **_QUIET)
        answer = [self.question, self.conversation, self.talks, self.ask, self.stop, self.film]
        asking = gr.on([self.question.submit, self.ask.click], self.answer,
                       [self.film, self.question, self.remember, self.talks], answer, trigger_mode="once", **_QUIET)
        self.stop.click(self.stopped, [self.film, self.talks], answer[1:], cancels=[asking], **_QUIET)

    # Films.

    async def open(self, last: str) -> Updates:
        """What there is when the page is opened: the film that this browser looked at last, if it is still there."""
        try:
            settings, films = await asyncio.gather(self.client.settings(), self.client.films())
        except ServiceError as error:
            return {self.problem: views.problem(str(error)), self.retry: gr.Button(visible=True), self.status: "",
                    self.film: gr.Dropdown(choices=[], value=None)}
        ids = [film["id"] for film in films]
        film = last if last in ids else next(iter(ids), None)
        return {self.retry: gr.Button(visible=False), self.film: _choices(films, film), self.problem: "",
                **(self._nothing(settings["memory"]) if film is None else {})}

    def _nothing(self, memory: Mapping[str, Any]) -> Updates:
        """What is shown where there is no film."""
        return {
            self.status: views.nothing(), self.timeline: views.timeline([]),
            self.example: gr.Button(visible=self.settings["shipped"]),
            self.conversation: views.conversation([], False), self.clock: gr.Timer(active=False),
            self.again: gr.Button(visible=False), self.delete: gr.Button(visible=False),
            self.memory: views.memory(memory), **self._settings_of(self.settings["watched_with"]),
        }

    def _settings_of(self, used: Mapping[str, Any]) -> Updates:
        return {self.keep_ratio: used["keep_ratio"], self.merge: used["merge"]["name"], self.sort: used["sort"]["name"]}

    async def refresh(self, film: str | None) -> gr.Dropdown:
        """The films there are now: another page may have added some."""
        try:
            return _choices(await self.client.films(), film)
        except ServiceError:
            return gr.Dropdown()  # as it was; whatever is done next says why

    async def show(self, film: str | None, talks: Mapping[str, Any]) -> Updates:
        """A film that was chosen: as `look`, and with the settings that it was watched with."""
        try:
            if film is None:
                return {**self._nothing((await self.client.settings())["memory"]), self.last: ""}
            found = await self.client.film(film)
        except ServiceError as error:
            return await self._gone(error)
        told = {**await self.look(film, talks), self.last: film, self.second: gr.Slider(maximum=_end(found), value=0.0)}
        return told | (self._settings_of(found["settings"]) if "settings" in found else {})

    async def look(self, film: str | None, talks: Mapping[str, Any]) -> Updates:
        """How far a film is; the clock ticks on while it grows."""
        if film is None:
            return {self.clock: gr.Timer(active=False)}
        try:
            told = await self.client.film(film)
            growing, seen = told["status"] in views.GROWING, told.get("frames", 0) > 0 and not told["error"]
            small = await self.client.thumbnails(film) if seen else []
            tokens = (await self.client.patches(film)).tokens if small else None
            settings, films = await asyncio.gather(self.client.settings(), self.client.films())
        except ServiceError as error:
            return await self._gone(error)
        said = talks.get(film) or [{**turn, "state": "done", "took": "remembered"} for turn in told.get("turns", [])]
        return {
            self.status: views.film(told, tokens), self.timeline: views.timeline(small), self.problem: "",
            self.talks: {**talks, film: said}, self.conversation: views.conversation(said, seen, self.settings["shipped"]),
            self.clock: gr.Timer(active=growing), self.again: gr.Button(visible=not growing),
            self.memory: views.memory(settings["memory"]), self.example: gr.Button(visible=False),
            self.delete: gr.Button("Stop watching" if growing else "Delete", visible=True),
            self.film: _choices(films, film), self.second: gr.Slider(maximum=_end(told)),
        }

    async def _gone(self, error: ServiceError) -> Updates:
        """After a film could not be had: those that there are, if the service answers."""
        told: Updates = {self.problem: views.problem(str(error)), self.clock: gr.Timer(active=False)}
        try:
            films = await self.client.films()
        except ServiceError:
            return told
        return {**told, self.film: _choices(films, films[0]["id"] if films else None)} if error.status == 404 else told

    async def add(self, path: str, *watching: Any) -> AsyncIterator[Updates]:
        """A file from the browser: a film that was saved, or a video, which the service begins to watch."""
        file = Path(path)
        try:
            async for update in self._add(file, *watching):
                yield update
        finally:
            file.unlink(missing_ok=True)

    async def add_example(self, *watching: Any) -> AsyncIterator[Updates]:
        """The video of Blocks world that comes with Aurora."""
        async for update in self._add(EXAMPLE, *watching):
            yield update

    async def _add(self, file: Path, *watching: Any) -> AsyncIterator[Updates]:
        yield {self.status: views.busy(f"Sending {file.name} to the service …"), self.drop: None, self.problem: "",
               self.example: gr.Button(visible=False)}
        try:
            if file.suffix == ".aurora":
                told = await self.client.load(file, file.name)
            else:
                told = await self._watch_new(file, *watching)
            yield {self.film: _choices(await self.client.films(), told["id"])}
        except ServiceError as error:
            yield {self.problem: views.problem(str(error)), self.status: ""}

    async def _watch_new(self, file: Path, *watching: Any) -> dict[str, Any]:
        """Keeps a video and begins to watch it; one that cannot be watched is not kept."""
        kept = await self.client.upload(file, file.name)
        try:
            return await self._watch(kept, file.stem, *watching)
        except ServiceError:
            await self.client.forget(kept)
            raise

    async def watch_again(self, film: str, *watching: Any) -> Updates:
        """Watches the video of a film once more, as the page says now."""
        try:
            told = await self.client.film(film)
            kept = await self._video(told)
            if kept is None:
                raise ServiceError("the service does not keep the video of this film: add it again")
            again = await self._watch(kept["id"], Path(kept["filename"]).stem, *watching)
            return {self.film: _choices(await self.client.films(), again["id"]), self.problem: ""}
        except ServiceError as error:
            return {self.problem: views.problem(str(error))}

    async def _watch(self, file_id: str, label: str, keep_ratio: float, fps: float | None, merge: str, sort: str
                     ) -> dict[str, Any]:
        taken = {told["name"] for told in await self.client.films()}
        name = _free(_NAME.sub(" ", label).strip(" .") or "film", taken)
        return await self.client.watch(file_id, name=name, keep_ratio=keep_ratio, fps=fps or None, merge=merge,
                                       sort=sort)

    async def _video(self, told: Mapping[str, Any]) -> dict[str, Any] | None:
        """The file of a film's video, where the service keeps it."""
        return next((file for file in await self.client.uploaded() if file["sha256"] in told.get("sha256", [])), None)

    async def remove(self, film: str | None, sure: str) -> Updates:
        """Deletes a film; its video too, unless another film is of it."""
        if film is None or sure != "yes":
            return {self.problem: ""}
        try:
            told = await self.client.film(film)
            video = await self._video(told)
            await self.client.delete(film)
            films = await self.client.films()
            if video is not None and not any(video["sha256"] in other.get("sha256", []) for other in films):
                await self.client.forget(video["id"])
        except ServiceError as error:
            return {self.problem: views.problem(str(error))}
        return {self.film: _choices(films, films[0]["id"] if films else None), self.problem: ""}

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

    async def answer(self, film: str | None, question: str, remember: bool, talks: dict[str, Any]
                     ) -> AsyncIterator[Updates]:
        """Asks, and shows the answer as it comes."""
        if film is None or not question.strip():
            yield {}
            return
        told = {"question": question.strip(), "answer": "", "state": "asking"}
        said = [*talks.get(film, []), told]
        talks = {**talks, film: said}
        yield {self.question: "", self.ask: gr.Button(visible=False), self.stop: gr.Button(visible=True),
               self.film: gr.Dropdown(interactive=False), self.talks: talks,
               self.conversation: views.conversation(said, True)}
        async with aclosing(self._answer(film, told, remember)) as pieces:
            async for _ in pieces:
                yield {self.talks: talks, self.conversation: views.conversation(said, True)}
        yield {self.talks: talks, self.conversation: views.conversation(said, True), **self._idle()}

    async def _answer(self, film: str, told: dict[str, Any], remember: bool) -> AsyncGenerator[None, None]:
        """Fills in an answer; gives control back whenever there is something new to show."""
        began = shown = time.monotonic()
        first: float | None = None
        try:
            async with aclosing(self.client.ask(film, told["question"], remember=remember)) as events:
                async for kind, piece in events:
                    now = time.monotonic()
                    first = now - began if first is None else first
                    if kind == "done":
                        told |= {"state": "done", "took": views.took(piece, first, now - began)}
                        continue
                    told["answer"] += piece["text"]
                    if now - shown > SHOW_SECONDS:
                        shown = now
                        yield
        except ServiceError as error:
            told |= {"state": "failed", "error": str(error)}

    def stopped(self, film: str, talks: dict[str, Any]) -> Updates:
        """After the answer was stopped: what there is of it stays."""
        said = [told | {"state": "stopped"} if told["state"] == "asking" else told for told in talks.get(film, [])]
        return {self.talks: {**talks, film: said}, self.conversation: views.conversation(said, True), **self._idle()}

    def _idle(self) -> Updates:
        return {self.ask: gr.Button(visible=True), self.stop: gr.Button(visible=False),
                self.film: gr.Dropdown(interactive=True)}


def _choices(films: Sequence[Mapping[str, Any]], value: str | None) -> gr.Dropdown:
    """The films to choose from, those that are not ready marked."""
    choices = [(told["name"] if told["status"] == "ready" else f'{told["name"]} ({views.STATUS[told["status"]]})',
                told["id"]) for told in films]
    return gr.Dropdown(choices=choices, value=value if value in {told["id"] for told in films} else None)


def _end(told: Mapping[str, Any]) -> float:
    """The last second of a film, as far as it was watched."""
    return max(0.1, round(float(told.get("seconds", 0.0)), 1))


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken."""
    name = name[:100]
    return next(free for number in range(1, len(taken) + 2)
                if (free := name if number == 1 else f"{name} {number}") not in taken)
