"""What a conversion will write, decided from names and shapes alone: no weight is read for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aurora.conversion.layouts import Family, Layout, Piece, Shapes, Table, View
from aurora.conversion.reading import forget
from aurora.conversion.report import Mapped, Report, some
from aurora.conversion.source import Source, layout_of
from aurora.conversion.writing import Output, slices
from aurora.errors import AuroraError, suggest
from aurora.registry import SLOTS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Plan(NamedTuple):
    """What will be written, and its account."""

    outputs: dict[str, Output]
    config: dict[str, Any] | None
    report: Report


def plan(source: Source, target: Path, family: Family, *, to: str | None, dtype: str | None) -> Plan:
    """What is written where. AuroraError for another family, or sizes and shapes that fit no model of this one."""
    given, wanted = layout_of(source, family), _target_layout(family, to)
    shapes = {name: tuple(tensor.shape) for name, tensor in source.tensors.items()}
    # a config that lies beside a file of the authors' is not of it
    if given.configure is not None:
        given.check(source.config)
    options = _options(source, given, family, shapes)
    ours = _our_shapes(family, options)
    expected = {name: _shape(pieces, ours) for name, pieces in _theirs(given, ours).items()}
    _check_shapes(source, family, expected, shapes)
    table = _table(given, wanted, ours)
    if given is wanted:
        table |= {name: (Piece(name),) for name in shapes if given.carries(name)}
    outputs, mapped, missing = _outputs(source, table, dtype)
    _check_copies(source, given)
    used = {name for each in mapped for name in each.sources}
    known = {name for name in shapes if name in expected or given.knows(name)}
    report = Report(
        part=f"{family.slot} {family.part}", source=str(source.path), target=str(target), source_layout=given.told,
        target_layout=wanted.told, options=options, mapped=mapped, missing=sorted(missing),
        unexpected=sorted(shapes.keys() - known), left_out=sorted(known - used),
        notes=list(wanted.notes),
    )
    config = None if wanted.configure is None else wanted.configure(options, _dtype_name(outputs))
    return Plan(outputs, config, report)


def refuse_gaps(report: Report, *, missing_too: bool, unexpected_too: bool) -> None:
    """AuroraError when names are missing or unexpected and that was not allowed."""
    if report.missing and not missing_too:
        raise AuroraError(f"{report.source} lacks {len(report.missing)} tensor(s): {some(report.missing)}; "
                          "--allow-missing writes what is there")
    if report.unexpected and not unexpected_too:
        raise AuroraError(f"{report.source} holds {len(report.unexpected)} unexpected tensor(s): "
                          f"{some(report.unexpected)}; --allow-unexpected leaves them out")


def _target_layout(family: Family, name: str | None) -> Layout:
    known = {layout.name: layout for layout in family.layouts}
    if name is None:
        return family.layouts[0]
    if name not in known:
        raise AuroraError(f"{family.slot} {family.part!r} has no layout {name!r}.{suggest(name, known)}")
    return known[name]


def _options(source: Source, layout: Layout, family: Family, shapes: Shapes) -> dict[str, Any]:
    """The options of the part that the weights are of."""
    if layout.bonds is None:
        return family.options(shapes, source.config)
    back: Table = {}
    for bond in layout.bonds(layout.layers(shapes)):
        back |= bond.to_ours()
    present = {name: pieces for name, pieces in back.items() if all(piece.name in shapes for piece in pieces)}
    try:
        return family.options({name: _shape(pieces, shapes) for name, pieces in present.items()}, source.config)
    except (RuntimeError, IndexError) as error:
        raise AuroraError(f"{source.path} has tensors of a shape that no {family.part} has: {error}") from error


def _our_shapes(family: Family, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes under which the part keeps its weights, from the part itself."""
    injected = {key: value for key, value in options.items() if key == "vocab_size"}
    with torch.device("meta"):
        part = SLOTS[family.slot].build({"name": family.part, **{key: value for key, value in options.items()
                                                                 if key not in injected}}, **injected)
    return {name: tuple(tensor.shape) for name, tensor in part.state_dict().items()}


def _theirs(layout: Layout, ours: Shapes) -> Table:
    """How a layout's tensors are made of ours."""
    if layout.bonds is None:
        return {name: (Piece(name),) for name in ours}
    table: Table = {}
    for bond in layout.bonds(1 + max((int(part) for name in ours for part in name.split(".")[1:2] if part.isdigit()),
                                     default=-1)):
        if all(name in ours for name in bond.ours):
            table |= bond.to_theirs()
    return table


def _table(given: Layout, wanted: Layout, ours: Shapes) -> Table:
    """How the target's tensors are made of the source's."""
    forth = _theirs(wanted, ours)
    if wanted.writes_copies:
        forth |= {copy: forth[of] for copy, of in wanted.copies.items()}
    if given is wanted:
        return {name: (Piece(name),) for name in forth}
    back: Table = {name: (Piece(name),) for name in ours}
    if given.bonds is not None:
        for bond in given.bonds(given.layers(_theirs(given, ours))):
            back |= bond.to_ours()
    return {name: tuple(step for piece in pieces for step in _through(piece, back[piece.name]))
            for name, pieces in forth.items()}


def _through(piece: Piece, made: tuple[Piece, ...]) -> Iterator[Piece]:
    """The pieces of the source that a piece of ours is made of."""
    for step in made:
        yield Piece(step.name, partial(_twice, step.view, piece.view))


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
        if absent:
            continue
        output = _output(source, pieces, dtype)
        outputs[name] = output
        mapped.append(Mapped(target=name, sources=tuple(piece.name for piece in pieces), shape=output.shape,
                             dtype=str(output.dtype).removeprefix("torch."), bytes=output.nbytes))
    return outputs, mapped, missing


def _output(source: Source, pieces: tuple[Piece, ...], dtype: str | None) -> Output:
    tensors = [source.tensors[piece.name] for piece in pieces]
    own = tensors[0].dtype
    shapes = {piece.name: tuple(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)}

    def read() -> Iterator[Tensor]:
        for piece, tensor in zip(pieces, tensors, strict=True):
            yield piece.view(tensor)
            if source.mapped:
                forget(tensor)

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
    for a, b in zip(slices(one), slices(other), strict=True):
        if not torch.equal(a, b):
            return False
        if source.mapped:
            forget(a)
            forget(b)
    return True


def _dtype_name(outputs: Mapping[str, Output]) -> str:
    """The dtype that most bytes are in."""
    held: dict[str, int] = {}
    for output in outputs.values():
        name = str(output.dtype).removeprefix("torch.")
        held[name] = held.get(name, 0) + output.nbytes
    return max(held, key=lambda name: held[name], default="float32")
