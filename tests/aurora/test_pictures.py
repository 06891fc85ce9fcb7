"""Pictures are decoded as PIL decodes them."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from aurora.errors import BadSample
from aurora.images import decode_image, image_shape, open_picture, pixels_of


def jpeg(size: tuple[int, int] = (61, 43), mode: str = "RGB", **options: object) -> bytes:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def by_pil(raw: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True},
                                     {"quality": 20}, {"keep_rgb": True}])
@pytest.mark.parametrize("size", [(61, 43), (1, 1), (64, 48)])
def test_a_jpeg_has_the_pixels_that_pil_gives(mode: str, options: dict, size: tuple[int, int]) -> None:
    raw = jpeg(size, mode, **options)
    pixels = decode_image(raw)
    assert pixels.shape == (*image_shape(raw), 3) == (size[1], size[0], 3)
    assert (pixels == by_pil(raw)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_stands_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = jpeg(exif=exif)
    assert (decode_image(raw) == by_pil(raw)).all()
    assert image_shape(raw) == by_pil(raw).shape[:2]


def test_a_jpeg_with_bytes_that_are_no_part_of_it_is_read_as_pil_reads_it() -> None:
    raw = jpeg()
    scan = raw.index(b"\xff\xda")
    for odd in (raw + b"what follows", raw[:scan] + b"\0\0" + raw[scan:]):
        assert (decode_image(odd) == by_pil(odd)).all()


def test_a_jpeg_that_ends_early_is_a_bad_sample() -> None:
    raw = jpeg()
    for left in range(0, len(raw) - 2, 37):
        with pytest.raises(BadSample):
            decode_image(raw[:left])


@pytest.mark.parametrize(("short_side", "eighths"), [(480, 8), (241, 8), (240, 4), (181, 4), (180, 3), (120, 2)])
def test_a_jpeg_is_decoded_at_the_fraction_that_leaves_the_short_side(short_side: int, eighths: int) -> None:
    raw = jpeg((640, 480))
    pixels = pixels_of(open_picture(raw), raw, short_side)
    assert pixels.shape == (60 * eighths, 80 * eighths, 3)
    small = Image.fromarray(by_pil(raw)).resize((80 * eighths, 60 * eighths), Image.Resampling.BOX)
    assert abs(pixels.astype(float) - np.asarray(small)).mean() < 3
