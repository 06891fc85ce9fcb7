"""Which linear layers of a part a LoRA changes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from aurora.errors import AuroraError, suggest


def find_targets(where: str, part: nn.Module, targets: Sequence[str] | str | None) -> list[str]:
    """Full names of the linear layers that `targets` means, as `peft` reads it: a list holds ends of names, one text
    is a regex of whole names. None means every linear layer of the part's blocks, or of a part without blocks.

    AuroraError, with the names that there are, for a target that means none.
    """
    linear = [name for name, module in part.named_modules() if isinstance(module, nn.Linear)]
    if targets is None:
        found = _in_blocks(part, linear)
        if not found:
            raise AuroraError(f"{where}: {type(part).__name__} has no linear layer that a LoRA could change by itself; "
                              f"name some. Known: {', '.join(linear) or 'none'}")
        return found
    if isinstance(targets, str):
        found = [name for name in linear if _matches(where, targets, name)]
        if not found:
            raise _nothing(where, part, targets, linear)
        return found
    chosen: set[str] = set()
    for target in targets:
        ends = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not ends:
            raise _nothing(where, part, target, linear)
        chosen.update(ends)
    return [name for name in linear if name in chosen]


def _in_blocks(part: nn.Module, linear: list[str]) -> list[str]:
    kind = getattr(part, "block_class", None)
    if kind is None:
        return linear
    blocks = tuple(f"{name}." for name, module in part.named_modules() if isinstance(module, kind))
    return [name for name in linear if name.startswith(blocks)]


def _matches(where: str, pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise AuroraError(f"{where} {pattern!r} is no regex: {error}; ends of names are given as a list") from error


def _nothing(where: str, part: nn.Module, target: str, linear: Iterable[str]) -> AuroraError:
    kinds = {type(module).__name__ for name, module in part.named_modules() if f".{name}".endswith(f".{target}")}
    if kinds:
        reason = f"{target!r} is of the kind {', '.join(sorted(kinds))}, and LoRA changes linear layers"
    elif any(f".{name}".endswith(f".{target}") for name, _ in part.named_parameters()):
        reason = f"{target!r} is a parameter of its own, and LoRA changes linear layers"
    else:
        reason = f"{target!r} is the name of no linear layer"
    # without the number of the block, what is meant appears once
    short = dict.fromkeys(re.sub(r"^.*\.\d+\.(?=\D)", "", name) for name in linear)
    return AuroraError(f"{where}: {reason} of {type(part).__name__}.{suggest(target, short)}")
