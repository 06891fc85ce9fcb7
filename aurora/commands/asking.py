"""`aurora ask` and `aurora caption`: the answer goes to standard output as it is made, everything else to stderr."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import Any

from aurora.assemble import count_parameters
from aurora.commands.finding import model_folder, random_model, saved_model
from aurora.commands.overriding import override
from aurora.errors import AuroraError
from aurora.evaluation.prompts import CAPTION_IMAGE, CAPTION_VIDEO, multiple_choice
from aurora.inference.generation import Generation
from aurora.inference.session import Session
from aurora.inference.visuals import check_file, is_image
from aurora.model import AuroraModel


def ask(options: Namespace) -> int:
    """Answers each question; with --chat also those on standard input."""
    if not options.question and not options.chat:
        raise AuroraError('no question: aurora ask VIDEO "QUESTION", or --chat to read questions from standard input')
    if options.option and len(options.option) < 2:
        raise AuroraError("one --option is no choice; give two or more")
    questions = [multiple_choice(question, options.option) if options.option else question
                 for question in options.question]
    return _answer(options, [*questions], chat=options.chat)


def caption(options: Namespace) -> int:
    """Asks for a description."""
    default = CAPTION_IMAGE if is_image(options.visual) else CAPTION_VIDEO
    return _answer(options, [options.question or default], chat=False)


def _answer(options: Namespace, questions: list[str], *, chat: bool) -> int:
    # What can be wrong without a model is checked before one is loaded.
    generation = Generation(
        max_new_tokens=options.max_new_tokens, temperature=options.temperature, top_p=options.top_p,
        top_k=options.top_k, seed=options.seed, stop=tuple(options.stop),
    )
    visuals = [options.visual, *options.more]
    for visual in visuals:
        check_file(visual)
    model, config = _model(options)
    status = Status()
    session = Session.from_config(model, config, on_frame=lambda number: status(f"reading frame {number}"))
    session.watch(*visuals)
    for question in _conversation(questions) if chat else questions:
        status("reading")
        _stream(session.ask(question, generation, remember=chat), status)
    return 0


def _stream(pieces: Iterable[str], status: Status) -> None:
    begun = False
    for piece in pieces:
        shown = piece if begun else piece.lstrip()
        if shown:
            status.clear()
            begun = True
            sys.stdout.write(shown)
            sys.stdout.flush()
    status.clear()  # an empty answer has left it there
    sys.stdout.write("\n")
    sys.stdout.flush()


def _conversation(questions: Iterable[str]) -> Iterator[str]:
    yield from questions
    interactive = sys.stdin.isatty()
    while True:
        if interactive:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _model(options: Namespace) -> tuple[AuroraModel, dict[str, Any]]:
    overrides = options.overrides
    machine = {key: getattr(options, key) for key in ("device", "threads", "adapter", "any_base")}
    if options.random_weights:
        if options.model is not None:
            raise AuroraError("--random-weights and --model exclude each other")
        model, config, sources = random_model([*overrides, *_part_overrides(options)], **machine)
        _report(model, sources)
        return model, _viewing(config, options)
    model, config = saved_model(model_folder(options.model), [*overrides, *_part_overrides(options)],
                                **machine)
    return model, _viewing(config, options)


def _part_overrides(options: Namespace) -> list[str]:
    return [f"{key}={value}" for key in ("merge", "sort", "prompt", "dtype", "quantize")
            if (value := getattr(options, key)) is not None]


def _viewing(config: dict[str, Any], options: Namespace) -> dict[str, Any]:
    """The config with the flags that say which frames are read and how much of them is kept."""
    if options.keep_ratio is not None:
        config = override(config, [f"keep_ratio={options.keep_ratio}"])
    if options.fps is not None and options.frames is not None:
        raise AuroraError("--fps and --frames exclude each other: one is a rate, the other a number")
    sampling = dict(config.get("sampling") or {})
    if options.fps is not None:
        sampling = {"fps": options.fps, "max_frames": sampling.get("max_frames")}
    if options.frames is not None:
        sampling = {"frames": options.frames}
    if options.max_frames is not None:
        sampling["max_frames"] = options.max_frames
    return {**config, "sampling": sampling}


def _report(model: AuroraModel, sources: dict[str, str]) -> None:
    parameters = count_parameters(model)
    for slot, number in parameters.items():
        sys.stderr.write(f"{slot}: {number:,} parameters, {sources[slot]} weights\n")
    sys.stderr.write(f"all: {sum(parameters.values()):,} parameters\n")


class Status:
    """One line on stderr that is written over; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._enabled = sys.stderr.isatty()
        self._visible = False

    def __call__(self, text: str) -> None:
        """Shows a text in place of the one before."""
        if self._enabled:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
            self._visible = True

    def clear(self) -> None:
        """Erases the line if it is there: on a terminal stdout shares it, and an answer may stand in it by now."""
        if self._visible:
            self("")
            self._visible = False
