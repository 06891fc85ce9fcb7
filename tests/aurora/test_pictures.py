"""Pictures are decoded as PIL decodes them."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from aurora.errors import AuroraError, BadSample
from aurora.images import READABLE, decode_image, image_shape, open_picture, pixels_of, read_image, upright_shape
from datamodules.build.media import Transcode, small_picture

FILES = Path(__file__).parent / "files"


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


def stored(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def deep_png(colour: int, pixels: np.ndarray, transparent: bytes = b"") -> bytes:
    """A PNG of 16 bits a channel."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, colour, 0, 0, 0))
            + (chunk(b"tRNS", transparent) if transparent else b"") + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16)[None].repeat(4, 0)
EIGHT = (RAMP / 257).round().astype(int)


@pytest.mark.parametrize("raw", [
    stored(Image.fromarray(RAMP), "PNG"), stored(Image.fromarray(RAMP), "TIFF"),
    stored(Image.fromarray(RAMP.astype(">u2")), "TIFF"), deep_png(2, RAMP[..., None].repeat(3, 2)),
    stored(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
    stored(Image.fromarray(RAMP), "TIFF", tiffinfo={262: 0}),
], ids=["png", "tiff", "big-endian tiff", "coloured png", "float tiff", "white is zero"])
def test_deep_pixels_keep_their_levels(raw: bytes, request: pytest.FixtureRequest) -> None:
    right = 255 - EIGHT if "white" in request.node.callspec.id else EIGHT
    assert np.abs(decode_image(raw, formats=READABLE) - right[..., None]).max() <= 1


@pytest.mark.parametrize(("pixels", "said"), [
    (RAMP.astype(np.float32), "floats from 0 to 65535"), (np.full((4, 4), np.nan, np.float32), "floats from nan"),
    (RAMP.astype(np.int32), "integers"),
])
def test_pixels_without_a_known_white_are_refused(pixels: np.ndarray, said: str) -> None:
    with pytest.raises(BadSample, match=said):
        decode_image(stored(Image.fromarray(pixels), "TIFF"), formats=READABLE)


def see_through(mode: str, form: str, **options: object) -> bytes:
    """Black, and transparent but for its left half."""
    image = Image.new("RGBA", (8, 8))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    return stored(image.quantize(8) if mode == "P" else image.convert(mode), form, **options)


KEYED = Image.fromarray(np.array([[0] * 4 + [9] * 4] * 8, np.uint8))
DEEP = np.array([[0] * 4 + [0x1234] * 4] * 8, np.uint16)


@pytest.mark.parametrize("raw", [
    see_through("RGBA", "PNG"), see_through("RGBA", "WEBP", lossless=True), see_through("RGBA", "TIFF"),
    see_through("RGBA", "GIF"), see_through("LA", "PNG"), see_through("P", "PNG"),
    stored(KEYED, "PNG", transparency=9), stored(KEYED.convert("RGB"), "PNG", transparency=(9, 9, 9)),
    stored(KEYED.convert("P"), "PNG", transparency=9),
    stored(KEYED.convert("P"), "PNG", transparency=b"\xff" * 9 + b"\0"),
    deep_png(0, DEEP, b"\x12\x34"), deep_png(2, DEEP[..., None].repeat(3, 2), b"\x12\x34" * 3),
    deep_png(4, np.stack([DEEP * 0, (DEEP == 0) * 65535], 2)),
], ids=["rgba", "webp", "tiff", "gif", "grey and alpha", "palette with alpha", "grey key", "colour key", "palette key",
        "palette table", "deep grey key", "deep colour key", "deep alpha"])
def test_what_is_transparent_lets_white_through(raw: bytes) -> None:
    for pixels in (decode_image(raw, formats=READABLE), decode_image(small_picture(raw, Transcode(16)))):
        assert pixels[:, :3].max() < 20 and pixels[:, 5:].min() > 235


def test_half_of_white_shows_through_what_is_half_transparent() -> None:
    assert set(decode_image(stored(Image.new("RGBA", (4, 4), (0, 0, 200, 128)), "PNG")).flatten()) == {127, 227}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_other_pictures_stand_upright(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)).convert("RGB")
    raw = stored(image, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    pixels = decode_image(raw, formats=READABLE)
    assert (pixels == by_pil(raw)).all()
    with open_picture(raw, formats=READABLE) as opened:
        assert upright_shape(opened) == pixels.shape[:2]


def test_the_orientation_may_stand_in_xmp() -> None:
    raw = jpeg(xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    assert image_shape(raw) == decode_image(raw).shape[:2] == (61, 43)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_or_pages_are_no_still_picture(form: str) -> None:
    images = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    raw = stored(images[0], form, save_all=True, append_images=images[1:])
    with pytest.raises(BadSample, match=f"not a still picture: the {form} has 2 "):
        decode_image(raw, formats=READABLE)
    if form in ("PNG", "WEBP"):
        with pytest.raises(BadSample, match="not a still picture"):
            image_shape(raw)


def test_a_second_picture_that_a_camera_stores_does_no_harm() -> None:
    image = Image.fromarray(EIGHT.astype(np.uint8)).convert("RGB")
    raw = stored(image, "MPO", save_all=True, append_images=[image])
    assert np.abs(decode_image(raw).astype(int) - EIGHT[..., None]).max() < 8


@pytest.mark.parametrize(("name", "places", "right"), [
    ("gray16.png", (0, 48, 95), (3, 129, 252)), ("alpha_black.png", (0, 48, 95), (255, 0, 255)),
    ("plain.jfif", (0, 95), (104, 105)),
])
def test_a_picture_of_a_file_has_its_levels(name: str, places: tuple[int, ...], right: tuple[int, ...]) -> None:
    pixels = read_image(FILES / name)
    assert np.abs(pixels[32, list(places)].mean(-1) - right).max() < 4


def test_an_error_of_a_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(stored(Image.fromarray(RAMP), "PNG")[:60])
    with pytest.raises(AuroraError, match=r"a\.png is not a readable image"):
        read_image(tmp_path / "a.png")
