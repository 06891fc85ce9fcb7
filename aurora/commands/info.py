from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurora.commands._options import Json, Overrides

if TYPE_CHECKING:
    from aurora.config import ModelConfig


def info(
    *,
    overrides: Overrides,
    model: Annotated[Path | None, typer.Option(metavar="FOLDER", help="A model folder.")] = None,
    json_output: Json = False,
) -> None:
    """Show the parameters per slot and the size of the state.

    Describes a saved model, or without --model the one that a config describes, which takes no memory here.

    \b
    example:
      aurora info --model runs/demo/language_video/model
      aurora info backbone=rwkv6 dtype=bfloat16
    """
    from aurora.terminal import Waiting, write_json

    with Waiting("loading"):
        from aurora.config import load_config, read_config
        from aurora.weights.model_folder import model_hash

        if model is None:
            described = _describe(load_config(*overrides).model)
        else:
            described = {**_describe(read_config(model).override(overrides)), "hash": model_hash(model)}
    return write_json(described) if json_output else _show(described)


def _describe(config: "ModelConfig") -> dict[str, Any]:
    import torch

    from aurora.assemble import build_model, count_parameters
    from aurora.registry import MODEL_SLOTS
    from aurora.types import state_bytes

    with torch.device("meta"):
        model = build_model(config)
        state = model.backbone.init_state(1)
    size, keep_ratio = model.vision.prepare.size, config.keep_ratio
    return {
        "parts": {slot: config.part(slot)["name"] for slot in MODEL_SLOTS},
        "parameters": count_parameters(model),
        "weight_bytes": sum(p.nbytes for p in model.parameters()),
        "state_bytes": state_bytes(state),
        "constant_state": model.backbone.constant_state,
        "keep_ratio": keep_ratio,
        "tokens_per_frame": model.visual_layout(keep_ratio).tokens(size, size),
        "patches_per_frame": model.vision.prepare.patches(size, size),
    }


def _show(described: dict[str, Any]) -> None:
    from rich.filesize import decimal

    from aurora.terminal import stdout, table

    parameters, console = described["parameters"], stdout()
    shown = table("slot", "part", "parameters", numbers=("parameters",))
    for slot, name in described["parts"].items():
        shown.add_row(slot, name, f"{parameters[slot]:,}" if slot in parameters else "")
    shown.add_section()
    shown.add_row("all", "", f"{sum(parameters.values()):,}")
    console.print(shown)
    grows = "at any length" if described["constant_state"] else "after nothing was read; it grows with the length"
    console.print(f"weights {decimal(described['weight_bytes'])}; state {decimal(described['state_bytes'])} {grows}")
    console.print(f"a square frame: {described['patches_per_frame']} patches, {described['tokens_per_frame']} tokens "
                  f"at keep ratio {described['keep_ratio']}")
    if "hash" in described:
        console.print(f"sha256 {described['hash']}")
