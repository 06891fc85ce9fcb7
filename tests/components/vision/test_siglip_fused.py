"""A small SigLIP in one call of our own kernels against its modules, and when the modules have to compute."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aurora.interfaces import BlockView, Merge
from aurora.registry import MERGE, SORT, VISION
from aurora.types import VisualTokens
from components.kernels._native import library, missing
from components.merge.tome import TokenMerging
from components.vision import siglip

pytestmark = pytest.mark.skipif(
    missing("vit") is not None or not library("attention").attention_supported(), reason="needs a CPU with AVX-512")

SMALL = {"image_size": 48, "patch_size": 6, "width": 64, "layers": 4, "heads": 4, "mlp_width": 128}
UNEVEN = {"image_size": 25, "patch_size": 5, "width": 36, "layers": 3, "heads": 3, "mlp_width": 50}
TOME, SIZE = {"name": "tome"}, {"name": "size"}


def build(size: dict[str, int], **options: Any) -> Any:
    """A tower whose every weight matters."""
    torch.manual_seed(0)
    vision: Any = VISION.build({"name": "siglip", **size, **options}).eval()
    with torch.no_grad():
        for weight in vision.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return vision


def pixels(vision: Any, frames: int, rows: int | None = None, columns: int | None = None) -> Tensor:
    side = vision.prepare.patch_size
    shape = (frames, 3, (rows or vision.side) * side, (columns or vision.side) * side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(frames))


class Both:
    """Calls a tower and says whether the kernels computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fused: list[bool] = []
        read = siglip.fused_read

        def recorded(*given: Any) -> VisualTokens | None:
            tokens = read(*given) if self.allowed else None
            self.fused.append(tokens is not None)
            return tokens

        self.allowed = True
        monkeypatch.setattr(siglip, "fused_read", recorded)

    def __call__(self, vision: Any, frames: Tensor, merge: Any, sort: Any, keep: int, *, by_modules: bool = False
                 ) -> VisualTokens:
        self.allowed = not by_modules
        tokens: VisualTokens = vision(frames, merge=merge, sort=sort, keep=keep)
        return tokens


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Both:
    return Both(monkeypatch)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("size", "grid"), [
    (SMALL, (8, 8)), (SMALL, (5, 7)), (SMALL, (3, 1)), (SMALL, (1, 1)), (UNEVEN, (5, 5)),
])
@pytest.mark.parametrize(("merge", "sort", "ratio"), [
    (TOME, SIZE, 0.25), (TOME, SIZE, 0.97), ({**TOME, "schedule": "floor"}, {**SIZE, "order": "descending"}, 0.3),
    ({**TOME, "proportional_attention": False}, SIZE, 0.4), (TOME, {**SIZE, "where": "final"}, 0.5),
    (TOME, {"name": "raster", "where": "final"}, 0.25), ({"name": "none"}, {"name": "raster"}, 1.0),
    ({"name": "pool"}, {"name": "raster"}, 1.0),
])
@torch.inference_mode()
def test_it_computes_what_the_modules_do(
    both: Both, size: dict[str, int], grid: tuple[int, int], merge: dict[str, Any], sort: dict[str, Any], ratio: float,
    threads: int,
) -> None:
    vision, merging, sorting = build(size), MERGE.build(merge), SORT.build(sort)
    frames = pixels(vision, 5, *grid)
    keep = merging.keep(grid[0] * grid[1], vision.depth, ratio)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = both(vision, frames, merging, sorting, keep)
        expected = both(vision, frames, merging, sorting, keep, by_modules=True)
    finally:
        torch.set_num_threads(before)
    assert both.fused == [True, False]
    assert torch.equal(found.size, expected.size) and torch.equal(found.owner, expected.owner)
    torch.testing.assert_close(found.features, expected.features, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("feature_layer", [-1, -3])
@torch.inference_mode()
def test_the_final_norm_and_fewer_blocks(both: Both, feature_layer: int) -> None:
    vision, merge, sort = build(SMALL, feature_layer=feature_layer), MERGE.build(TOME), SORT.build(SIZE)
    frames = pixels(vision, 2)
    found = both(vision, frames, merge, sort, 20)
    expected = both(vision, frames, merge, sort, 20, by_modules=True)
    assert both.fused == [True, False]
    torch.testing.assert_close(found.features, expected.features, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_frame_is_the_same_beside_any_others_and_on_any_number_of_threads(both: Both) -> None:
    """Bit for bit, also of more frames than go through the blocks together."""
    vision, merge, sort = build(SMALL), MERGE.build(TOME), SORT.build(SIZE)
    frames = pixels(vision, 37)
    whole = both(vision, frames, merge, sort, 13)
    threads = torch.get_num_threads()
    try:
        for count, part in ((1, slice(0, 1)), (2, slice(36, 37)), (3, slice(5, 24)), (2, slice(0, 37))):
            torch.set_num_threads(count)
            some = both(vision, frames[part], merge, sort, 13)
            assert all(map(torch.equal, some, (x[part] for x in whole)))
    finally:
        torch.set_num_threads(threads)
    assert all(both.fused)


@torch.inference_mode()
def test_frames_may_lie_anyhow_in_memory(both: Both) -> None:
    vision, merge, sort = build(SMALL), MERGE.build(TOME), SORT.build(SIZE)
    frames = pixels(vision, 3)
    scattered = frames.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not scattered.is_contiguous()
    assert all(map(torch.equal, both(vision, scattered, merge, sort, 9), both(vision, frames, merge, sort, 9)))
    assert both.fused == [True, True]


@torch.inference_mode()
def test_weights_that_change_in_place_are_seen(both: Both) -> None:
    vision, merge, sort = build(SMALL), MERGE.build(TOME), SORT.build(SIZE)
    frames = pixels(vision, 2)
    before = both(vision, frames, merge, sort, 30)
    for weight in vision.parameters():
        weight.data.mul_(1.1)
    found = both(vision, frames, merge, sort, 30)
    assert both.fused == [True, True] and not torch.allclose(found.features, before.features, atol=1e-3)
    expected = both(vision, frames, merge, sort, 30, by_modules=True)
    torch.testing.assert_close(found.features, expected.features, atol=5e-5, rtol=1e-5)


class Otherwise(TokenMerging):
    """Another match than its parent's."""

    def match(self, view: BlockView, remove: int) -> Merge:
        return super().match(view._replace(keys=view.queries), remove)


def forward_of(module: nn.Module) -> None:
    module.forward = lambda x, own=module.forward: 2 * own(x)  # type: ignore[method-assign]


def match_of(merge: Any) -> Any:
    changed = copy.copy(merge)
    changed.match = Otherwise().match
    return changed


class Doubled(nn.Linear):
    """A layer that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def attribute(path: str, value: Any) -> Callable[[Any], None]:
    owner, _, name = path.rpartition(".")
    return lambda vision: setattr(vision.get_submodule(owner), name, value)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "hook": lambda vision: vision.blocks[1].register_forward_hook(lambda *given: None),
    "inner hook": lambda vision: vision.blocks[0].attention.qkv.register_forward_pre_hook(lambda *given: None),
    "hook of the patches": lambda vision: vision.patch.register_forward_hook(lambda *given: None),
    "own forward": lambda vision: forward_of(vision.blocks[1].mlp.up),
    "another module": attribute("blocks.0.mlp.down", Doubled(SMALL["mlp_width"], SMALL["width"])),
    "scattered weight": attribute("blocks.2.norm_mlp.weight", nn.Parameter(torch.ones(2 * SMALL["width"])[::2])),
    "other heads": attribute("blocks.1.attention.heads", 8),
    "another eps": attribute("blocks.1.norm_mlp.eps", 1.0),
    "narrower": lambda vision: (attribute("blocks.0.mlp.up", siglip.Linear(SMALL["width"], 32))(vision),
                                attribute("blocks.0.mlp.down", siglip.Linear(32, SMALL["width"]))(vision)),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_changed_modules_compute_themselves(both: Both, change: str) -> None:
    vision, merge, sort = build(SMALL), MERGE.build(TOME), SORT.build(SIZE)
    CHANGES[change](vision)
    both(vision, pixels(vision, 1), merge, sort, 13)
    assert both.fused == [False]


@pytest.mark.parametrize("blocks", [2, 4])
@torch.no_grad()
def test_another_number_of_blocks_is_the_error_that_it_was(both: Both, blocks: int) -> None:
    vision = build(SMALL)
    vision.blocks = nn.ModuleList([*vision.blocks, copy.deepcopy(vision.blocks[0])][:blocks])
    with pytest.raises(ValueError, match="zip"):
        both(vision, pixels(vision, 1), MERGE.build(TOME), SORT.build(SIZE), 13)


@torch.no_grad()
def test_a_tower_of_another_class_computes_itself(both: Both) -> None:
    class Twice(siglip.Siglip):
        def _embed(self, *given: Any) -> Tensor:
            return 2 * super()._embed(*given)

    vision = Twice(**SMALL).eval()
    both(vision, pixels(vision, 1), MERGE.build(TOME), SORT.build(SIZE), 13)
    assert both.fused == [False]


@torch.no_grad()
def test_a_hook_for_all_modules_is_called(both: Both) -> None:
    vision, called = build(SMALL), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *given: called.append(type(module)))
    try:
        both(vision, pixels(vision, 1), MERGE.build(TOME), SORT.build(SIZE), 13)
    finally:
        handle.remove()
    assert both.fused == [False] and called.count(siglip.SiglipBlock) == vision.depth


@pytest.mark.parametrize(("merge", "sort"), [
    (Otherwise(), SORT.build(SIZE)), (match_of(TokenMerging()), SORT.build(SIZE)),
    (MERGE.build({"name": "pool"}), SORT.build(SIZE)), (MERGE.build({"name": "prune"}), SORT.build(SIZE)),
    (MERGE.build(TOME), SORT.build({"name": "random", "where": "layer"})),
    (MERGE.build(TOME), SORT.build({"name": "raster", "where": "layer"})),
])
@torch.no_grad()
def test_what_merges_or_sorts_otherwise_is_asked(both: Both, merge: Any, sort: Any) -> None:
    vision = build(SMALL)
    both(vision, pixels(vision, 1), merge, sort, 16)
    assert both.fused == [False]


@torch.no_grad()
def test_a_match_that_was_replaced_is_asked(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    vision, merge, match = build(SMALL), MERGE.build(TOME), TokenMerging.match
    monkeypatch.setattr(TokenMerging, "match", lambda *given: match(*given))
    both(vision, pixels(vision, 1), merge, SORT.build(SIZE), 16)
    assert both.fused == [False]


class Named(TokenMerging):
    """The same under another name."""


@torch.no_grad()
def test_a_merge_that_inherits_its_match_is_known(both: Both) -> None:
    vision = build(SMALL)
    both(vision, pixels(vision, 1), Named(), SORT.build(SIZE), 16)
    assert both.fused == [True]


@pytest.mark.parametrize(("removed", "error"), [
    ((33, 5, 10), "remove 32, not 33"), ((-1, 30, 19), None), ((48, 0, 0), "not 48"), ((20, 20), "zip"),
    ((20, 10, 10, 8), "zip"),
])
@torch.no_grad()
def test_a_schedule_that_cannot_be_is_the_error_that_it_was(
    both: Both, removed: tuple[int, ...], error: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision, merge = build(SMALL), MERGE.build(TOME)
    monkeypatch.setattr(merge, "schedule", lambda *given: removed)
    with pytest.raises(Exception, match=error):
        both(vision, pixels(vision, 1), merge, SORT.build(SIZE), 16)
    assert both.fused == [False]


@pytest.mark.parametrize("channels", [1, 4])
@torch.no_grad()
def test_pixels_of_other_channels_are_refused(both: Both, channels: int) -> None:
    vision = build(SMALL)
    frames = pixels(vision, 2)[:, :1].expand(-1, channels, -1, -1).contiguous()
    with pytest.raises(RuntimeError, match="invalid"):
        both(vision, frames, MERGE.build(TOME), SORT.build(SIZE), 16)


@torch.no_grad()
def test_what_others_chose_for_new_tensors_does_not_matter(both: Both) -> None:
    vision, merge, sort = build(SMALL), MERGE.build(TOME), SORT.build(SIZE)
    frames = pixels(vision, 2)
    expected = both(vision, frames, merge, sort, 16)
    torch.set_default_dtype(torch.float64)
    try:
        found = both(vision, frames, merge, sort, 16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert both.fused == [True, True] and all(map(torch.equal, found, expected))


@torch.no_grad()
def test_threads_share_a_tower(both: Both) -> None:
    vision, merge, sort = build(SMALL), MERGE.build(TOME), SORT.build(SIZE)
    frames = [pixels(vision, count) for count in range(1, 9)]
    expected = [both(vision, some, merge, sort, 16) for some in frames]

    def read(some: Tensor) -> VisualTokens:
        with torch.no_grad():
            return both(vision, some, merge, sort, 16)

    with ThreadPoolExecutor(4) as pool:
        for tokens, other in zip(pool.map(read, frames * 3), expected * 3, strict=True):
            assert all(map(torch.equal, tokens, other))
    assert all(both.fused)


def test_gradients_other_types_and_wide_models_are_for_the_modules(both: Both) -> None:
    vision, merge, sort = build(SMALL), MERGE.build(TOME), SORT.build(SIZE)
    frames = pixels(vision, 1)
    assert both(vision, frames, merge, sort, 16).features.requires_grad
    with torch.no_grad():
        both(vision, frames.float() / 127.5 - 1, merge, sort, 16)
        both(copy.deepcopy(vision).to(torch.bfloat16), frames, merge, sort, 16)
        both(build({**SMALL, "width": 260}), frames, merge, sort, 16)
        with torch.autocast("cpu", torch.bfloat16):
            both(vision, frames, merge, sort, 16)
        with FlopCounterMode(display=False) as counter:
            both(vision, frames, merge, sort, 16)
        assert counter.get_total_flops() > 0
        assert both.fused == [False] * 6
        both(vision, frames, merge, sort, 16)
    assert both.fused[-1]


@torch.inference_mode()
def test_no_frames_give_no_tokens(both: Both) -> None:
    vision = build(SMALL)
    tokens = both(vision, pixels(vision, 0), MERGE.build(TOME), SORT.build(SIZE), 16)
    assert both.fused == [True] and tokens.features.shape == (0, 16, SMALL["width"])


@torch.inference_mode()
def test_a_frame_that_is_not_a_number_stays_one(both: Both) -> None:
    """Weights that training broke are told by what they give, as with the modules."""
    vision, merge, sort = build(SMALL), MERGE.build(TOME), SORT.build(SIZE)
    vision.blocks[0].attention.out.bias.fill_(float("nan"))
    found = both(vision, pixels(vision, 2), merge, sort, 16)
    assert both.fused == [True] and found.features.isnan().all()
