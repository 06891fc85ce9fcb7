"""`aurora convert`: weights of a part from one layout or file format to another.

What is written is decided from names and shapes alone; then the weights are streamed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
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
from aurora.weights.layouts import Family, Layout, Piece, Shapes, Table, layers_of, looks_like, unchanged
from aurora.weights.loading import some
from aurora.weights.model_folder import CONFIG_FILE, read_config

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


@dataclass(frozen=True)
class Conversion:
    """What is written, and what becomes of every name."""

    part: str
    source_layout: str
    target_layout: str
    options: dict[str, Any]
    config: dict[str, Any] | None  # of the target's config.json
    outputs: dict[str, Output]
    missing: list[str]  # names that the source should have
    unexpected: list[str]  # names of the source that the layout does not have
    left_out: list[str]  # names of the source that the target has no place for
    notes: list[str]

    @property
    def bytes(self) -> int:
        """Bytes of data in the target."""
        return sum(output.nbytes for output in self.outputs.values())

    def report(self, source: Path, target: Path) -> dict[str, Any]:
        """For JSON."""
        mapped = [{"target": name, "sources": output.sources, "shape": output.shape, "dtype": _name(output.dtype),
                   "bytes": output.nbytes} for name, output in self.outputs.items()]
        described = {key: value for key, value in vars(self).items() if key not in ("config", "outputs")}
        return {"source": str(source), "target": str(target), **described, "mapped": mapped, "bytes": self.bytes}


def convert(
    source: Path, target: Path, *, slot: str, part: str, to: str | None = None, dtype: str | None = None,
    force: bool = False, shard_bytes: int = SHARD_BYTES, accept: Callable[[Conversion], None] = lambda conversion: None,
    progress: Progress = lambda done, all: None,
) -> Conversion:
    """Writes the weights of a part in another layout (`to`; by default the one that its `load_base` reads), whole or
    not at all.

    `target` ends in .safetensors or .pth, or is a folder. `accept` sees the conversion before anything is written and
    may raise. AuroraError for whatever does not fit.
    """
    family = find_family(slot, part)
    folder = is_folder(target)
    require_free(target, folder=folder, force=force)
    planned = plan(open_source(source, family), family, to=to, dtype=dtype)
    accept(planned)
    if not planned.outputs:
        raise AuroraError(f"{source} holds nothing that could be written")
    require_room(target, planned.bytes + _SPARE_BYTES)
    on_bytes = summed(progress, planned.bytes)
    with replacing(target, folder=folder) as place:
        if folder:
            write_shards(place, planned.outputs, {"format": "pt"}, shard_bytes, on_bytes)
            if planned.config is not None:
                write_json(place / CONFIG_JSON, planned.config)
        elif target.suffix == SAFETENSORS:
            write_safetensors(place, planned.outputs, {"format": "pt"}, on_bytes)
        else:
            write_pth(place, planned.outputs, on_bytes)
    return planned


def is_folder(target: Path) -> bool:
    """Whether a folder is to be written. AuroraError for a file of a format that is not written."""
    if target.suffix in _OTHER_FORMATS:
        raise AuroraError(f"{target} ends in {target.suffix!r}; a .safetensors file, a .pth file or a folder can be "
                          "written")
    return target.suffix not in (SAFETENSORS, ".pth")


def summed(progress: Progress, all_bytes: int) -> Callable[[int], None]:
    """What writers call with the bytes of each block, so that `progress` sees their sum."""
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        progress(done, all_bytes)

    return on_bytes


# ---- what is converted -------------------------------------------------------------------------------------------


def find_family(slot: str, part: str) -> Family:
    """The layouts of a part's weights. AuroraError for a part that has one only."""
    if part not in SLOTS[slot].known():
        raise AuroraError(f"no {slot} named {part!r}.{suggest(part, _convertible(slot))}")
    family = _family(slot, part)
    if family is None:
        raise AuroraError(f"{slot} {part!r} has one layout only, so there is nothing to convert; "
                          f"{', '.join(_convertible(slot))} have several")
    return family


def _family(slot: str, part: str) -> Family | None:
    family = getattr(SLOTS[slot].get(part), "layouts", None)
    return family if isinstance(family, Family) else None


