"""`aurora <command>`: what can be asked for. Each command's work is imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias

from aurora import __version__
from aurora.commands import asking_options, bench, plan_options, shard_options, train_options, weight_options
from aurora.commands.parent import end_with_parent
from aurora.errors import TRY_AGAIN, AuroraError, LostProcess

OVERRIDES = """settings are changed with Hydra's overrides, such as keep_ratio=0.5, merge=pool or sampling.fps=2"""

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status is 2 when the user has to change something, 75 when another process was lost, 130
    after ^C."""
    end_with_parent()
    given = list(sys.argv[1:] if arguments is None else arguments)
    given, overrides = split_overrides(given)
    options = parse(given)
    if options.command is None:
        parser().print_help()
        return 0
    if overrides:
        if not hasattr(options, "overrides"):
            return _fail(f"error: `aurora {options.command}` takes no overrides, but was given {overrides[0]!r}", 2)
        options.overrides += overrides
    # Threads that spin while they wait made a small model 30 times slower on cores that others use too. A bench has the
    # cores for itself, and other implementations are not run so.
    if options.command != "bench":
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # what goes wrong when processes meet is said by us, once
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        _refuse_pickle()
        command = importlib.import_module(f"aurora.commands.{options.module}")
        status: int = getattr(command, options.function)(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read our output left; nothing more can be said, not even by the interpreter's own flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (AuroraError, LostProcess, OSError) as error:
        if os.environ.get("AURORA_DEBUG") == "1":
            raise
        return _fail(f"error: {error}", TRY_AGAIN if isinstance(error, LostProcess) else 2)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first `--`, and what stands behind it."""
    arguments = list(arguments)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes no abbreviations: a new option must not change what old ones mean."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """The line, and exit status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see `{self.prog} --help`)\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command; its last positional may be continued after other options."""
    top = parser()
    options, left = top.parse_known_args(arguments)
    rest = getattr(options, "rest", None)
    for word in left:
        if rest is None or word.startswith("-"):
            top.error(f"`aurora {options.command}` does not know {word!r}")
        getattr(options, rest).append(word)
    return options


def parser() -> Parser:
    """The whole command line."""
    top = Parser(
        prog="aurora",
        description="Trains and runs AuroraLong: a video language model whose memory does not grow with the video.",
        epilog="`aurora COMMAND --help` explains a command. AURORA_DEBUG=1 shows the traceback of an error.",
    )
    top.set_defaults(command=None)
    top.add_argument("--version", action="version", version=f"aurora {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    for add in (_demo, _ask, _caption, _plan, _train, _eval, _bench, _convert, _export, _shards, _list, _info, _blocks,
                _version):
        add(commands)
    return top


def _demo(commands: Commands) -> None:
    parser = _command(
        commands, "demo", "demonstrating", "everything in small: data, four stages, evaluation, answers, a report",
        "Makes Blocks world, trains the four stages on it, evaluates, answers questions about held-out videos and "
        "writes report.html and result.json. A stopped demo goes on where it was.",
        "aurora demo runs/demo",
    )
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="runs/demo", help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0,
                        help="size of data and training relative to the full demo (default %(default)s)")
    parser.set_defaults(rest="overrides")
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*", help="key=value, see configs/aurora.yaml")


def _ask(commands: Commands) -> None:
    parser = _command(
        commands, "ask", "asking", "answer questions about a video or images",
        "Reads a video of any length in constant memory and streams the answer to standard output. Several questions "
        "are answered one by one, each on its own; with --chat they are one conversation, which goes on with the "
        "lines of standard input.",
        'aurora ask clip.mp4 "What colour is the ball?" --model runs/demo/language_video/model\n'
        '  aurora ask clip.mp4 "Where does it go?" --option left --option right\n'
        '  aurora ask one.jpg "What changed?" --with two.jpg\n'
        '  aurora ask clip.mp4 "What is this?" --random-weights --frames 8 -- dtype=bfloat16',
    )
    parser.add_argument("visual", metavar="VIDEO", help="a video or image file")
    parser.add_argument("question", metavar="QUESTION", nargs="*", help="what to ask; with --chat it may be left out")
    parser.add_argument("--option", action="append", default=[], metavar="TEXT",
                        help="an option to choose from; give it twice or more, they are lettered in this order")
    parser.set_defaults(rest="question", overrides=[])
    parser.add_argument("--chat", action="store_true", help="one conversation; further questions from standard input")
    asking_options.visual(parser)
    asking_options.model(parser)
    asking_options.generation(parser)


def _caption(commands: Commands) -> None:
    parser = _command(
        commands, "caption", "asking", "describe a video or an image",
        "Asks for a description; like `aurora ask` otherwise.",
        "aurora caption clip.mp4 --model runs/demo/language_video/model --max-new-tokens 200",
    )
    parser.add_argument("visual", metavar="VIDEO", help="a video or image file")
    parser.set_defaults(overrides=[])
    parser.add_argument("--question", metavar="TEXT", help="the request; by default one that training used")
    asking_options.visual(parser)
    asking_options.model(parser)
    asking_options.generation(parser)


def _plan(commands: Commands) -> None:
    plan_options.plan(_command(commands, "plan", "planning", "show what stages will read, before they are trained",
                               plan_options.PLAN, plan_options.EXAMPLE))


def _train(commands: Commands) -> None:
    train_options.train(_command(commands, "train", "training", "train one stage, or all of them in order",
                                 train_options.TRAIN, train_options.EXAMPLE))


def _eval(commands: Commands) -> None:
    parser = _command(
        commands, "eval", "evaluating", "measure a model on a folder of questions",
        "Asks every question of FOLDER/questions.jsonl, about its own video and, if it has options, about a wrong one. "
        "Writes predictions.jsonl, line by line, and result.json; a stopped evaluation goes on where it was.\n\n"
        'A line is {"id", "video", "family", "question", "options": [...], "answer": index of the right one}, or '
        f'without options and with "answer": text. The model\'s {OVERRIDES}.',
        "aurora eval --model runs/demo/language_video/model --data data/blocks/heldout keep_ratio=0.5",
    )
    parser.set_defaults(rest="overrides")
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*", help="key=value, of keep_ratio, sampling, merge, …")
    parser.add_argument("--model", metavar="FOLDER", help=asking_options.MODEL_HELP)
    asking_options.adapter(parser)
    parser.add_argument("--data", metavar="FOLDER", required=True, help="the folder that holds questions.jsonl")
    parser.add_argument("--output", metavar="FOLDER", help="where results go; by default beside the model, "
                        "as eval/NAME OF THE DATA FOLDER")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only N questions, spread over the file")
    parser.add_argument("--parallel", type=int, default=32, metavar="N",
                        help="questions about one video that are read side by side (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of wrong videos (default %(default)s)")
    parser.add_argument("--no-wrong-videos", action="store_true", help="leave out the questions on wrong videos")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N",
                        help="of answers to open questions (default %(default)s)")
    parser.add_argument("--restart", action="store_true", help="throw away the predictions that are there")
    parser.add_argument("--json", action="store_true", help="the result on standard output instead of a table")
    asking_options.machine(parser)


def _bench(commands: Commands) -> None:
    parser = _command(commands, "bench", "bench", "measure the speed of a configuration on this machine",
                      bench.BENCH, bench.EXAMPLE)
    bench.options(parser)
    asking_options.machine(parser)


def _convert(commands: Commands) -> None:
    weight_options.convert(_command(commands, "convert", "converting", "rewrite weights in another layout or format",
                                    weight_options.CONVERT, weight_options.CONVERT_EXAMPLE))


def _export(commands: Commands) -> None:
    weight_options.export(_command(commands, "export", "exporting", "write a model as a folder to give away",
                                   weight_options.EXPORT, weight_options.EXPORT_EXAMPLE))


def _shards(commands: Commands) -> None:
    below = _command(commands, "shards", "sharding", "turn datasets into shards, check them, look at them",
                     shard_options.SHARDS, shard_options.EXAMPLE).add_subparsers(metavar="WHAT", required=True)
    for name, (module, summary, description, example, add) in shard_options.WHAT.items():
        parser = _command(below, name, module, summary, description, example)
        parser.set_defaults(command=f"shards {name}")
        add(parser)


def _list(commands: Commands) -> None:
    parser = _command(
        commands, "list", "listing", "list slots, their parts, options and defaults",
        "Shows which names a config may give for each slot, and what their options are.",
        "aurora list\n  aurora list merge",
    )
    parser.add_argument("slot", metavar="SLOT", nargs="?", help="show only this one")
    parser.add_argument("--json", action="store_true", help="for programs")


def _info(commands: Commands) -> None:
    parser = _command(
        commands, "info", "describing", "parameters per slot and size of the state",
        "Describes a saved model, or without --model the one that a config describes, which takes no memory here; "
        f"{OVERRIDES}.",
        "aurora info --model runs/demo/language_video/model\n  aurora info backbone=rwkv6 dtype=bfloat16",
    )
    parser.set_defaults(rest="overrides")
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*", help="key=value, see configs/aurora.yaml")
    parser.add_argument("--model", metavar="FOLDER", help="a model folder")
    parser.add_argument("--json", action="store_true", help="for programs")


def _blocks(commands: Commands) -> None:
    parser = _command(
        commands, "blocks", "making", "make the embedded data set",
        "Writes the shards and the evaluation of the blocks world: videos of coloured shapes with captions and "
        "questions. The same seed and scale give the same files.",
        "aurora blocks data/blocks --scale 0.1",
    )
    parser.add_argument("folder", metavar="FOLDER", help="where it goes")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="size relative to the full set (default %(default)s)")


def _version(commands: Commands) -> None:
    _command(commands, "version", "describing", "versions of Aurora and what it stands on", "Shows versions.",
             "aurora version")


def _command(commands: Commands, name: str, module: str, summary: str, description: str, example: str
             ) -> Parser:
    parser = commands.add_parser(
        name, help=summary, description=_wrapped(description), epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=name, module=module, function=name)
    return parser


def _wrapped(text: str) -> str:
    return "\n\n".join(textwrap.fill(paragraph, 79) for paragraph in text.split("\n\n"))


def _refuse_pickle() -> None:
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0") not in ("", "0"):
        raise AuroraError("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set, which lets weight files run code; unset it")


def _fail(message: str, status: int) -> int:
    line = " ".join(message.split())
    sys.stderr.write(f"aurora: {line}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
