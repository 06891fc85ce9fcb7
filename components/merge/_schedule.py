"""How removals are spread over the blocks of an encoder.

A `Capacity` says how many of n tokens one block can remove. It must leave a remainder that neither shrinks nor grows
by more than one when n grows by one: that is what makes every count between none and all reachable exactly.
"""

from collections.abc import Callable, Iterable

from aurora.errors import AuroraError

Capacity = Callable[[int], int]
Schedule = tuple[int, ...]


def half(tokens: int) -> int:
    """Even tokens go into odd ones: all the even ones can, unless none is odd."""
    return (tokens + 1) // 2 if tokens > 1 else 0


def all_but_one(tokens: int) -> int:
    """Only the last token has to stay."""
    return tokens - 1


def check_keep(part: str, patches: int, keep: int) -> None:
    """AuroraError unless 1 ≤ keep ≤ patches."""
    if not 1 <= keep <= patches:
        raise AuroraError(f"merge {part!r}: cannot keep {keep} of {patches} patches; expected 1 to {patches}")


def limited(patches: int, wanted: Iterable[int], capacity: Capacity) -> Schedule:
    """What each block really removes when `wanted` is asked of it."""
    removed = []
    for remove in wanted:
        removed.append(min(remove, capacity(patches)))
        patches -= removed[-1]
    return tuple(removed)


def exact(part: str, patches: int, depth: int, keep: int, capacity: Capacity) -> Schedule:
    """Removals that leave exactly `keep`: one level for all blocks, one more for the first few.

    Where late blocks cannot remove that many, the level rises, so that early blocks remove more. AuroraError when
    even removing all that each block can leaves more than `keep`.
    """
    check_keep(part, patches, keep)
    total = patches - keep
    level = -(-total // depth)
    while sum(limited(patches, [level] * depth, capacity)) < total:
        level += 1
        if level > patches:
            least = patches - sum(limited(patches, [patches] * depth, capacity))
            raise AuroraError(f"merge {part!r}: {depth} blocks cannot merge {patches} patches into {keep}; "
                              f"the smallest they reach is {least}")
    for more in range(depth + 1):
        removed = limited(patches, [level] * more + [max(0, level - 1)] * (depth - more), capacity)
        if sum(removed) == total:
            return removed
    raise AssertionError(f"{part}: the capacity breaks the rule at the top of this file")


def floor(patches: int, depth: int, keep: int, capacity: Capacity) -> Schedule:
    """The same whole number in every block, rounded down, so that at least `keep` remain."""
    return limited(patches, [(patches - keep) // depth] * depth, capacity)


def floor_to(part: str, patches: int, depth: int, keep: int, capacity: Capacity) -> Schedule:
    """The `floor` schedule that leaves exactly `keep`. AuroraError when there is none."""
    check_keep(part, patches, keep)
    above = left = patches
    removed: Schedule = (0,) * depth
    for level in range(patches + 1):
        removed = limited(patches, [level] * depth, capacity)
        above, left = left, patches - sum(removed)
        if left <= keep:
            break
    if left == keep:
        return removed
    near = f"{above} or {left}" if left < keep else f"at least {left}"
    raise AuroraError(f"merge {part!r}: the floor schedule over {depth} blocks cannot keep {keep} of {patches} "
                      f"patches; it keeps {near}, and schedule 'exact' reaches what lies between")
