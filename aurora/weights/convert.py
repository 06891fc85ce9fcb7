"""`aurora convert`: weights of a part from one layout or file format to another.

What is written is decided from names and shapes alone; then the weights are streamed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aurora.config import CONFIG_FILE, read_config
from aurora.errors import AuroraError, suggest
from aurora.files import read_json, replacing, require_free, require_room, write_json
from aurora.interfaces import Backbone
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
from aurora.weights.layouts import Family, Layout, Piece, Shapes, Table, looks_like, unchanged
from aurora.weights.loading import load_parts, mismatches, require_finite, some, split_tuned, unwrapped

CONFIG_JSON = "config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD_BYTES = 5 * 10**9
_OTHER_FORMATS = (".bin", ".pt", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")
_SPARE_BYTES = 2**20

Progress = Callable[[int, int], None]
"""Called with how many bytes of how many are written."""


class Source(NamedTuple):
    """Weights of a part, in one of its layouts."""

    path: Path
    family: Family
    layout: Layout
    tensors: dict[str, Tensor]
    config: dict[str, Any]  # of config.json, or the part's options of a model folder
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
    planned = plan(open_source(source, family), to=to, dtype=dtype)
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
    family = getattr(SLOTS[slot].get(part), "layouts", None)
    if not isinstance(family, Family):
        raise AuroraError(f"{slot} {part!r} has one layout only, so there is nothing to convert; "
                          "`aurora convert --help` names the parts that have several")
    return family


def open_source(path: str | Path, family: Family) -> Source:
    """Weights in any layout: a file, a folder of files, or a model folder of Aurora, of which the part is taken.

    AuroraError that says what they look like when the family has no such layout, or which other model they are.
    """
    path = Path(path)
    if (path / CONFIG_FILE).is_file():
        return _open_model(path, family)
    tensors = unwrapped(open_tensors(path), family.layout)
    layout = family.layout(tensors)
    if layout is None:
        like = looks_like(tensors)
        found = f"looks like {like}" if like else f"holds names such as {some(list(tensors)[:3]) or 'none at all'}"
        raise AuroraError(f"{path} holds no {family.part}: it {found}. {family.slot} {family.part!r} is read from "
                          f"{' or '.join(layout.title for layout in family.layouts)}")
    beside = (path if path.is_dir() else path.parent) / CONFIG_JSON
    config = read_json(beside) if beside.is_file() else {}
    source = Source(path, family, layout, tensors, config, are_mapped(path))
    # a config that lies beside a file of the authors' is not of it
    if layout.configure is not None:
        try:
            layout.check(source.config)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise AuroraError(f"{beside.parent}: {error}") from error
    for name, of in layout.copies.items():
        if name in tensors and of in tensors and not _equal(source, name, of):
            raise AuroraError(f"{path} has {name} of its own, other than {of}; only models whose embeddings are tied "
                              "are read")
    return source


def _open_model(path: Path, family: Family) -> Source:
    config = read_config(path).part(family.slot)
    if config["name"] != family.part:
        raise AuroraError(f"{path} is a model with {family.slot} {config['name']!r}, not {family.part!r}")
    prefix = f"{family.slot}."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in open_tensors(path).items()
               if name.startswith(prefix)}
    own = next(layout for layout in family.layouts if not layout.key_maps)
    defaults = {name: option.default for name, option in SLOTS[family.slot].options(family.part).items()}
    options = {**defaults, **{key: value for key, value in config.items() if key != "name"}}
    return Source(path, family, own, family.unpack(tensors), options)


def _equal(source: Source, name: str, of: str) -> bool:
    one, other = source.tensors[name], source.tensors[of]
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    blocks = zip(*(released(slices(tensor), source.mapped) for tensor in (one, other)), strict=True)
    return all(torch.equal(a, b) for a, b in blocks)


def load_base(part: nn.Module, source: Source, *, some_of: bool = False) -> None:
    """Fills a part with base weights in any of its layouts. With `some_of`, what it has no place for is left out. A
    backbone takes its tuned initial state along, where there is one.

    AuroraError, before anything changes, that names what is missing, unexpected or of another shape by the names of the
    source; and for values that are not finite.
    """
    layout = source.layout
    own = shapes_of(split_tuned(part.state_dict())[0])
    wanted = {name: _seen(pieces, own) for name, pieces in layout.their_tensors(own).items()}
    given, tuned = split_tuned(source.tensors)
    carried = next(filter(layout.carries, given), None)
    if carried:
        raise AuroraError(f"{source.path} holds tuned initial states ({carried}, …), which {type(part).__name__} does "
                          "not read; give the checkpoint from before state tuning")
    given = {name: tensor for name, tensor in given.items() if name in wanted or not (some_of or layout.knows(name))}
    faults = mismatches(wanted, given)
    if faults:
        sizes = "Are its sizes those of this configuration?"
        with suppress(AuroraError):
            found = _options(source, shapes_of(given))
            sizes = f"By its shapes, it has {', '.join(f'{key} {value}' for key, value in found.items())}"
        raise AuroraError(f"{source.path} does not fit {type(part).__name__}: {faults}. {sizes}")
    if tuned:
        assert isinstance(part, Backbone)
        part.start_from(tuned)
    table = layout.our_tensors(given)
    viewed = {name: [piece.view(given[piece.name]) for piece in table[name]] for name in own}
    tensors = {name: torch.cat(pieces) if len(pieces) > 1 else pieces[0] for name, pieces in viewed.items()}
    load_parts(part, tensors, source=source.path, mapped=source.mapped and not layout.key_maps)


# ---- what will be written ----------------------------------------------------------------------------------------


def plan(source: Source, *, to: str | None, dtype: str | None) -> Conversion:
    """What is written. AuroraError for sizes and shapes that fit no model of the family."""
    family, given, wanted = source.family, source.layout, _target_layout(source.family, to)
    shapes = shapes_of(source.tensors)
    options = _options(source, shapes)
    ours = _our_shapes(family, options)
    expected = {name: tuple(_seen(pieces, ours).shape) for name, pieces in given.their_tensors(ours).items()}
    unlike = [f"{name} is {list(shapes[name])} where {list(shape)} is needed" for name, shape in expected.items()
              if shapes.get(name, shape) != shape]
    if unlike:
        raise AuroraError(f"{source.path}: {len(unlike)} tensor(s) do not fit the {family.part} that its first layer "
                          f"describes: {some(unlike[:3])}")
    table = _table(given, wanted, ours, shapes)
    outputs = {name: _output(source, pieces, shapes, dtype) for name, pieces in table.items()
               if all(piece.name in shapes for piece in pieces)}
    most = _name(max(outputs.values(), key=lambda output: output.nbytes).dtype) if outputs else "float32"
    used = {name for output in outputs.values() for name in output.sources}
    known = {name for name in shapes if name in expected or given.knows(name)}
    return Conversion(
        part=f"{family.slot} {family.part}", source_layout=given.title, target_layout=wanted.title, options=options,
        outputs=outputs,
        config=None if wanted.configure is None else wanted.configure(options, most),
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


def _options(source: Source, shapes: Shapes) -> dict[str, Any]:
    """The options of the part that the weights are of."""
    try:
        present = {name: tuple(_seen(pieces, shapes).shape)
                   for name, pieces in source.layout.our_tensors(shapes).items()
                   if all(piece.name in shapes for piece in pieces)}
        return source.family.options(present, source.config)
    except AuroraError as error:
        raise AuroraError(f"{source.path}: {error}") from error
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise AuroraError(f"{source.path} has tensors or a config.json of no {source.family.part}: {error}") from error


def _our_shapes(family: Family, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes under which the part keeps its weights, from the part itself."""
    config = {"name": family.part, **{key: value for key, value in options.items() if key != "vocab_size"}}
    with torch.device("meta"):
        part = SLOTS[family.slot].build(config, vocab_size=options.get("vocab_size"))
    return shapes_of(part.state_dict())


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _table(given: Layout, wanted: Layout, ours: Shapes, shapes: Shapes) -> Table:
    """How the target's tensors are made of the source's."""
    theirs = wanted.their_tensors(ours)
    if wanted.writes_copies:
        theirs |= {copy: theirs[of] for copy, of in wanted.copies.items()}
    if given is wanted:
        return unchanged([*theirs, *filter(given.carries, shapes)])
    source = unchanged(ours) | given.our_tensors(shapes)
    return {name: tuple(Piece(step.name, step.views + piece.views) for piece in pieces for step in source[piece.name])
            for name, pieces in theirs.items()}


def _seen(pieces: tuple[Piece, ...], shapes: Shapes) -> Tensor:
    """A tensor of the shape that pieces of such shapes make, in no memory."""
    # on the meta device, views would load hundreds of megabytes of torch
    seen = [piece.view(torch.zeros(()).expand(shapes[piece.name])) for piece in pieces]
    return seen[0] if len(seen) == 1 else seen[0][:1].expand(sum(map(len, seen)), *seen[0].shape[1:])


def _output(source: Source, pieces: tuple[Piece, ...], shapes: Shapes, dtype: str | None) -> Output:
    sources = tuple(piece.name for piece in pieces)
    tensors = [source.tensors[name] for name in sources]

    def read() -> Iterator[Tensor]:
        for piece, tensor in zip(pieces, released(tensors, source.mapped), strict=True):
            require_finite(source.path, piece.name, tensor, mapped=source.mapped)
            yield piece.view(tensor)

    own = tensors[0].dtype
    kept = DTYPES[dtype] if dtype and own.is_floating_point else own
    return Output(tuple(_seen(pieces, shapes).shape), kept, read, source.mapped, sources)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
