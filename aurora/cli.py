"""`aurora COMMAND`: commands are found by name, and each is imported when it is called.

A command is a function with typer's annotations, or a `typer.Typer` with commands of its own. It is named after its
file, with - for _, in `aurora/commands/` or `datamodules/commands/`, or after its entry point `aurora.command` in
another package.
What takes long to import is imported when the function runs, so that help and completion are there at once.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import inspect
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import OptionInfo

from aurora.errors import TRY_AGAIN, AuroraError, LostProcess, suggest
from aurora.version import VERSION

# The interpreter would search all that torch has made for garbage before it ends: most of a second.
atexit.register(gc.freeze)

GROUP = "aurora.command"
Command: TypeAlias = "TyperCommand | TyperGroup"
_FRAME = Path(__file__).parent
# In the wheel the parts lie inside aurora/, in a clone beside it.
_ROOT, _PREFIX = (_FRAME, "aurora.") if (_FRAME / "datamodules").is_dir() else (_FRAME.parent, "")
_FOLDERS = {"aurora.commands": _FRAME / "commands", f"{_PREFIX}datamodules.commands": _ROOT / "datamodules/commands"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status is 2 when the user has to change something, 75 when another process was lost, 130
    after ^C."""
    _end_with_parent()
    for stream in (sys.stdin, sys.stdout):  # what an encoding lacks is replaced, as on standard error
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    # what goes wrong when processes meet is reported by us, once
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        command = typer.main.get_command(app)
        if "_AURORA_COMPLETE" in os.environ:  # a shell asks for completions; an error would stand in its line
            with contextlib.suppress(AuroraError):
                command.main(prog_name="aurora")
            return 1
        with command.make_context("aurora", list(sys.argv[1:] if arguments is None else arguments)) as context:
            status: int | None = command.invoke(context)
        sys.stdout.flush()
        return status or 0
    except BrokenPipeError:
        # Whoever read our output left; nothing more can be said, not even by the interpreter's own flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except typer.Exit as end:  # after --help or --version
        return end.exit_code
    except typer.TyperException as error:
        return _fail(f"error: {_usage(error)}", 2)
    except (AuroraError, LostProcess, OSError) as error:
        if os.environ.get("AURORA_DEBUG") == "1":
            raise
        return _fail(f"error: {error}", TRY_AGAIN if isinstance(error, LostProcess) else 2)


class Commands(TyperGroup):
    """The commands of `aurora`."""

    def list_commands(self, ctx: object) -> list[str]:
        """Their names, sorted."""
        return sorted(find_commands())

    def get_command(self, ctx: object, cmd_name: str) -> Command:
        """The command of a name. AuroraError that suggests one when there is none."""
        found = find_commands()
        if cmd_name not in found:
            raise AuroraError(f"no command named {cmd_name!r}.{suggest(cmd_name, sorted(found))}")
        return _load(found[cmd_name])


@functools.cache
def find_commands() -> dict[str, EntryPoint]:
    """By name, where each command is. AuroraError for a name that is taken."""
    files = [EntryPoint(path.stem.replace("_", "-"), f"{package}.{path.stem}:{path.stem}", GROUP)
             for package, folder in _FOLDERS.items() for path in folder.glob("[!_]*.py")]
    found: dict[str, EntryPoint] = {}
    for entry in (*files, *entry_points(group=GROUP)):
        taken = found.setdefault(entry.name, entry)
        if taken is not entry:
            raise AuroraError(f"command {entry.name!r} is taken by {taken.value}; {entry.value} needs another name")
    return found


def _load(entry: EntryPoint) -> Command:
    """A command, imported. One that cannot be imported says why, in the list of commands too."""
    try:
        given: object = entry.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        if entry.module.startswith(tuple(_FOLDERS)):
            raise
        reason = str(error)

        def fail() -> None:
            raise AuroraError(f"command {entry.name!r}: {entry.value} cannot be imported: {reason}")

        return TyperCommand(entry.name, callback=fail, help=f"Unavailable: {reason}",
                            context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    if not isinstance(given, typer.Typer):
        if not callable(given):
            raise AuroraError(f"command {entry.name!r}: {entry.value} is neither a function nor a typer.Typer")
        function, given = given, typer.Typer(add_completion=False)
        given.command(entry.name)(function)
    for registered in given.registered_commands:
        registered.callback = registered.callback and flatten(registered.callback)
    command = typer.main.get_command(given)
    assert isinstance(command, (TyperCommand, TyperGroup))
    for one in (command, *getattr(command, "commands", {}).values()):
        # typer would keep the line breaks inside of paragraphs; only those after a \\b stay
        one.help = "\n\n".join(paragraph if paragraph.startswith("\b") else paragraph.replace("\n", " ")
                               for paragraph in inspect.cleandoc(one.help or "").split("\n\n"))
    return command


def flatten(command: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a command in which every parameter that is a dataclass is replaced by its fields: options that
    several commands share, each with a default. Their help stands under the first line of its docstring."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)}
    if not groups:
        return command
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        parameters += (_options(groups[name]) if name in groups else
                       [parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)])

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        built = {name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
                 for name, kind in groups.items()}
        return command(**given, **built)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(kind: type[Any]) -> Iterator[inspect.Parameter]:
    hints, panel = get_type_hints(kind, include_extras=True), (kind.__doc__ or "").partition("\n")[0].rstrip(".")
    for field in fields(kind):
        for option in hints[field.name].__metadata__:
            if isinstance(option, OptionInfo):
                option.rich_help_panel = panel
        yield inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[field.name],
                                default=getattr(kind(), field.name))


# Typer's rich help takes a fifth of a second, which only the help of one command may take.
app = typer.Typer(
    name="aurora", cls=Commands, rich_markup_mode=None,
    epilog="`aurora COMMAND --help` explains a command. AURORA_DEBUG=1 shows the traceback of an error.",
)


@app.callback(invoke_without_command=True)
def aurora(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False
           ) -> None:
    """Train and run AuroraLong: a video language model whose memory does not grow with the video."""
    if version:
        typer.echo(f"aurora {VERSION}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
    elif os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0") not in ("", "0"):
        raise AuroraError("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set, which lets weight files run code; unset it")
    # Threads that spin while they wait made a small model 30 times slower on cores that others use too. A bench has the
    # cores to itself.
    if context.invoked_subcommand != "bench":
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _end_with_parent() -> None:
    """Ends this process with the one that started it, when that was torchrun or Lightning on this machine: the others
    are gone then, and alone it would wait for them for half an hour, or train on beside the next attempt."""
    started = "TORCHELASTIC_RUN_ID" in os.environ or ("LOCAL_RANK" in os.environ and "RANK" not in os.environ)
    if started and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _usage(error: typer.TyperException) -> str:
    """What is wrong with the command line, and where its help is."""
    context = getattr(error, "ctx", None)
    called = "aurora COMMAND" if context is None else context.command_path
    message = error.format_message().rstrip(".").replace("Value error, ", "")  # pydantic's, before ours
    near = getattr(error, "possibilities", None)
    extra = re.search(r"unexpected extra argument.*?\((\S+=.*)\)", message)
    given: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()  # pydantic's, which may not show the value
    if given and repr(given[0]["input"]) not in message:
        message += f", not {given[0]['input']!r}"
    elif near:
        message = f"{error.message}. Did you mean {near[0]!r}?"
    elif extra:
        message = f"`{called}` takes no overrides, but was given {extra[1]!r}"
    return f"{message} (see `{called} --help`)"


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"aurora: {' '.join(message.split())}\n")
    return status
