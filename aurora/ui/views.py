"""What the page shows, as HTML. Whatever a video, a model or a service said is text, never markup."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aurora.terminal import clock
from aurora.ui.client import Drawing

STATUS = {"waiting": "waiting for its turn", "watching": "being watched", "live": "live", "failed": "failed",
          "stopped": "stopped", "other_model": "of another model", "damaged": "damaged", "ready": "ready"}
GROWING = ("waiting", "watching", "live")
KEYS = (("Enter", "ask"), ("Shift Enter", "new line"), ("Esc", "stop the answer"), ("/", "go to the question"),
        ("U", "add a video"), ("← →", "go through the frames of the timeline"), ("?", "these keys"))


EXAMPLE = Path(__file__).parents[1] / "assets" / "example.mp4"
"""A video of Blocks world."""
QUESTIONS = ("How many objects can be seen?", "In which direction does the yellow circle move?",
             "Describe the video in detail.")
"""Of Blocks world."""


def header() -> str:
    """The top of the page."""
    return '<h1>Aurora</h1><p>Watch a video once, ask it as often as you like.</p>'


def note(settings: Mapping[str, Any]) -> str:
    """What a user must know of the model."""
    if not settings["shipped"]:
        return ""
    return ('<p class="note">The tiny model that comes with Aurora answers. It knows only <b>Blocks world</b>: colored '
            "shapes that move. For real footage, serve a model that was trained on it.</p>")


def keys() -> str:
    """The keys that the page listens to."""
    rows = "".join(f"<dt>{' '.join(f'<kbd>{escape(key)}</kbd>' for key in keys.split())}</dt><dd>{escape(what)}</dd>"
                   for keys, what in KEYS)
    return f'<details class="keys"><summary>Keys</summary><dl>{rows}</dl></details>'


def memory(told: Mapping[str, Any]) -> str:
    """What the service holds."""
    films = told["films"]
    return (f'<p class="memory">{films} film{"" if films == 1 else "s"} in memory, {megabytes(told["films_bytes"])} of '
            f'{megabytes(told["most_bytes"])}</p>')


def problem(message: str) -> str:
    """An error, said where it cannot be missed."""
    return f'<div class="problem" role="alert"><b>That did not work.</b> {escape(sentence(message))}</div>'


def nothing() -> str:
    """Before the first film."""
    return ('<div class="empty"><b>No film yet.</b><ol><li>Add a video above. It is read once, however long it is.</li>'
            "<li>Ask as many questions as you like; what was seen stays a state of constant size.</li>"
            "<li>Save the film to a file and load it again later, without the video.</li></ol></div>")


def busy(what: str) -> str:
    """Something that is being done, of unknown length."""
    return (f'<div class="card" aria-busy="true"><p class="state">{escape(what)}</p>'
            '<div class="bar"><i class="any"></i></div></div>')


def film(told: Mapping[str, Any], tokens: int | None) -> str:
    """A film: how far it was watched, or what it takes, or what went wrong. `tokens` are those of a frame."""
    status = str(told["status"])
    state = f'<p class="state">{escape(str(told["name"]))} <span class="chip {status}">{STATUS[status]}</span></p>'
    if status in GROWING:
        known = facts(told, tokens) if "settings" in told else ""
        return f'<div class="card" aria-busy="true">{state}{progress(told)}{known}</div>'
    if told["error"]:
        return f'<div class="problem" role="alert">{state}{escape(sentence(str(told["error"])))}</div>'
    warnings = "".join(f'<p class="note">{escape(sentence(text))}</p>' for text in told.get("warnings", ()))
    return f'<div class="card">{state}{warnings}{facts(told, tokens)}{save(told)}</div>'


def progress(told: Mapping[str, Any]) -> str:
    """How far a film was watched."""
    if told["progress"] is None:
        return '<div class="bar"><i class="any"></i></div>'
    percent = round(100 * told["progress"])
    return (f'<div class="bar" role="progressbar" aria-label="Watched" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{percent}"><i style="width:{percent}%"></i></div>')


def facts(told: Mapping[str, Any], tokens: int | None) -> str:
    """What was read, and what is kept of it."""
    used = told["settings"]
    percent = "" if told["status"] == "ready" or told["progress"] is None else f' ({round(100 * told["progress"])} %)'
    frames = f'{told["frames"]:,} frame{"" if told["frames"] == 1 else "s"}'
    rows = {"Watched": f'{frames}, {clock(told["seconds"])}{percent}',
            "Tokens read": "–" if tokens is None else f'{told["frames"] * tokens:,} ({tokens} a frame)',
            "State": megabytes(told["state_bytes"]),
            "Read with": f'keep ratio {used["keep_ratio"]:g}, {used["merge"]["name"]}, {used["sort"]["name"]}'}
    shown = "".join(f"<div><dt>{key}</dt><dd>{escape(value)}</dd></div>" for key, value in rows.items())
    return f"<dl>{shown}</dl>"


def save(told: Mapping[str, Any]) -> str:
    """Where the film is saved from."""
    name = escape(str(told["name"]).replace("/", "-"), quote=True)
    return (f'<a class="save" href="films/{escape(str(told["id"]), quote=True)}.aurora" download="{name}.aurora">'
            "Save as a file</a>")


def timeline(thumbnails: Sequence[Mapping[str, Any]]) -> str:
    """The frames of a film, each of which can be chosen."""
    frames = "".join(
        f'<li><button type="button" data-second="{float(small["seconds"])}" aria-label="The frame at '
        f'{clock(small["seconds"])}"><img src="{escape(small["url"])}" alt=""><span>{clock(small["seconds"])}</span>'
        "</button></li>" for small in thumbnails)
    return f'<ol class="frames" aria-label="Frames">{frames}</ol>' if frames else ""


def conversation(exchanges: Sequence[Mapping[str, Any]], ready: bool, shipped: bool = False) -> str:
    """Questions and answers about one film, the newest last; before them what may be asked, if the model is the
    `shipped` one."""
    if exchanges:
        return "".join(map(exchange, exchanges))
    if not ready:
        return '<div class="empty"><b>No question yet.</b><p>Add or choose a film first.</p></div>'
    asked = "".join(f'<button type="button" data-question="{question}">{question}</button>' for question in QUESTIONS)
    return ('<div class="empty"><b>No question yet.</b><p>Ask what happens, what is in it, when, or how often. Each '
            "answer comes from the state that was kept; the video is not read again.</p>"
            f'{f"<p>{asked}</p>" if shipped else ""}</div>')


def exchange(told: Mapping[str, Any]) -> str:
    """One question with its answer as far as it was made."""
    state, answer = told["state"], escape(told["answer"])
    if state == "failed":
        answer += f'<span class="problem" role="alert">{escape(sentence(told["error"]))}</span>'
    elif state == "asking":
        answer += '<i class="caret" aria-hidden="true"></i>'
    small = {"stopped": "stopped", "asking": "answering …"}.get(state, told.get("took", ""))
    return (f'<article class="{state}"><p class="question">{escape(told["question"])}</p>'
            f'<p class="answer">{answer or "<i>(an empty answer)</i>"}</p><p class="small">{escape(small)}</p>'
            '</article>')


def took(done: Mapping[str, Any], first: float, seconds: float) -> str:
    """What an answer took, in words."""
    used = done["usage"]
    made = used["completion_tokens"]
    return (f'{made} token{"" if made == 1 else "s"} in {seconds:.2f} s, the first after {first:.2f} s. '
            f'{used["prompt_tokens"]} tokens of the question were read, none of the film.')


def figure(outlined: Drawing, colored: Drawing) -> str:
    """A frame at one depth, with its tokens outlined and in their mean colors."""
    at, where = clock(outlined.second), f"after block {outlined.depth} of {outlined.depths}"
    where = where if outlined.depth else "before the first block"
    source = "" if outlined.source == "video" else ", drawn from the small picture that the film keeps"
    pictures = "".join(
        f'<img alt="The frame at {at} {where}: {what}" src="data:image/png;base64,'
        f'{base64.b64encode(one.png).decode()}">'
        for one, what in ((outlined, "its tokens outlined"), (colored, "its tokens in their mean colors")))
    return (f'<figure><div class="pair">{pictures}</div><figcaption>{at}, {where}: <b>{outlined.tokens}</b> of '
            f"{outlined.patches} tokens are left{source}.</figcaption></figure>")


def no_figure(message: str) -> str:
    """Why there is no picture; an empty message: because there is no film."""
    if not message:
        return ('<div class="empty"><b>No frame yet.</b><p>Patches that look alike become one token on their way '
                "through the encoder. Here you see which, for any frame and any depth.</p></div>")
    return f'<p class="small">{escape(sentence(message))}</p>'


def megabytes(count: float) -> str:
    """A number of bytes."""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


def sentence(text: str) -> str:
    """With a capital at its beginning and a stop at its end."""
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "?", "!")) else ".")
