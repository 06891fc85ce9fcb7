"""`aurora convert`: weights of a part from one layout or file format to another.

What is written is decided from names and shapes alone; then the weights are streamed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aurora.errors import AuroraError, suggest
from aurora.files import read_json, replacing, require_free, require_room, write_json
from aurora.registry import SLOTS
from aurora.weights.io import (
    SAFETENSORS,
    Output,
    are_mapped,
    open_tensors,
    released,
    slices,
    write_pth,
    write_safetensors,
    write_shards,
)
from aurora.weights.layouts import Family, Layout, Piece, Shapes, Table, View, looks_like
from aurora.weights.loading import some
from aurora.weights.model_folder import CONFIG_FILE, read_config
from aurora.weights.report import Mapped, Report

CONFIG_JSON = "config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD_BYTES = 5 * 10**9
_OTHER_FORMATS = (".bin", ".pt", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")
_SPARE_BYTES = 2**20

Progress = Callable[[int, int], None]
"""Called with how many bytes of how many are written."""


class Source(NamedTuple):
    """Weights to be converted."""

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any]  # of config.json, or the part's options of a model folder
    layout: Layout | None = None  # where it is known: in a model folder
    mapped: bool = True  # whether the tensors are views of files


class Plan(NamedTuple):
    """What will be written, and its report."""

    outputs: dict[str, Output]
    config: dict[str, Any] | None
    report: Report


def convert(
    source: Path, target: Path, *, slot: str, part: str, to: str | None = None, dtype: str | None = None,
    force: bool = False, shard_bytes: int = SHARD_BYTES, accept: Callable[[Report], None] = lambda report: None,
    progress: Progress = lambda done, all: None,
) -> Report:
    """Writes the weights of a part in another layout (`to`; by default the one that its `load_base` reads).

    `target` ends in .safetensors or .pth, or is a folder. `accept` sees the report before anything is written and may
    raise. AuroraError for whatever does not fit.
    """
    family = find_family(slot, part)
    require_free(target, folder=is_folder(target), force=force)
    planned = plan(open_source(source, family), target, family, to=to, dtype=dtype)
    accept(planned.report)
    write(planned, target, shard_bytes, progress)
    return planned.report


# ---- what is converted -------------------------------------------------------------------------------------------


def find_family(slot: str, part: str) -> Family:
    """The layouts of a part's weights. AuroraError for a part that has one only."""
    if part not in SLOTS[slot].known():
        raise AuroraError(f"no {slot} named {part!r}.{suggest(part, _convertible(slot))}")
    family = getattr(SLOTS[slot].get(part), "layouts", None)
    if not isinstance(family, Family):
        raise AuroraError(f"{slot} {part!r} has one layout only, so there is nothing to convert; "
                          f"{', '.join(_convertible(slot))} have several")
    return family


def _convertible(slot: str) -> list[str]:
    """The parts whose weights come in several layouts, of those that can be imported."""
    found = []
    for name in SLOTS[slot].known():
        with suppress(AuroraError):
            if isinstance(getattr(SLOTS[slot].get(name), "layouts", None), Family):
                found.append(name)
    return found


def open_source(path: Path, family: Family) -> Source:
    """Weights in any layout: a file, a folder of files, or a model folder of Aurora, of which the part is taken."""
    if (path / CONFIG_FILE).is_file():
        return _open_model(path, family)
    beside = (path if path.is_dir() else path.parent) / CONFIG_JSON
    return Source(path, open_tensors(path), read_json(beside) if beside.is_file() else {}, mapped=are_mapped(path))


def _open_model(path: Path, family: Family) -> Source:
    config = read_config(path).part(family.slot)
    if config["name"] != family.part:
        raise AuroraError(f"{path} is a model with {family.slot} {config['name']!r}, not {family.part!r}")
    prefix = f"{family.slot}."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in open_tensors(path).items()
               if name.startswith(prefix)}
    own = next(layout for layout in family.layouts if layout.key_maps is None)
    defaults = {name: option.default for name, option in SLOTS[family.slot].options(family.part).items()}
    options = {**defaults, **{key: value for key, value in config.items() if key != "name"}}
    return Source(path, family.unpack(tensors), options, own)


def _layout_of(source: Source, family: Family) -> Layout:
    """The layout of the weights. AuroraError that says what they look like when it is none of the family's."""
    layout = source.layout or family.layout(source.tensors)
    if layout is not None:
        return layout
    like = looks_like(source.tensors)
    found = f"looks like {like}" if like else f"holds names such as {some(list(source.tensors)[:3]) or 'none at all'}"
    raise AuroraError(f"{source.path} holds no {family.part}: it {found}. {family.slot} {family.part!r} is read from "
                      f"{' or '.join(layout.title for layout in family.layouts)}")


