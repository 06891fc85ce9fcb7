"""How precisely a model computes when it is used."""

from __future__ import annotations

from torch import nn

from aurora.errors import AuroraError, suggest
from aurora.interfaces import Backbone
from aurora.registry import import_part

QUANTIZATIONS = ("int8",)


def quantize(backbone: Backbone, kind: str | None) -> None:
    """Rounds the matrices of a language model, which are most of what is read per token, to "int8"; None does nothing.

    On the meta device it rounds what will be loaded, each part when it is read, so that the model is never held whole
    in another dtype. AuroraError for another kind, or a backbone that has none to round.
    """
    if kind is None:
        return
    if kind not in QUANTIZATIONS:
        raise AuroraError(f"quantize {kind!r} is unknown.{suggest(kind, list(QUANTIZATIONS))}")
    linears = [module for module in backbone.modules() if isinstance(module, _linear())]
    if not linears:
        raise AuroraError(f"quantize {kind!r}: backbone {type(backbone).__name__} is another library's, whose layers "
                          "cannot be rounded; those of our own backbones can")
    if any(module.weight.is_meta for module in linears):
        backbone.register_load_state_dict_post_hook(_round)  # type: ignore[no-untyped-call]
    else:
        _round(backbone)


def _round(backbone: nn.Module, _: object = None) -> None:
    import_part("components.kernels.int8").quantize_linears(backbone, _linear())


def _linear() -> type[nn.Linear]:
    return import_part("components.backbone._layers").Linear  # type: ignore[no-any-return]
