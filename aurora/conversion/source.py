"""What a conversion starts from: weights, what lies beside them, and the layout that their names are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from aurora.checkpoint import read_config
from aurora.conversion.layouts import Family, Layout
from aurora.conversion.reading import are_mapped, open_tensors, read_json
from aurora.conversion.report import some
from aurora.errors import AuroraError, suggest
from aurora.registry import SLOTS, import_part

CONFIG_JSON = "config.json"


class Source(NamedTuple):
    """Weights to be converted."""

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any]  # of config.json, or the part's options of a model folder
    layout: Layout | None = None  # where it is known: in a model folder
    mapped: bool = True  # whether the tensors are views of files


def find_family(slot: str, part: str) -> Family:
    """The layouts of a part's weights. AuroraError for a part that has none."""
    if part not in SLOTS[slot].known():
        raise AuroraError(f"no {slot} named {part!r}.{suggest(part, convertible(slot))}")
    if part not in convertible(slot):
        raise AuroraError(f"{slot} {part!r} has one layout only, so there is nothing to convert; "
                          f"{', '.join(convertible(slot))} have several")
    family: Family = import_part(f"components.{slot}._layouts_{part}").FAMILY
    return family


def convertible(slot: str) -> list[str]:
    """The parts whose weights come in several layouts."""
    return sorted(path.stem.removeprefix("_layouts_") for path in SLOTS[slot].folder.glob("_layouts_*.py"))


def open_source(path: Path, family: Family) -> Source:
    """Weights in any layout: a file, a folder of files, or a model folder of Aurora, of which the part is taken."""
    if (path / "config.yaml").is_file():
        return _open_model(path, family)
    beside = (path if path.is_dir() else path.parent) / CONFIG_JSON
    return Source(path, open_tensors(path), read_json(beside) if beside.is_file() else {}, mapped=are_mapped(path))


def layout_of(source: Source, family: Family) -> Layout:
    """The layout of the weights. AuroraError that says what they look like when it is none of the family's."""
    layout = source.layout or family.layout(source.tensors)
    if layout is not None:
        return layout
    like = import_part("components._families").looks_like(source.tensors)
    told = f"looks like {like}" if like else f"holds names such as {some(list(source.tensors)[:3]) or 'none at all'}"
    raise AuroraError(f"{source.path} holds no {family.part}: it {told}. {family.slot} {family.part!r} is read from "
                      f"{' or '.join(layout.told for layout in family.layouts)}")


def _open_model(path: Path, family: Family) -> Source:
    config = read_config(path)[family.slot]
    if config["name"] != family.part:
        raise AuroraError(f"{path} is a model with {family.slot} {config['name']!r}, not {family.part!r}")
    prefix = f"{family.slot}."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in open_tensors(path).items()
               if name.startswith(prefix)}
    own = next(layout for layout in family.layouts if layout.bonds is None)
    defaults = {name: option.default for name, option in SLOTS[family.slot].options(family.part).items()}
    options = {**defaults, **{key: value for key, value in config.items() if key != "name"}}
    return Source(path, family.unpack(tensors), options, own)
