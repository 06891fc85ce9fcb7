"""`aurora watch`: a live source is watched; alerts and answers go to standard output, everything else to stderr."""

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aurora.commands._options import Adapter, Device, positive, require_writable_folder, split_overrides
from aurora.commands.ask import Answer, Model, load
from aurora.errors import AuroraError

if TYPE_CHECKING:
    from aurora.inference.film import Film
    from aurora.inference.generation import Generation
    from aurora.inference.live import LiveEvent, LiveSource
    from aurora.inference.standing import StandingQuestion
    from aurora.terminal import Waiting


@dataclass(frozen=True)
class Stream:
    """Source"""

    fps: Annotated[float | None, typer.Option(
        metavar="N", parser=positive, help="Frames per second. Default: as the model was trained.")] = None
    keep_ratio: Annotated[float | None, typer.Option(
        metavar="R", help="Share of the patches kept per frame, in (0, 1].")] = None
    transport: Annotated[Literal["tcp", "udp"], typer.Option(help="How an RTSP server sends.")] = "tcp"
    stall: Annotated[float, typer.Option(
        metavar="SECONDS", parser=positive, help="A stream that is silent for so long is opened again.")] = 20.0
    give_up: Annotated[float, typer.Option(
        metavar="SECONDS", parser=positive, help="End when a lost stream stays away for so long.")] = 60.0
    idle: Annotated[float, typer.Option(
        metavar="SECONDS", parser=positive, help="A file that has not grown for so long is finished.")] = 10.0
    end: Annotated[float | None, typer.Option(
        "--for", metavar="SECONDS", parser=positive, help="End after so long. Default: with the source, or ^C.")] = None


@dataclass(frozen=True)
class Questions:
    """Questions"""

    tell: Annotated[list[str], typer.Option(metavar="QUESTION", help=(
        'Say when its answer becomes yes, such as "Is there a red ball?". May be repeated.'))
    ] = field(default_factory=list)
    wanted: Annotated[str, typer.Option(metavar="TEXT", help="What an answer to --tell begins with then.")] = "yes"
    every: Annotated[float, typer.Option(
        metavar="SECONDS", parser=positive, help="How often --tell asks, in seconds of the film.")] = 5.0
    ask_stdin: Annotated[bool, typer.Option(
        "--ask-stdin", help="Answer the lines of standard input from what was seen until then.")] = False


@dataclass(frozen=True)
class Keep:
    """Saving"""

    save: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Keep what was seen in this file, for aurora ask FILE.")] = None
    save_every: Annotated[float, typer.Option(
        metavar="SECONDS", parser=positive, help="How often that is done; at the end it always is.")] = 60.0


def watch(
    *,
    words: Annotated[list[str], typer.Argument(
        metavar="SOURCE|OVERRIDE", default_factory=list, show_default=False,
        help="What is watched: a camera (/dev/video0), an address (rtsp, https for HLS and other streams, udp, tcp), a "
             "file that is still being written, or - for standard input; and overrides: KEY=VALUE with a key of the "
             "config.")],
    json_lines: Annotated[bool, typer.Option("--json", help="Write JSON lines, for programs.")] = False,
    stream: Stream, questions: Questions, keep: Keep, model: Model, adapter: Adapter, answer: Answer, device: Device,
) -> int:
    """Watch a camera, a stream or a growing file, and answer meanwhile.

    Memory does not grow however long it runs. A stream that breaks off is picked up again. ^C ends it; what was seen
    is saved then too.

    \b
    example:
      aurora watch /dev/video0 --ask-stdin
      aurora watch rtsp://camera/stream --tell "Is there a person?" --every 5
      aurora watch https://example.org/live.m3u8 --save day.aurora --json
      ffmpeg -i INPUT -f mpegts - | aurora watch - --for 60 --save a.aurora
    """
    from aurora.terminal import Waiting

    with Waiting("loading") as waiting:
        from aurora.inference.film_file import film_target
        from aurora.inference.generation import Generation
        from aurora.inference.live import LiveSource
        from aurora.inference.standing import StandingQuestion, begins_with

        sources, overrides = split_overrides(words)
        if len(sources) != 1:
            raise AuroraError(f"one source is watched, but {len(sources)} were given; see aurora watch --help")
        if questions.ask_stdin and sources[0] == "-":
            raise AuroraError("standard input is either watched (-) or holds questions (--ask-stdin)")
        if keep.save is not None:
            require_writable_folder(keep.save.parent)
            film_target(keep.save, sources)
        generation = Generation(**vars(answer))
        wanted = begins_with(questions.wanted)
        standing = [StandingQuestion(text, every_seconds=questions.every, wanted=wanted) for text in questions.tell]
        _refuse_animation(sources[0])
        LiveSource(sources[0]).close()  # what can be wrong without a model is checked before one is loaded
        if stream.keep_ratio is not None:
            overrides = [*overrides, f"keep_ratio={stream.keep_ratio}"]
        used = load(model, adapter, device, [*overrides, *model.overrides()])
        waiting.stop()
        output = Output(json_lines, None if questions.ask_stdin and sys.stdin.isatty() else waiting)
        source = LiveSource(
            sources[0], fps=stream.fps or used.config.sampling.fps or 1.0, transport=stream.transport,
            stall_seconds=stream.stall, give_up_seconds=stream.give_up, idle_seconds=stream.idle,
            on_event=output.event)
        output.waiting(f"opening {source.name}")
        with ending(source, stream.end) as ended_by:
            follow(used.watching(source), source, standing, keep, output,
                   Asking(generation, output) if questions.ask_stdin else None)
        return 128 + ended_by[0] if ended_by and ended_by[0] == signal.SIGTERM else 0


