"""From a decoded image to pixels, and the places its tokens take."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aurora.errors import AuroraError
from aurora.images import LONGEST, ImagePreparation
from aurora.interfaces import VisualLayout
from aurora.registry import MERGE

WAYS = ("crop", "keep_aspect", "pad", "squash")
ANY_WAY = pytest.mark.parametrize("resize", WAYS)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same_picture(pixels: torch.Tensor, expected: np.ndarray) -> None:
    apart = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - expected.astype(int))
    assert apart.max() <= 2
    assert apart.mean() < 0.02


def by_pil(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Both sides in one order: Pillow 13 begins with the taller one, and noise overshoots in between."""
    across = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BICUBIC)
    return np.array(across.resize((width, height), Image.Resampling.BICUBIC))


@ANY_WAY
@given(height=st.integers(1, 150), width=st.integers(1, 150), size=st.integers(8, 50))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_shape_and_patches_tell_what_preparation_makes(resize: str, height: int, width: int, size: int) -> None:
    prepare = ImagePreparation(size=size, patch_size=8, resize=resize)
    pixels = prepare(picture(height, width))
    assert pixels.dtype is torch.uint8
    assert pixels.shape == (3, *prepare.shape(height, width))
    assert prepare.patches(height, width) == pixels.shape[1] * pixels.shape[2] // 64
    assert pixels.shape[1] % 8 == pixels.shape[2] % 8 == 0


@ANY_WAY
@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1), (1, 1)])
def test_strips_and_dots_become_a_bounded_number_of_patches(resize: str, shape: tuple[int, int]) -> None:
    prepare = ImagePreparation(size=32, patch_size=8, resize=resize)
    assert prepare(picture(*shape)).shape[1:] == prepare.shape(*shape)
    assert 1 <= prepare.patches(*shape) <= 16 * LONGEST


@pytest.mark.parametrize("shape", [(64, 192), (192, 64)])
def test_crop_is_the_centre_of_the_image_with_its_sides_to_size(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    top, left = (shape[0] - 64) // 2, (shape[1] - 64) // 2
    centre = by_pil(image[top:top + 64, left:left + 64], 32, 32)
    assert_same_picture(ImagePreparation(size=32, patch_size=8, resize="crop")(image), centre)


@pytest.mark.parametrize("shape", [(240, 320), (700, 500), (720, 1280), (1000, 200), (100, 60), (384, 900)])
def test_a_picture_is_resized_as_pil_does_it_but_for_rounding(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    assert_same_picture(ImagePreparation(size=384, patch_size=16, resize="squash")(image), by_pil(image, 384, 384))


def test_keep_aspect_follows_the_image_to_the_nearest_patch() -> None:
    prepare = ImagePreparation(size=384, patch_size=16, resize="keep_aspect")
    assert prepare.shape(480, 640) == (384, 512)
    assert prepare.shape(1920, 1080) == (688, 384)
    assert prepare.patches(300, 300) == 576


def test_pad_keeps_the_whole_image_and_fills_with_grey() -> None:
    pixels = ImagePreparation(size=32, patch_size=8, resize="pad")(np.full((50, 100, 3), 255, dtype=np.uint8))
    assert (pixels[:, 8:24] == 255).all()
    assert (pixels[:, :8] == 127).all()
    assert (pixels[:, 24:] == 127).all()


def test_squash_keeps_all_of_the_image() -> None:
    image = np.zeros((40, 160, 3), dtype=np.uint8)
    image[:, 80:] = 255
    pixels = ImagePreparation(size=32, patch_size=8, resize="squash")(image)
    assert (pixels[:, :, :12] == 0).all()
    assert (pixels[:, :, 20:] == 255).all()


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = picture(32, 32)
    for resize in WAYS:
        pixels = ImagePreparation(size=32, patch_size=8, resize=resize)(image)
        assert (pixels.permute(1, 2, 0).numpy() == image).all()


@pytest.mark.parametrize("shape", [(240, 320), (500, 700)])
def test_squash_at_384_equals_the_processor_of_siglip(shape: tuple[int, int]) -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    image = picture(*shape)
    process = SiglipImageProcessorPil(size={"height": 384, "width": 384}, do_normalize=False, do_rescale=False)
    theirs = process(image, return_tensors="np")["pixel_values"][0]
    assert_same_picture(ImagePreparation(size=384, patch_size=16, resize="squash")(image), theirs.transpose(1, 2, 0))


def test_a_picture_that_may_not_be_written_to_or_runs_backwards_is_taken() -> None:
    image = picture(48, 64)
    image.flags.writeable = False
    prepare = ImagePreparation(size=32, patch_size=8)
    assert (prepare(image[::-1]) == prepare(image[::-1].copy())).all()


def test_an_unknown_way_to_resize_is_refused() -> None:
    with pytest.raises(AuroraError, match=r"'stretch'.*known: crop, keep_aspect, pad, squash"):
        ImagePreparation(size=32, patch_size=8, resize="stretch")


@pytest.mark.parametrize("patch_size", [0, 33])
def test_a_size_without_a_whole_patch_is_refused(patch_size: int) -> None:
    with pytest.raises(AuroraError, match="whole patch"):
        ImagePreparation(size=32, patch_size=patch_size)


@pytest.mark.parametrize(("options", "expected"), [({}, 58), ({"schedule": "floor"}, 72)])
def test_the_layout_turns_the_papers_ratio_into_its_counts(options: dict, expected: int) -> None:
    prepare = ImagePreparation(size=384, patch_size=16)
    layout = VisualLayout(prepare, MERGE.build({"name": "tome", **options}), depth=24, keep_ratio=0.1)
    assert layout.tokens(1080, 1920) == expected


@pytest.mark.parametrize("ratio", [0, -0.5, 1.1])
def test_a_keep_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(AuroraError, match="keep_ratio"):
        VisualLayout(ImagePreparation(size=32, patch_size=8), MERGE.build({"name": "none"}), depth=2, keep_ratio=ratio)
