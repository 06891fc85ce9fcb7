"""`aurora ask`: the answer goes to standard output as it is made, everything else to stderr."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aurora.commands._options import Adapter, Device, ModelFolder, Score, split_words
from aurora.errors import AuroraError

if TYPE_CHECKING:
    from aurora.config import ModelConfig
    from aurora.inference.session import Session
    from aurora.interfaces import Sampling
    from aurora.model import AuroraModel
    from aurora.terminal import Waiting


@dataclass(frozen=True)
class Frames:
    """Frames"""

    more: Annotated[list[str], typer.Option(
        "--with", metavar="FILE", help="A further image or video, seen after the first. May be repeated.")
    ] = field(default_factory=list)
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
        help="A video or image file, or several that are seen in this order; what to ask, which --chat may leave out; "
             "and overrides: KEY=VALUE with a key of the config, such as keep_ratio=0.5, sampling.fps=2 or "
             "merge=pool.")],
    option: Annotated[list[str], typer.Option(
        metavar="TEXT", default_factory=list, show_default=False,
        help="An option to choose from. Give two or more; they are lettered in this order.")],
    score: Score = "text",
    chat: Annotated[bool, typer.Option(
        "--chat", help="One conversation; further questions are read from standard input.")] = False,
    frames: Frames, model: Model, adapter: Adapter, answer: Answer, device: Device,
) -> None:
    """Answer questions about a video or images.

    Reads a video of any length in constant memory and streams the answer to standard output. Several questions are
    answered one by one, each on its own, from one reading; with --chat they are one conversation, which goes on with
    the lines of standard input.

    \b
    example:
      aurora ask clip.mp4 "What colour is the ball?" \\
        --model runs/demo/language_video/model
      aurora ask clip.mp4 "Where does it go?" --option left --option right
      aurora ask one.jpg two.jpg "What changed?"
      aurora ask clip.mp4 "What is it?" --random-weights --frames 8 dtype=bfloat16
    """
    from aurora.terminal import Waiting

    with Waiting("loading") as waiting:
        from aurora.evaluation.prompts import multiple_choice

        files, questions, overrides = split_words(words)
        if not questions and not chat:
            raise AuroraError('no question: aurora ask VIDEO "QUESTION", or --chat to read questions from standard '
                              "input")
        if len(option) == 1:
            raise AuroraError("one --option is not a choice; give two or more")
        if score != "text" and (chat or not option):
            raise AuroraError(f"--score {score} chooses among --option TEXT, each question by itself: give options, "
                              "and no --chat")
        answer_each([multiple_choice(question, option) if option else question for question in questions],
                    files, overrides, waiting, frames, model, adapter, answer, device, chat=chat,
                    options=[] if score == "text" else option, score=score)


def answer_each(
    questions: Sequence[str], files: Sequence[str], overrides: Sequence[str], waiting: "Waiting", frames: Frames,
    model: Model, adapter: Adapter, answer: Answer, device: Device, *, chat: bool = False,
    options: Sequence[str] = (), score: Score = "likelihood"
) -> None:
    """Answers the questions; with `chat` as one conversation that goes on with standard input, and with `options` by
    the likeliest of them."""
    from aurora.inference.generation import Generation
    from aurora.inference.session import Session
    from aurora.inference.visuals import check_file

    generation = Generation(**vars(answer))  # what can be wrong without a model is checked before one is loaded
    files = [*files, *frames.more]
    for file in files:
        check_file(file)
    used, config = _load(model, adapter, device, [*overrides, *model.overrides(), *frames.overrides()])
    session = Session.from_config(used, config, on_frame=_reporting(config.sampling, waiting))
    session.watch(*files)
    waiting.say("reading")
    answers: Iterable[Iterable[str]]
    if options:
        answers = _likeliest(session, questions, options, score)
    elif chat:
        answers = (session.ask(question, generation, remember=True) for question in _conversation(questions, waiting))
    else:
        answers = session.ask_each(questions, generation)
    for pieces in answers:
        waiting.say("answering")
        waiting.stream(pieces)


def _likeliest(session: "Session", questions: Sequence[str], options: Sequence[str], score: Score
               ) -> Iterator[list[str]]:
    from aurora.evaluation.scoring import likeliest
    from aurora.inference.reading import fork

    memory = session.read_all(questions)
    for number in range(len(questions)):
        best, values = likeliest(session.model, session.runner, fork(memory, [number]), options,
                                 per_token=score == "likelihood_per_token")
        shown = ", ".join(f"{option} {value:.2f}" for option, value in zip(options, values, strict=True))
        sys.stderr.write(f"log-probability: {shown}\n")
        yield [options[best]]


def _reporting(sampling: "Sampling", waiting: "Waiting") -> Callable[[str, int, Sequence[float]], None]:
    """Says how far a session has read, and, once for every file, when frames are left out."""
    from aurora.terminal import clock

    noted = set()

    def report(file: str, number: int, times: Sequence[float]) -> None:
        most, every = sampling.max_frames, (times[-1] - times[0]) / max(1, len(times) - 1) if times else 0.0
        if len(times) == most and (most == 1 or every * (sampling.fps or 0) > 1.001) and file not in noted:
            noted.add(file)
            spread = f"{most} frames, one every {every:.3g} s" if most > 1 else "1 frame"
            sys.stderr.write(f"{file}: {spread}; --max-frames reads more\n")
        where = f"frame {number} of {len(times)} ({clock(times[number - 1])} of {clock(times[-1])}) of" if times else ""
        waiting.say(f"{where or 'reading'} {Path(file).name}")

    return report


def _load(model: Model, adapter: Adapter, device: Device, overrides: Sequence[str]
          ) -> "tuple[AuroraModel, ModelConfig]":
    from aurora.assemble import count_parameters
    from aurora.inference.models import model_folder, random_model, saved_model

    options = {**vars(adapter), **vars(device)}
    if not model.random_weights:
        return saved_model(model_folder(model.model), overrides, **options)
    if model.model is not None:
        raise AuroraError("--random-weights and --model exclude each other")
    made, config, sources = random_model(overrides, **options)
    for slot, number in count_parameters(made).items():
        sys.stderr.write(f"{slot}: {number:,} parameters, {sources[slot]} weights\n")
    return made, config


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