def _refuse_animation(source: str) -> None:
    """AuroraError for an animated picture, which is read as a whole."""
    from aurora.media import PICTURES, media_type

    found = None
    with suppress(AuroraError):  # of what is still being written nothing is known yet
        found = media_type(Path(source)) if os.path.isfile(source) else None
    if found is not None and found.moving and found.extension in PICTURES:
        raise AuroraError(f"{source} is an animated picture; aurora ask {source} \"QUESTION\" reads its frames")


def follow(films: "Iterator[Film]", source: "LiveSource", standing: "Sequence[StandingQuestion]", keep: Keep,
           output: "Output", asking: "Asking | None") -> None:
    """Asks the standing questions while the film grows, and saves it from time to time and at the end."""
    film, saved = None, time.monotonic()
    if asking is not None:
        asking.start()
    try:
        for film in films:
            if asking is not None:
                asking.show(film)
            for question in standing:
                if (alert := question.check(film)) is not None:
                    output.say("alert", alert.seconds, question=alert.question, answer=alert.answer)
            if keep.save is not None and film.frames and time.monotonic() - saved >= keep.save_every:
                saved = time.monotonic()
                try:
                    film.fork().save(keep.save)
                except (AuroraError, OSError) as error:  # there may be room the next time
                    output.say("unsaved", film.seconds, detail=str(error))
            output.waiting(f"watching {source.name}: {film.summary()}")
    finally:
        source.close()
        if asking is not None:
            asking.finish()
        if film is not None and film.frames and keep.save is not None:
            film.save(keep.save)
            output.say("saved", film.seconds, file=str(keep.save), frames=film.frames, dropped=source.dropped)


class Output:
    """Lines from several threads: JSON for programs, or text for people, in front of it the time of the film."""

    _TO_STDOUT = ("alert", "answer")

    def __init__(self, json_lines: bool, waiting: "Waiting | None") -> None:
        self._json, self._waiting, self._lock = json_lines, waiting, threading.Lock()

    def say(self, kind: str, seconds: float, **content: Any) -> None:
        """One line."""
        with self._lock:
            if self._waiting is not None:
                self._waiting.stop()
            if self._json:
                line, to = json.dumps({"event": kind, "seconds": round(seconds, 3), **content}), sys.stdout
            else:
                line, to = self._text(kind, seconds, content), sys.stdout if kind in self._TO_STDOUT else sys.stderr
            to.write(f"{line}\n")
            to.flush()

    def _text(self, kind: str, seconds: float, content: dict[str, Any]) -> str:
        from aurora.terminal import clock, printable

        told = f"{content['question']} {content['answer']}" if kind in self._TO_STDOUT else content.get("detail", "")
        if kind == "saved":
            told = "{frames:,} frames in {file}".format(**content)
        return printable(f"{clock(seconds)}  {'' if kind == 'answer' else f'{kind}: '}{' '.join(told.split())}")

    def event(self, event: "LiveEvent") -> None:
        """What happened to the source."""
        self.say(event.kind, event.seconds, detail=event.detail)

    def waiting(self, text: str) -> None:
        """What is going on, where that is shown."""
        with self._lock:
            if self._waiting is not None:
                self._waiting.say(text)


class Asking(threading.Thread):
    """Answers the lines of standard input, each from what was seen by then."""

    def __init__(self, options: "Generation", output: Output) -> None:
        super().__init__(name="questions", daemon=True)
        self._options, self._output = options, output
        self._film: Film | None = None
        self._seen, self._over = threading.Event(), threading.Event()

    def show(self, film: "Film") -> None:
        """The film that the questions are about."""
        self._film = film
        if film.frames:
            self._seen.set()

    def finish(self) -> None:
        """Returns when what was typed until now is answered."""
        self._over.set()
        self._seen.set()
        self.join()

    def run(self) -> None:
        """Until standard input or the film ends."""
        for question in typed_lines(self._over):
            self._seen.wait()
            if self._film is None or not self._film.frames:
                sys.stderr.write("nothing was seen yet\n")
                continue
            try:
                answer = self._film.fork().ask(question, options=self._options)
            except AuroraError as error:
                sys.stderr.write(f"{error}\n")
            else:
                self._output.say("answer", answer.seconds, question=question, answer=str(answer))


def typed_lines(over: threading.Event) -> Iterator[str]:
    """The lines of standard input that are not empty; once `over` is set, those that have come already."""
    # not sys.stdin: a thread that waits for its lock could not be ended
    number, rest, last = sys.stdin.fileno(), b"", False
    while not last:
        last = over.is_set()
        if not select.select([number], [], [], 0.0 if last else 0.2)[0]:
            continue
        data = os.read(number, 1 << 16)
        last |= not data
        *lines, rest = (rest + data).split(b"\n")
        for line in [*lines, rest] if last else lines:
            if text := line.decode(errors="replace").strip():
                yield text


@contextmanager
def ending(source: "LiveSource", seconds: float | None) -> Iterator[list[int]]:
    """Closes the source after some seconds, or at ^C or SIGTERM, whose number is in the list then. A second signal does
    what it always does."""
    came: list[int] = []

    def close(number: int, _: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, before[number])
        # not here: what the signal interrupted may hold a lock that closing waits for
        threading.Thread(target=source.close, daemon=True).start()

    before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {
        number: signal.signal(number, close) for number in (signal.SIGINT, signal.SIGTERM)}
    timer = threading.Timer(seconds or 0.0, source.close)
    timer.daemon = True
    if seconds is not None:
        timer.start()
    try:
        yield came
    finally:
        timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