# ---- what will be written ----------------------------------------------------------------------------------------


def plan(source: Source, target: Path, family: Family, *, to: str | None, dtype: str | None) -> Plan:
    """What is written where. AuroraError for another family, or sizes and shapes that fit no model of this one."""
    given, wanted = _layout_of(source, family), _target_layout(family, to)
    shapes = {name: tuple(tensor.shape) for name, tensor in source.tensors.items()}
    # a config that lies beside a file of the authors' is not of it
    if given.configure is not None:
        given.check(source.config)
    options = _options(source, given, family, shapes)
    ours = _our_shapes(family, options)
    expected = {name: _shape(pieces, ours) for name, pieces in _their_tensors(given, ours).items()}
    _check_shapes(source, family, expected, shapes)
    table = _table(given, wanted, ours)
    if given is wanted:
        table |= {name: (Piece(name),) for name in shapes if given.carries(name)}
    outputs, mapped, missing = _outputs(source, table, dtype)
    _check_copies(source, given)
    used = {name for each in mapped for name in each.sources}
    known = {name for name in shapes if name in expected or given.knows(name)}
    report = Report(
        part=f"{family.slot} {family.part}", source=str(source.path), target=str(target), source_layout=given.title,
        target_layout=wanted.title, options=options, mapped=mapped, missing=sorted(missing),
        unexpected=sorted(shapes.keys() - known), left_out=sorted(known - used),
        notes=list(wanted.notes),
    )
    config = None if wanted.configure is None else wanted.configure(options, _dtype_name(outputs))
    return Plan(outputs, config, report)


def _target_layout(family: Family, name: str | None) -> Layout:
    known = {layout.name: layout for layout in family.layouts}
    if name is None:
        return family.layouts[0]
    if name not in known:
        raise AuroraError(f"{family.slot} {family.part!r} has no layout {name!r}.{suggest(name, known)}")
    return known[name]


def _options(source: Source, layout: Layout, family: Family, shapes: Shapes) -> dict[str, Any]:
    """The options of the part that the weights are of."""
    if layout.key_maps is None:
        return family.options(shapes, source.config)
    table = _our_tensors(layout, layout.layers(shapes))
    present = {name: pieces for name, pieces in table.items() if all(piece.name in shapes for piece in pieces)}
    try:
        return family.options({name: _shape(pieces, shapes) for name, pieces in present.items()}, source.config)
    except (RuntimeError, IndexError) as error:
        raise AuroraError(f"{source.path} has tensors of a shape that no {family.part} has: {error}") from error


