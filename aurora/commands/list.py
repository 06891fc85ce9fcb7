import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurora.commands._options import Json
from aurora.errors import AuroraError, suggest

if TYPE_CHECKING:
    from rich.text import Text

    from aurora.registry import Slot


def list(
    *,
    slot: Annotated[str | None, typer.Argument(metavar="SLOT", help="Show only this one.")] = None,
    json_output: Json = False,
) -> None:
    """List slots, their parts, options and defaults.

    Shows which names a config may give for each slot, and what their options are.

    \b
    example:
      aurora list
      aurora list merge
    """
    from aurora.terminal import Waiting, stdout, table, write_json

    with Waiting("loading"):
        from aurora.registry import SLOTS

        if slot is not None and slot not in SLOTS:
            raise AuroraError(f"no slot named {slot!r}.{suggest(slot, SLOTS)}")
        slots = [SLOTS[slot]] if slot else SLOTS.values()
        described = {one.name: {name: _describe(one, name) for name in one.known()} for one in slots}
    if json_output:
        return write_json(described)
    shown = table("slot", "part", "what it does, and its options with their defaults", numbers=())
    for name, parts in described.items():
        shown.add_section()
        for number, (part, about) in enumerate(parts.items()):
            shown.add_row("" if number else name, part, _summary(about))
    return stdout().print(shown)


def _describe(slot: "Slot[Any]", name: str) -> dict[str, Any]:
    """What a part does and takes. One that cannot be imported says why."""
    from aurora.config import named_part
    from aurora.registry import INJECTED

    try:
        parameters, summary = slot.options(name), (inspect.getdoc(slot.get(name)) or "").partition("\n\n")[0]
    except (AuroraError, ImportError, SyntaxError, AttributeError, NameError, TypeError, OSError) as error:
        return {"summary": None, "options": {}, "error": " ".join(str(error).split())}
    given = named_part(slot.name, name)
    options = {}
    for key, parameter in parameters.items():
        if key not in INJECTED.get(slot.name, ()):
            required = parameter.default is inspect.Parameter.empty
            options[key] = {"required": required, "default": None if required else parameter.default}
            if key in given:
                options[key]["configs"] = given[key]
    return {"summary": " ".join(summary.split()), "options": options, "error": None}


def _summary(part: dict[str, Any]) -> "Text":
    from rich.text import Text

    if part["error"] is not None:
        return Text(f"cannot be used: {part['error']}", style="red")
    options = "  ".join(f"{key}={_value(option)}" for key, option in part["options"].items())
    return Text.assemble(part["summary"], *([("\n" + options, "cyan")] if options else []))


def _value(option: dict[str, Any]) -> str:
    """What `slot=name` gives: the value of the yaml, else the constructor's."""
    import yaml

    if option["required"] and "configs" not in option:
        return "(required)"
    text: str = yaml.safe_dump(option.get("configs", option["default"]), default_flow_style=True, width=1000)
    return text.removesuffix("\n...\n").strip()