def _convertible(slot: str) -> list[str]:
    """The parts whose weights come in several layouts, of those that can be imported."""
    found = []
    for name in SLOTS[slot].known():
        with suppress(AuroraError):
            if _family(slot, name):
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
    """The layout of the weights. AuroraError that says what they look like when the family does not have it."""
    layout = source.layout or family.layout(source.tensors)
    if layout is not None:
        return layout
    like = looks_like(source.tensors)
    found = f"looks like {like}" if like else f"holds names such as {some(list(source.tensors)[:3]) or 'none at all'}"
    raise AuroraError(f"{source.path} holds no {family.part}: it {found}. {family.slot} {family.part!r} is read from "
                      f"{' or '.join(layout.title for layout in family.layouts)}")


# ---- what will be written ----------------------------------------------------------------------------------------


def plan(source: Source, family: Family, *, to: str | None, dtype: str | None) -> Conversion:
    """What is written. AuroraError for another family, or sizes and shapes that fit no model of this one."""
    given, wanted = _layout_of(source, family), _target_layout(family, to)
    shapes = {name: tuple(tensor.shape) for name, tensor in source.tensors.items()}
    # a config that lies beside a file of the authors' is not of it
    if given.configure is not None:
        given.check(source.config)
    options = _options(source, given, family, shapes)
    ours = _our_shapes(family, options)
    expected = {name: _shape(pieces, ours) for name, pieces in given.their_tensors(ours).items()}
    _check_shapes(source, family, expected, shapes)
    table = _table(given, wanted, ours, shapes)
    outputs = {name: _output(source, pieces, shapes, dtype) for name, pieces in table.items()
               if all(piece.name in shapes for piece in pieces)}
    _check_copies(source, given)
    used = {name for output in outputs.values() for name in output.sources}
    known = {name for name in shapes if name in expected or given.knows(name)}
    return Conversion(
        part=f"{family.slot} {family.part}", source_layout=given.title, target_layout=wanted.title, options=options,
        outputs=outputs,
        config=None if wanted.configure is None else wanted.configure(options, _dtype_name(outputs)),
        missing=sorted({piece.name for pieces in table.values() for piece in pieces} - shapes.keys()),
        unexpected=sorted(shapes.keys() - known), left_out=sorted(known - used), notes=list(wanted.notes),
    )


def _target_layout(family: Family, name: str | None) -> Layout:
    known = {layout.name: layout for layout in family.layouts}
    if name is None:
        return family.layouts[0]
    if name not in known:
        raise AuroraError(f"{family.slot} {family.part!r} has no layout {name!r}.{suggest(name, known)}")
    return known[name]


def _options(source: Source, layout: Layout, family: Family, shapes: Shapes) -> dict[str, Any]:
    """The options of the part that the weights are of."""
    table = layout.our_tensors(layout.layers(shapes)) or unchanged(shapes)
    try:
        present = {name: _shape(pieces, shapes) for name, pieces in table.items()
                   if all(piece.name in shapes for piece in pieces)}
        return family.options(present, source.config)
    except (RuntimeError, IndexError) as error:
        raise AuroraError(f"{source.path} has tensors of a shape that no {family.part} has: {error}") from error


def _our_shapes(family: Family, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes under which the part keeps its weights, from the part itself."""
    config = {"name": family.part, **{key: value for key, value in options.items() if key != "vocab_size"}}
    with torch.device("meta"):
        part = SLOTS[family.slot].build(config, vocab_size=options.get("vocab_size"))
    return {name: tuple(tensor.shape) for name, tensor in part.state_dict().items()}


def _table(given: Layout, wanted: Layout, ours: Shapes, shapes: Shapes) -> Table:
    """How the target's tensors are made of the source's."""
    theirs = wanted.their_tensors(ours)
    if wanted.writes_copies:
        theirs |= {copy: theirs[of] for copy, of in wanted.copies.items()}
    if given is wanted:
        return unchanged([*theirs, *filter(given.carries, shapes)])
    source = unchanged(ours) | given.our_tensors(layers_of(ours))
    return {name: tuple(Piece(step.name, step.views + piece.views) for piece in pieces for step in source[piece.name])
            for name, pieces in theirs.items()}


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


def _output(source: Source, pieces: tuple[Piece, ...], shapes: Shapes, dtype: str | None) -> Output:
    sources = tuple(piece.name for piece in pieces)
    tensors = [source.tensors[name] for name in sources]

    def read() -> Iterator[Tensor]:
        for piece, tensor in zip(pieces, released(tensors, source.mapped), strict=True):
            yield piece.view(tensor)

    own = tensors[0].dtype
    kept = DTYPES[dtype] if dtype and own.is_floating_point else own
    return Output(_shape(pieces, shapes), kept, read, source.mapped, sources)


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
