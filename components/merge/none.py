from aurora.errors import AuroraError
from aurora.interfaces import BlockView, Merge, MergeStrategy
from aurora.registry import MERGE


@MERGE.register
class NoMerge(MergeStrategy):
    """Keeps all patches; a keep ratio has no effect."""

    proportional_attention = False

    def keep(self, patches: int, depth: int, ratio: float) -> int:
        return patches

    def schedule(self, patches: int, depth: int, keep: int) -> tuple[int, ...]:
        if keep != patches:
            raise AuroraError(f"merge 'none' keeps all {patches} patches and cannot keep {keep}; "
                              "merge 'tome' or 'pool' can")
        return (0,) * depth

    def match(self, view: BlockView, remove: int) -> Merge:
        raise AuroraError(f"merge 'none' was asked to remove {remove} tokens; it removes none")