def _our_shapes(family: Family, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes under which the part keeps its weights, from the part itself."""
    config = {"name": family.part, **{key: value for key, value in options.items() if key != "vocab_size"}}
    with torch.device("meta"):
        part = SLOTS[family.slot].build(config, vocab_size=options.get("vocab_size"))
    return {name: tuple(tensor.shape) for name, tensor in part.state_dict().items()}


def _our_tensors(layout: Layout, layers: int) -> Table:
    """How our tensors are made of a layout's."""
    assert layout.key_maps is not None
    return {name: pieces for each in layout.key_maps(layers) for name, pieces in each.our_tensors().items()}


def _their_tensors(layout: Layout, ours: Shapes) -> Table:
    """How a layout's tensors are made of ours."""
    if layout.key_maps is None:
        return {name: (Piece(name),) for name in ours}
    layers = 1 + max((int(part) for name in ours for part in name.split(".")[1:2] if part.isdigit()), default=-1)
    return {name: pieces for each in layout.key_maps(layers) if all(name in ours for name in each.ours)
            for name, pieces in each.their_tensors().items()}


def _table(given: Layout, wanted: Layout, ours: Shapes) -> Table:
    """How the target's tensors are made of the source's."""
    theirs = _their_tensors(wanted, ours)
    if wanted.writes_copies:
        theirs |= {copy: theirs[of] for copy, of in wanted.copies.items()}
    if given is wanted:
        return {name: (Piece(name),) for name in theirs}
    source: Table = {name: (Piece(name),) for name in ours}
    if given.key_maps is not None:
        source |= _our_tensors(given, given.layers(_their_tensors(given, ours)))
    return {name: tuple(Piece(step.name, partial(_twice, step.view, piece.view))
                        for piece in pieces for step in source[piece.name])
            for name, pieces in theirs.items()}


def _twice(first: View, then: View, tensor: Tensor) -> Tensor:
    return then(first(tensor))


def _shape(pieces: tuple[Piece, ...], shapes: Shapes) -> tuple[int, ...]:
    # one number seen from everywhere; on the meta device, views would load hundreds of megabytes of torch
    seen = [tuple(piece.view(torch.zeros(()).expand(shapes[piece.name])).shape) for piece in pieces]
    return seen[0] if len(seen) == 1 else (sum(shape[0] for shape in seen), *seen[0][1:])


def _check_shapes(source: Source, family: Family, expected: Shapes, shapes: Shapes) -> None:
    unlike = [f"{name} is {list(shapes[name])} where {list(expected[name])} is needed" for name in expected
              if name in shapes and shapes[name] != expected[name]]
    if unlike:
        raise AuroraError(f"{source.path}: {len(unlike)} tensor(s) do not fit the {family.part} that its first layer "
                          f"describes: {some(unlike[:3])}")


def _outputs(source: Source, table: Table, dtype: str | None) -> tuple[dict[str, Output], list[Mapped], set[str]]:
    outputs, mapped, missing = {}, [], set()
    for name, pieces in table.items():
        absent = {piece.name for piece in pieces if piece.name not in source.tensors}
        missing |= absent
        if not absent:
            outputs[name] = output = _output(source, pieces, dtype)
            mapped.append(Mapped(name, tuple(piece.name for piece in pieces), output.shape, _name(output.dtype),
                                 output.nbytes))
    return outputs, mapped, missing


def _output(source: Source, pieces: tuple[Piece, ...], dtype: str | None) -> Output:
    tensors = [source.tensors[piece.name] for piece in pieces]
    own = tensors[0].dtype
    shapes = {piece.name: tuple(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)}

    def read() -> Iterator[Tensor]:
        for piece, tensor in zip(pieces, released(tensors, source.mapped), strict=True):
            yield piece.view(tensor)

    kept = DTYPES[dtype] if dtype and own.is_floating_point else own
    return Output(_shape(pieces, shapes), kept, read, source.mapped)


def _check_copies(source: Source, layout: Layout) -> None:
    """AuroraError when what should repeat another tensor differs from it."""
    for name, of in layout.copies.items():
        if name in source.tensors and of in source.tensors and not _equal(source, name, of):
            raise AuroraError(f"{source.path} has {name} of its own, other than {of}; only models whose embeddings "
                              "are tied are read")


def _equal(source: Source, name: str, of: str) -> bool:
    one, other = source.tensors[name], source.tensors[of]
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    blocks = zip(*(released(slices(tensor), source.mapped) for tensor in (one, other)), strict=True)
    return all(torch.equal(a, b) for a, b in blocks)


def _dtype_name(outputs: Mapping[str, Output]) -> str:
    """The dtype that most bytes are in."""
    held = Counter[str]()
    for output in outputs.values():
        held[_name(output.dtype)] += output.nbytes
    return held.most_common(1)[0][0] if held else "float32"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- writing -----------------------------------------------------------------------------------------------------


def is_folder(target: Path) -> bool:
    """Whether a folder is to be written. AuroraError for a file of a format that is not written."""
    if target.suffix in _OTHER_FORMATS:
        raise AuroraError(f"{target} ends in {target.suffix!r}; a .safetensors file, a .pth file or a folder can be "
                          "written")
    return target.suffix not in (SAFETENSORS, ".pth")


def write(planned: Plan, target: Path, shard_bytes: int, progress: Progress) -> None:
    """Writes what is planned, whole or not at all."""
    if not planned.outputs:
        raise AuroraError(f"{planned.report.source} holds nothing that could be written")
    folder, all_bytes = is_folder(target), planned.report.bytes
    require_room(target, all_bytes + _SPARE_BYTES)
    on_bytes = summed(progress, all_bytes)
    with replacing(target, folder=folder) as place:
        if folder:
            write_shards(place, planned.outputs, {"format": "pt"}, shard_bytes, on_bytes)
            if planned.config is not None:
                write_json(place / CONFIG_JSON, planned.config)
        elif target.suffix == SAFETENSORS:
            write_safetensors(place, planned.outputs, {"format": "pt"}, on_bytes)
        else:
            write_pth(place, planned.outputs, on_bytes)


def summed(progress: Progress, all_bytes: int) -> Callable[[int], None]:
    """What writers call with the bytes of each block, so that `progress` sees their sum."""
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        progress(done, all_bytes)

    return on_bytes
