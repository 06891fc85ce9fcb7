"""How precisely a model computes when it is used."""

from __future__ import annotations

from aurora.errors import AuroraError, suggest
from aurora.interfaces import Backbone
from aurora.registry import import_part

QUANTIZATIONS = ("int8",)


def quantize(backbone: Backbone, kind: str | None) -> None:
    """Rounds the matrices of a language model, which are most of what is read per token, to "int8"; None does nothing.

    AuroraError for another kind, or a backbone that has none to round.
    """
    if kind is None:
        return
    if kind not in QUANTIZATIONS:
        raise AuroraError(f"quantize {kind!r} is unknown.{suggest(kind, list(QUANTIZATIONS))}")
    linear = import_part("components.backbone._layers").Linear
    if not import_part("components.kernels.int8").quantize_linears(backbone, linear):
        raise AuroraError(f"quantize {kind!r}: backbone {type(backbone).__name__} is another library's, whose layers "
                          "cannot be rounded; those of our own backbones can")
