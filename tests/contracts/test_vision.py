"""What every registered vision encoder must show, with every merge and sorter."""

import pytest
import torch

from aurora.interfaces import VisionEncoder
from aurora.registry import MERGE, SORT, VISION

SMALL = {"siglip": {"image_size": 48, "patch_size": 8, "width": 16, "layers": 4, "heads": 2, "mlp_width": 32}}
NAMES = pytest.mark.parametrize("name", VISION.known())
MERGES = pytest.mark.parametrize("merge", MERGE.known())
SORTS = pytest.mark.parametrize("sort", SORT.known())


def build(name: str) -> VisionEncoder:
    torch.manual_seed(0)
    return VISION.build({"name": name, **SMALL.get(name, {})})


def pixels(encoder: VisionEncoder, frames: int, height: int = 48, width: int = 48) -> torch.Tensor:
    shape = encoder.prepare.shape(height, width)
    return torch.randint(256, (frames, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(height))


def encode(encoder: VisionEncoder, images: torch.Tensor, merge: str, sort: str, ratio: float = 0.3) -> tuple:
    strategy = MERGE.build({"name": merge})
    side = encoder.prepare.patch_size
    keep = strategy.keep(images.shape[2] // side * (images.shape[3] // side), encoder.depth, ratio)
    return keep, encoder(images, merge=strategy, sort=SORT.build({"name": sort}), keep=keep)


@NAMES
@MERGES
@SORTS
def test_it_keeps_what_was_asked_for(name: str, merge: str, sort: str) -> None:
    encoder = build(name)
    keep, tokens = encode(encoder, pixels(encoder, 2), merge, sort)
    patches = encoder.prepare.patches(48, 48)
    assert tokens.features.shape == (2, keep, encoder.width)
    assert (tokens.size.sum(1) == patches).all()
    assert tokens.owner.shape == (2, patches)


@NAMES
@MERGES
@SORTS
def test_sizes_count_the_patches_that_each_token_owns(name: str, merge: str, sort: str) -> None:
    encoder = build(name)
    keep, tokens = encode(encoder, pixels(encoder, 2), merge, sort)
    owned = torch.stack([row.bincount(minlength=keep) for row in tokens.owner])
    assert (owned == tokens.size).all()


@NAMES
@MERGES
@SORTS
def test_frames_do_not_influence_each_other(name: str, merge: str, sort: str) -> None:
    encoder = build(name)
    images = pixels(encoder, 3)
    _, together = encode(encoder, images, merge, sort)
    for index in range(3):
        _, alone = encode(encoder, images[index : index + 1], merge, sort)
        torch.testing.assert_close(together.features[index], alone.features[0], atol=1e-5, rtol=1e-5)
        assert (together.owner[index] == alone.owner[0]).all()


@NAMES
@MERGES
@SORTS
def test_grids_that_are_not_square_work_too(name: str, merge: str, sort: str) -> None:
    encoder = build(name)
    side = encoder.prepare.patch_size
    images = torch.rand(1, 3, 3 * side, 7 * side) * 2 - 1
    keep, tokens = encode(encoder, images, merge, sort)
    assert tokens.features.shape == (1, keep, encoder.width)
    assert tokens.size.sum() == 21


@NAMES
@MERGES
def test_half_precision_works_on_this_machine(name: str, merge: str) -> None:
    encoder = build(name).bfloat16()
    _, tokens = encode(encoder, pixels(encoder, 1), merge, "size")
    assert tokens.features.dtype is torch.bfloat16
    assert tokens.features.isfinite().all()
    assert tokens.size.sum() == encoder.prepare.patches(48, 48)


@NAMES
@MERGES
def test_products_in_float16_teach_every_weight(name: str, merge: str) -> None:
    encoder = build(name)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients(encoder, merge, mixed=True))


@NAMES
def test_products_in_float16_teach_what_those_in_float32_do(name: str) -> None:
    encoder = build(name)
    # nothing is merged: what is most alike may be something else in float16
    found, right = (torch.cat([x.flatten() for x in gradients(encoder, "none", mixed=mixed)])
                    for mixed in (True, False))
    assert (found - right).norm() <= 0.02 * right.norm()


def gradients(encoder: VisionEncoder, merge: str, *, mixed: bool) -> list[torch.Tensor]:
    with torch.autocast("cpu", torch.float16, enabled=mixed):
        _, tokens = encode(encoder, pixels(encoder, 2), merge, "size")
        loss = tokens.features.float().square().mean()
    loss.backward()
    found = [weight.grad for weight in encoder.parameters()]
    encoder.zero_grad()
    return found


@NAMES
@MERGES
@torch.no_grad()
def test_products_in_float16_work_where_nothing_is_learned(name: str, merge: str) -> None:
    encoder = build(name)
    with torch.autocast("cpu", torch.float16):
        _, tokens = encode(encoder, pixels(encoder, 1), merge, "size")
    assert tokens.features.isfinite().all()
    assert tokens.size.sum() == encoder.prepare.patches(48, 48)


@NAMES
@MERGES
def test_every_weight_learns(name: str, merge: str) -> None:
    encoder = build(name)
    _, tokens = encode(encoder, pixels(encoder, 2), merge, "size")
    tokens.features.square().sum().backward()
    unmoved = [key for key, weight in encoder.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert unmoved == []


@NAMES
def test_byte_pixels_are_normalised_and_float_pixels_are_not(name: str) -> None:
    encoder = build(name)
    images = pixels(encoder, 1)
    _, from_bytes = encode(encoder, images, "none", "raster")
    _, untouched = encode(encoder, images.float(), "none", "raster")
    assert not torch.allclose(from_bytes.features, untouched.features)


@NAMES
def test_the_blocks_are_what_sharding_is_told(name: str) -> None:
    encoder = build(name)
    assert sum(isinstance(module, encoder.block_class) for module in encoder.modules()) == encoder.depth
