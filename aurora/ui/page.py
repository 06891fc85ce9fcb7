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

POLL_SECONDS = 0.7
SHOW_SECONDS = 0.05
"""At least this long between two pieces of an answer on their way to the browser."""
MEDIA = ["video", "image", ".mkv", ".webm", ".avi", ".mov", ".aurora"]
_TIMELINE = """{{#if value.frames}}<ol class="frames">{{#each value.frames}}<li>
<button type="button" data-second="{{this.second}}" aria-label="The frame at {{this.clock}}">
<img src="{{this.url}}" alt=""><span>{{this.clock}}</span></button></li>{{/each}}</ol>{{/if}}"""
_TIMELINE_JS = """
const choose = (button) => {
  element.querySelectorAll('button').forEach((one) => one.toggleAttribute('aria-current', one === button));
  trigger('select', {second: Number(button.dataset.second)});
};
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (button) choose(button);
});
element.addEventListener('keydown', (event) => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  const buttons = [...element.querySelectorAll('button')];
  const next = buttons[buttons.indexOf(document.activeElement) + step];
  if (step && next) { event.preventDefault(); next.focus(); choose(next); }
});
"""
_NAME = re.compile(r"[^\w .,()+@~#-]+")
Updates = dict[Any, Any]


class Page:
    """The components of the page, and what their events do. One instance serves all browsers: what belongs to one of
    them is in its components."""

    def __init__(self, client: Client, note: str = "") -> None:
        self.client = client
        with gr.Blocks(title="Aurora", analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as blocks:
            self.blocks = blocks
            self.talks = gr.State({})  # by film, what was asked and answered
            self.clock = gr.Timer(POLL_SECONDS, active=False)
            gr.HTML(views.header(note), elem_id="head")
            self.problem = gr.HTML(elem_id="problem")
            self.retry = gr.Button("Try again", visible=False, elem_id="retry", size="sm")
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=6, min_width=320):
                    self._film()
                with gr.Column(scale=5, min_width=320):
                    self._conversation()
            self.memory = gr.HTML(elem_id="memory")
            gr.HTML(views.keys(), elem_id="keys")
            self._events()

    def _film(self) -> None:
        self.film = gr.Dropdown(label="Film", choices=[], elem_id="films", info="Films that the service keeps.")
        self.drop = gr.File(label="Add a video, or a saved film (.aurora)", file_types=MEDIA, height=110,
                            elem_id="drop")
        self.status = gr.HTML(elem_id="status")
        self.timeline = gr.HTML({"frames": []}, html_template=_TIMELINE, js_on_load=_TIMELINE_JS, elem_id="timeline",
                                apply_default_css=False)
        with gr.Row(elem_id="film-actions"):
            self.again = gr.Button("Watch again", size="sm", visible=False, elem_id="again")
            self.delete = gr.Button("Delete", size="sm", variant="stop", visible=False, elem_id="delete")
        with gr.Accordion("How it is watched", open=True, elem_id="settings"):
            with gr.Row():
                self.keep_ratio = gr.Slider(0.02, 1.0, 0.1, step=0.01, label="Keep ratio", elem_id="keep-ratio",
                                            info="Share of a frame's tokens that is read.", buttons=[])
                self.fps = gr.Number(None, label="Frames per second", minimum=0.01, elem_id="fps",
                                     info="Empty: as the model was trained.")
            with gr.Row():
                self.merge = gr.Dropdown(label="Merge", choices=[], elem_id="merge")
                self.sort = gr.Dropdown(label="Order", choices=[], elem_id="sort")
        with gr.Accordion("Merged patches", open=True, elem_id="patches"):
            self.figure = gr.HTML(elem_id="figure")
            with gr.Row():
                self.second = gr.Slider(0.0, 1.0, 0.0, step=0.1, label="Second", elem_id="second", buttons=[])
                self.depth = gr.Slider(0, 1, 0, step=1, label="Depth in blocks", elem_id="depth", buttons=[])

    def _conversation(self) -> None:
        self.conversation = gr.HTML(views.conversation([], False), elem_id="conversation", autoscroll=True,
                                    max_height=560)
        self.question = gr.Textbox(placeholder="Ask about the film", show_label=False, lines=1, max_lines=5,
                                   elem_id="question", container=False, max_length=4096,
                                   html_attributes=gr.InputHTMLAttributes(autocomplete="off"), label="Question")
        with gr.Row(elem_id="ask-row"):
            self.ask = gr.Button("Ask", variant="primary", elem_id="ask")
            self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
        self.remember = gr.Checkbox(False, label="Remember this conversation", elem_id="remember",
                                    info="Later questions follow on from it, and it is saved with the film.")

    def _events(self) -> None:
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        watching = [self.keep_ratio, self.fps, self.merge, self.sort]
        looking = [self.film, self.second, self.depth, self.keep_ratio, self.merge, self.sort]
        chosen = [self.status, self.timeline, self.conversation, self.clock, self.again, self.delete, self.second,
                  self.keep_ratio, self.merge, self.sort, self.problem, self.memory]
        start = [self.film, self.depth, self.status, self.conversation, self.problem, self.retry, self.merge, self.sort,
                 self.keep_ratio, self.memory]
        gr.on([self.blocks.load, self.retry.click], self.open, None, start, **quiet)
        self.film.change(self.show, [self.film, self.talks], chosen, **quiet).then(
            self.draw, looking, self.figure, **quiet)
        self.clock.tick(self.look, [self.film, self.talks], chosen, **quiet)
        added = [self.film, self.drop, self.status, self.problem]
        self.drop.upload(self.add, [self.drop, *watching], added, **quiet)
        self.again.click(self.watch_again, [self.film, *watching], added, **quiet)
        self.delete.click(self.remove, [self.film, self.delete], [self.film, self.problem], **quiet,
                          js="(film, sure) => [film, confirm('Delete this film? What was seen is lost.') ? 'yes' : '']")
        self.timeline.select(self.choose, None, self.second, **quiet)
        gr.on([one.change for one in looking[1:]], self.draw, looking, self.figure, trigger_mode="always_last", **quiet)
        answer = [self.question, self.conversation, self.talks, self.ask, self.stop, self.film]
        asking = gr.on([self.question.submit, self.ask.click], self.answer,
                       [self.film, self.question, self.remember, self.talks], answer, trigger_mode="once", **quiet)
        self.stop.click(self.stopped, [self.film, self.talks], answer[1:], cancels=[asking], **quiet)

    # Films.

    async def open(self) -> Updates:
        """What there is when the page is opened."""
        try:
            settings, films = await asyncio.gather(self.client.settings(), self.client.films())
        except ServiceError as error:
            return {self.problem: views.problem(str(error)), self.retry: gr.Button(visible=True), self.status: "",
                    self.film: gr.Dropdown(choices=[], value=None)}
        used, choices = settings["watched_with"], settings["choices"]
        first = films[0]["id"] if films else None
        return {
            self.problem: "", self.retry: gr.Button(visible=False), self.film: _choices(films, first),
            self.depth: gr.Slider(maximum=settings["depth"], value=settings["depth"]),
            self.merge: gr.Dropdown(choices=choices["merge"], value=used["merge"]["name"]),
            self.sort: gr.Dropdown(choices=choices["sort"], value=used["sort"]["name"]),
            self.keep_ratio: used["keep_ratio"], self.memory: views.memory(settings["memory"]),
            **({} if films else {self.status: views.nothing(), self.conversation: views.conversation([], False)}),
        }

    async def show(self, film: str | None, talks: Mapping[str, Any]) -> Updates:
        """A film that was chosen: as `look`, and with the settings that it was watched with."""
        told = await self.look(film, talks)
        if film is None:
            return {**told, self.timeline: {"frames": []}, self.status: views.nothing()}
        try:
            found = await self.client.film(film)
        except ServiceError as error:
            return {**told, self.problem: views.problem(str(error))}
        used = found.get("settings")
        told[self.second] = gr.Slider(maximum=max(0.1, round(found.get("seconds", 0.0), 1)), value=0.0)
        if used:
            told |= {self.keep_ratio: used["keep_ratio"], self.merge: used["merge"]["name"],
                     self.sort: used["sort"]["name"]}
        return told

    async def look(self, film: str | None, talks: Mapping[str, Any]) -> Updates:
        """How far a film is; the clock ticks on while it grows."""
        if film is None:
            return {self.conversation: views.conversation([], False), self.clock: gr.Timer(active=False),
                    self.again: gr.Button(visible=False), self.delete: gr.Button(visible=False)}
        try:
            told = await self.client.film(film)
            growing, seen = told["status"] in views.GROWING, told.get("frames", 0) > 0 and not told["error"]
            small = await self.client.thumbnails(film) if seen else []
            tokens = None if growing or not seen else (await self.client.patches(film)).tokens
            settings = await self.client.settings()
        except ServiceError as error:
            return {self.problem: views.problem(str(error)), self.clock: gr.Timer(active=False)}
        return {
            self.status: views.film(told, tokens), self.timeline: views.timeline(small), self.problem: "",
            self.conversation: views.conversation(talks.get(film, []), seen), self.clock: gr.Timer(active=growing),
            self.again: gr.Button(visible=not growing), self.memory: views.memory(settings["memory"]),
            self.delete: gr.Button("Stop watching" if growing else "Delete", visible=True),
        }

    async def add(self, path: str, *watching: Any) -> AsyncIterator[Updates]:
        """A file from the browser: a film that was saved, or a video, which the service begins to watch."""
        file = Path(path)
        yield {self.status: views.busy(f"Sending {file.name} to the service …"), self.drop: None, self.problem: ""}
        try:
            if file.suffix == ".aurora":
                told = await self.client.load(file, file.name)
            else:
                told = await self._watch(await self.client.upload(file, file.name), file.stem, *watching)
            yield {self.film: _choices(await self.client.films(), told["id"])}
        except ServiceError as error:
            yield {self.problem: views.problem(str(error)), self.status: ""}
        finally:
            file.unlink(missing_ok=True)

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
            return ""
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
            yield {self.conversation: views.conversation(talks.get(film, []), film is not None)}
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
    return gr.Dropdown(choices=choices, value=value)


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken."""
    name = name[:100]
    return next(free for number in range(1, len(taken) + 2)
                if (free := name if number == 1 else f"{name} {number}") not in taken)
