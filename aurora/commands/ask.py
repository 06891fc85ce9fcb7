"""`aurora ask`: the answer goes to standard output as it is made, everything else to stderr."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aurora.commands._options import Adapter, CheckpointSeconds, Device, ModelFolder, Score, split_words
from aurora.errors import AuroraError

if TYPE_CHECKING:
    from aurora.inference.film import Film
    from aurora.inference.video_model import VideoModel
    from aurora.inference.visuals import Progress, Report
    from aurora.interfaces import Sampling
    from aurora.terminal import Waiting


@dataclass(frozen=True)
class Sampled:
    """Frames"""

    fps: Annotated[float | None, typer.Option(metavar="N", help="Frames per second of video.")] = None
    frames: Annotated[int | None, typer.Option(metavar="N", help="This many frames instead, spread evenly.")] = None
    max_frames: Annotated[int | None, typer.Option(
        metavar="N", help="At most this many frames; of more, some are chosen evenly.")] = None
    keep_ratio: Annotated[float | None, typer.Option(
        metavar="R", help="Share of the patches kept per frame, in (0, 1].")] = None

    def overrides(self) -> list[str]:
        """The same as overrides. AuroraError for options that exclude each other."""
        if self.fps is not None and self.frames is not None:
            raise AuroraError("--fps and --frames exclude each other: one is a rate, the other a number")
        changed = [] if self.keep_ratio is None else [f"keep_ratio={self.keep_ratio}"]
        if self.fps is not None:
            changed += [f"sampling.fps={self.fps}", "sampling.frames=null"]
        if self.frames is not None:
            changed += [f"sampling.frames={self.frames}", "sampling.fps=null", "sampling.max_frames=null"]
        return changed if self.max_frames is None else [*changed, f"sampling.max_frames={self.max_frames}"]


@dataclass(frozen=True)
class Frames(Sampled):
    """Frames"""

    more: Annotated[list[str], typer.Option(
        "--with", metavar="FILE", help="A further image or video, seen after the first. May be repeated.")
    ] = field(default_factory=list)


@dataclass(frozen=True)
class Model:
    """Model"""

    model: ModelFolder = None
    random_weights: Annotated[bool, typer.Option(
        "--random-weights", help="No saved model: the one that a config describes, untrained; see OVERRIDE.")] = False
    merge: Annotated[str | None, typer.Option(metavar="NAME", help="Another merge, see `aurora list merge`.")] = None
    sort: Annotated[str | None, typer.Option(metavar="NAME", help="Another sort, see `aurora list sort`.")] = None
    prompt: Annotated[str | None, typer.Option(metavar="NAME", help="Another prompt, see `aurora list prompt`.")] = None
    dtype: Annotated[Literal["float32", "bfloat16"] | None, typer.Option(help="Of weights and activations.")] = None
    quantize: Annotated[Literal["int8"] | None, typer.Option(
        help="Round the language model's matrices: less memory, faster answers.")] = None

    def overrides(self) -> list[str]:
        """The same as overrides."""
        return [f"{key}={value}" for key in ("merge", "sort", "prompt", "dtype", "quantize")
                if (value := getattr(self, key)) is not None]


@dataclass(frozen=True)
class Films:
    """Saved films"""

    save: Annotated[Path | None, typer.Option(metavar="FILE", help=(
        "Keep what was seen in this file: aurora ask FILE asks it again without the video."))] = None
    store: Annotated[Path | None, typer.Option(metavar="FOLDER", help=(
        "Ask the films of this folder, which `aurora index build` and `aurora serve` write."))] = None
    film: Annotated[list[str], typer.Option(metavar="NAME", help=(
        "Of these in the store only. May be repeated."))] = field(default_factory=list)
    checkpoint_seconds: CheckpointSeconds = None
    at: Annotated[float | None, typer.Option(metavar="SECOND", help=(
        "Answer as of this second, of what is shown up to it. Without the video that takes --checkpoint-seconds, and "
        "is as of the last state kept before."))] = None


@dataclass(frozen=True)
class Answer:
    """Answer"""

    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="End the answer after so many tokens.")] = 256
    temperature: Annotated[float, typer.Option(metavar="T", help="0 always takes the likeliest token.")] = 0.0
    top_p: Annotated[float, typer.Option(
        metavar="P", help="Nucleus sampling: draw from the likeliest tokens whose probabilities add up to P.")] = 1.0
    top_k: Annotated[int | None, typer.Option(metavar="K", help="Draw from the K likeliest tokens.")] = None
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed.")] = 0
    stop: Annotated[list[str], typer.Option(
        metavar="TEXT", help="End the answer before this text. May be repeated.")] = field(default_factory=list)


def ask(
    *,
    words: Annotated[list[str], typer.Argument(
        metavar="VIDEO|QUESTION|OVERRIDE", default_factory=list, show_default=False,
        help="A video or image file, or its address, or several that are seen in this order; what to ask, which --chat "
             "may leave out; and overrides: KEY=VALUE with a key of the config, such as keep_ratio=0.5, sampling.fps=2 "
             "or merge=pool.")],
    option: Annotated[list[str], typer.Option(
        metavar="TEXT", default_factory=list, show_default=False,
        help="An option to choose from. Give two or more; they are lettered in this order.")],
    score: Score = "text",
    chat: Annotated[bool, typer.Option(
        "--chat", help="One conversation; further questions are read from standard input.")] = False,
    films: Films, frames: Frames, model: Model, adapter: Adapter, answer: Answer, device: Device,
) -> int:
    """Answer questions about a video or images.

    Reads a video of any length in constant memory and streams the answer to standard output. Several questions are
    answered one by one, each on its own, from one reading; with --chat they are one conversation, which goes on with
    the lines of standard input. What was seen can be saved and asked again without the video.

    \b
    example:
      aurora ask clip.mp4 "What colour is the ball?" \\
        --model runs/demo/language_video/model
      aurora ask clip.mp4 "Where does it go?" --option left --option right
      aurora ask one.jpg two.jpg "What changed?"
      aurora ask clip.mp4 "What is it?" --random-weights --frames 8 dtype=bfloat16
      aurora ask film.mp4 "What happens?" --save film.aurora
      aurora ask film.aurora "And what happens then?"
      aurora ask film.mp4 "How many balls are there?" --at 12.5
      aurora ask --store films --film holiday "Who is there?"
    """
    from aurora.terminal import Waiting

    with Waiting("loading") as waiting:
        from aurora.evaluation.prompts import multiple_choice

        files, questions, overrides = split_words(words, files=films.store is None)
        if not questions and not chat:
            raise AuroraError('no question: aurora ask VIDEO "QUESTION", or --chat to read questions from standard '
                              "input")
        if len(option) == 1:
            raise AuroraError("one --option is not a choice; give two or more")
        if score != "text" and (chat or not option):
            raise AuroraError(f"--score {score} chooses among --option TEXT, each question by itself: give options, "
                              "and no --chat")
        return answer_each([multiple_choice(question, option) if option else question for question in questions],
                           files, overrides, waiting, frames, model, adapter, answer, device, films=films, chat=chat,
                           options=[] if score == "text" else option, score=score)


def answer_each(
    questions: Sequence[str], files: Sequence[str], overrides: Sequence[str], waiting: "Waiting", frames: Frames,
    model: Model, adapter: Adapter, answer: Answer, device: Device, *, films: Films | None = None, chat: bool = False,
    options: Sequence[str] = (), score: Score = "likelihood"
) -> int:
    """Answers the questions about files, a saved film or those of a store; with `chat` as one conversation that goes on
    with standard input, and with `options` by the likeliest of them. Gives the exit status: 1 where one of several
    films cannot be asked."""
    from aurora.inference.film import Stream
    from aurora.inference.generation import Generation
    from aurora.inference.visuals import check_sources

    generation = Generation(**vars(answer))  # what can be wrong without a model is checked before one is loaded
    films, files = films or Films(), [*files, *frames.more]
    check_sources(files)
    wanted = _wanted(films, files, chat)
    _check_saved(films, files, frames, overrides)
    used = load(model, adapter, device, [*overrides, *model.overrides(), *frames.overrides()])
    waiting.say("reading")
    names: Sequence[str | None] = wanted or [None]
    status = 0
    for name in names:
        try:
            film = _film(used, files, films, name, waiting)
        except AuroraError as error:
            if len(names) == 1:
                raise
            sys.stderr.write(f"{name}: {error}\n")
            status = 1
            continue
        answers: Iterable[Iterable[str]]
        if options:
            answers = _likeliest(film, questions, options, score, films.at)
        elif chat:
            answers = (film.ask(question, stream=True, at=films.at, options=generation, remember=True)
                       for question in _conversation(questions, waiting))
        else:
            answers = film.ask_each(questions, generation, at=films.at)
        for pieces in answers:
            waiting.say("answering")
            if films.at is not None and isinstance(pieces, Stream):
                sys.stderr.write(f"as of second {pieces.seconds:g}\n")
            waiting.stream(pieces if len(wanted) < 2 else chain([f"{name}: "], pieces))
        if films.save is not None:
            film.save(films.save)
    return status


def _wanted(films: Films, files: Sequence[str], chat: bool) -> list[str]:
    """The names of the films of a store that are asked; none without a store."""
    from aurora.inference.film_file import film_target
    from aurora.inference.store import FilmStore

    if films.save is not None:
        film_target(films.save, files)
    if films.checkpoint_seconds is not None and films.save is None:
        raise AuroraError("--checkpoint-seconds keeps states in a film that is saved; give --save FILE")
    if films.store is None:
        if films.film:
            raise AuroraError(f"--film {films.film[0]} names a film of a store; give --store FOLDER")
        return []
    if files or films.save is not None:
        raise AuroraError("--store asks the films of a folder; leave out files and --save")
    store = FilmStore(films.store)
    names = films.film or store.names()
    for name in names:
        store.require(name)
    if not names:
        raise AuroraError(f"{films.store} holds no film; `aurora index build FOLDER --store {films.store}` makes them")
    if chat and len(names) > 1:
        raise AuroraError(f"--chat is about one film; choose one with --film: {', '.join(names)}")
    return names


def _check_saved(films: Films, files: Sequence[str], frames: Frames, overrides: Sequence[str]) -> None:
    """AuroraError for a saved film beside other files, and for options of watching where nothing is watched."""
    saved = [str(films.store)] if films.store is not None else [file for file in files if is_saved(file)]
    if not saved:
        return
    if len(files) > 1:
        other = next((file for file in files if file != saved[0]), saved[0])
        raise AuroraError(f"{saved[0]} is a saved film, which is asked alone, without {other}; in Python, film.extend "
                          "watches more behind it")
    sampled = any(re.match(r"[+~]*sampling\b", override) for override in overrides)
    if sampled or any(option is not None for option in (frames.fps, frames.frames, frames.max_frames,
                                                        films.checkpoint_seconds)):
        raise AuroraError(f"{saved[0]} was watched before; --fps, --frames, --max-frames, --checkpoint-seconds and "
                          "sampling are for videos")


def is_saved(file: str) -> bool:
    """Whether a file is a saved film, or called like one: one that is damaged as well."""
    from aurora.inference.film_file import SUFFIX, is_film

    return file.endswith(SUFFIX) or is_film(file)


def _film(model: "VideoModel", files: Sequence[str], films: Films, name: str | None, waiting: "Waiting") -> "Film":
    """What the questions are about: a film of a store, a saved one, or what is watched now. What comes from an address
    is read once, with a prompt that allows it."""
    from aurora.inference.store import FilmStore

    if name is not None and films.store is not None:
        return FilmStore(films.store).open(model, name)
    if is_saved(files[0]):
        return model.open(files[0])
    report = _reporting(model.config.sampling, waiting)
    if films.save is None and films.at is None and not any("://" in file for file in files):
        # as the model was trained, also where that means to read again for every question
        return model.watch(*files, on_progress=report, prompt=model.config.prompt)
    return model.watch(*files, on_progress=report, checkpoint_seconds=films.checkpoint_seconds)


def _likeliest(film: "Film", questions: Sequence[str], options: Sequence[str], score: Score, at: float | None
               ) -> Iterator[list[str]]:
    from aurora.evaluation.scoring import likeliest
    from aurora.inference.reading import fork

    memory = film.read_all(questions, at)
    for number in range(len(questions)):
        best, values = likeliest(film.model.model, film.model.runner, fork(memory, [number]), options,
                                 per_token=score == "likelihood_per_token")
        shown = ", ".join(f"{option} {value:.2f}" for option, value in zip(options, values, strict=True))
        sys.stderr.write(f"log-probability: {shown}\n")
        yield [options[best]]


def _reporting(sampling: "Sampling", waiting: "Waiting") -> "Report":
    """Says how far a film was watched, and, once for every file, when frames are left out."""
    from aurora.terminal import clock

    noted = set()

    def report(progress: "Progress") -> None:
        file, number, times = progress
        most, every = sampling.max_frames, (times[-1] - times[0]) / max(1, len(times) - 1) if times else 0.0
        if len(times) == most and (most == 1 or every * (sampling.fps or 0) > 1.001) and file not in noted:
            noted.add(file)
            spread = f"{most} frames, one every {every:.3g} s" if most > 1 else "1 frame"
            sys.stderr.write(f"{file}: {spread}; --max-frames reads more\n")
        where = f"frame {number} of {len(times)} ({clock(times[number - 1])} of {clock(times[-1])}) of" if times else ""
        waiting.say(f"{where or 'reading'} {file}")

    return report


def load(model: Model, adapter: Adapter, device: Device, overrides: Sequence[str]) -> "VideoModel":
    """The model that the options describe."""
    from aurora.assemble import count_parameters
    from aurora.inference.models import model_folder, random_model
    from aurora.inference.video_model import VideoModel

    options = {**vars(adapter), **vars(device)}
    if not model.random_weights:
        return VideoModel.from_pretrained(model_folder(model.model), overrides=overrides, **options)
    if model.model is not None:
        raise AuroraError("--random-weights and --model exclude each other")
    made, config, sources = random_model(overrides, **options)
    for slot, number in count_parameters(made).items():
        sys.stderr.write(f"{slot}: {number:,} parameters, {sources[slot]} weights\n")
    return VideoModel(made, config)


def _conversation(questions: Iterable[str], waiting: "Waiting") -> Iterator[str]:
    yield from questions
    terminal = sys.stdin.isatty()
    while True:
        waiting.stop()
        if terminal:
            sys.stderr.write("> ")
            sys.stderr.flush()
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            raise
        if not line:
            sys.stderr.write("\n" if terminal else "")
            return
        if line.strip():
            yield line.strip()
