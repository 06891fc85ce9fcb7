"""The components of the page, and where they stand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from aurora.ui import views

POLL_SECONDS = 0.7
MEDIA = ["video", "image", ".mkv", ".webm", ".avi", ".mov", ".aurora"]
_TIMELINE_JS = (Path(__file__).parent / "timeline.js").read_text(encoding="utf-8")


class Components:
    """What stands on the page of a service with these settings. What belongs to one browser is in its components."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
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
                self.depth = gr.Slider(0, depth, depth, step=1, label="Depth (blocks)", elem_id="depth", buttons=[])

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
