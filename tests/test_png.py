"""From the bytes of a model to a checked PNG of the requested shape, and the PNG encoder."""

import base64
import random
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from infra.bench.png_encoders import measure
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.check import MAX_IMAGE_BYTES, is_whole_png
from lib.picture.picture_file import UnusablePicture
from lib.picture.png import encode_png, to_png
from tests.picture_files import (
    SIGNATURE,
    SQUARE,
    chunks_of,
    opened,
    pixel,
    png_of,
    refusal,
    saved,
)
from tests.pictures import (
    as_jpeg,
    as_png,
    as_webp,
    gradient,
    illustration,
    night_photo,
    noise,
    photo,
    size_of,
)

ORIENTATION = 0x0112


def filters_of(png: bytes) -> set[int]:
    """The filter types of the rows of an RGB PNG."""
    content = dict(chunks_of(png))
    (width,) = struct.unpack_from(">I", content[b"IHDR"])
    return set(zlib.decompress(content[b"IDAT"])[:: 3 * width + 1])


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def dice(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - it draws


# What comes in


WHOLE = {
    "jpeg": as_jpeg(photo(SQUARE)),
    "progressive jpeg": saved(photo(SQUARE), "JPEG", progressive=True),
    "png": as_png(photo(SQUARE)),
    "webp": as_webp(photo(SQUARE)),
    "lossless webp": as_webp(photo(SQUARE), lossless=True),
}
OF_OTHER_MODES = {
    **{
        f"a png in mode {mode}": as_png(illustration(SQUARE).convert(mode))
        for mode in ("1", "L", "P")
    },
    **{f"a jpeg in mode {mode}": as_jpeg(photo(SQUARE).convert(mode)) for mode in ("L", "CMYK")},
}


@pytest.mark.parametrize("name", WHOLE | OF_OTHER_MODES)
def test_a_picture_of_any_accepted_format_becomes_an_rgb_png_of_the_same_pixels(name: str) -> None:
    sent = (WHOLE | OF_OTHER_MODES)[name]
    stored = to_png(sent, AspectRatio.SQUARE)
    png = opened(stored)
    assert (png.format, png.mode, png.size) == ("PNG", "RGB", SQUARE)
    assert png.tobytes() == Image.open(BytesIO(sent)).convert("RGB").tobytes()
    assert is_whole_png(stored)


def test_16_bit_grey_keeps_its_upper_8_bits() -> None:
    greys = [(x * 683 + y) % 65536 for y in range(96) for x in range(96)]
    deep = Image.frombytes("I;16", SQUARE, struct.pack(f"<{len(greys)}H", *greys))
    png = opened(to_png(saved(deep, "PNG"), AspectRatio.SQUARE))
    assert png.getchannel("R").tobytes() == bytes(grey >> 8 for grey in greys)
    assert png.getchannel("B").tobytes() == png.getchannel("R").tobytes()


def test_16_bit_colours_keep_their_upper_8_bits() -> None:
    rows = b"".join(
        b"\0" + b"".join(struct.pack(">HHH", x * 600, y * 600, 40_000) for x in range(96))
        for y in range(96)
    )
    header = struct.pack(">IIBBBBB", *SQUARE, 16, 2, 0, 0, 0)
    sent = png_of((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    png = opened(to_png(sent, AspectRatio.SQUARE))
    assert png.getpixel((90, 45)) == (90 * 600 >> 8, 45 * 600 >> 8, 40_000 >> 8)


def half_transparent(mode: str) -> Image.Image:
    """Black on the left; on the right a transparent colour."""
    image = Image.new("RGBA", SQUARE, (0, 0, 0, 255))
    image.paste((200, 30, 90, 0), (48, 0, 96, 96))
    return image.convert(mode)


@pytest.mark.parametrize(
    "sent",
    [
        as_png(half_transparent("RGBA")),
        as_png(half_transparent("LA")),
        saved(half_transparent("RGB"), "PNG", transparency=(200, 30, 90)),
        as_png(half_transparent("RGBA").quantize(4, Image.Quantize.FASTOCTREE)),
        as_webp(half_transparent("RGBA"), lossless=True),
    ],
    ids=["rgba", "grey and alpha", "one colour", "palette", "webp"],
)
def test_transparent_pixels_become_white(sent: bytes) -> None:
    png = opened(to_png(sent, AspectRatio.SQUARE))
    assert (pixel(png, 10, 50), pixel(png, 90, 50)) == ((0, 0, 0), (255, 255, 255))


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [photo(SQUARE, seed) for seed in (1, 2)]
    sent = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    png = opened(to_png(sent, AspectRatio.SQUARE))
    assert png.tobytes() == frames[0].tobytes()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_all_metadata_is_removed(image_format: str) -> None:
    exif = with_orientation(1)
    exif[0x010E] = "secret prompt"
    sent = saved(photo(SQUARE), image_format, exif=exif, icc_profile=b"profile" * 30, dpi=(72, 72))
    png = to_png(sent, AspectRatio.SQUARE)

    assert [kind for kind, _ in chunks_of(png)] == [b"IHDR", b"iTXt", b"IDAT", b"IEND"]
    assert opened(png).info.keys() == {"XML:com.adobe.xmp", "xmp"}
    assert b"secret" not in png


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_a_rotated_picture_is_turned_upright_before_its_shape_is_checked(
    orientation: int, image_format: str
) -> None:
    on_its_side = orientation >= 5
    size = (90, 160) if on_its_side else (160, 90)
    stored = Image.new("RGB", size, "black")
    # Where each orientation stores the corner that a viewer must find at the top left.
    x = size[0] - 40 if orientation in (2, 3, 7, 8) else 0
    y = size[1] - 40 if orientation in (3, 4, 6, 7) else 0
    stored.paste("white", (x, y, x + 40, y + 40))
    sent = saved(stored, image_format, exif=with_orientation(orientation))

    png = opened(to_png(sent, AspectRatio.LANDSCAPE_16_9))

    assert png.size == (160, 90)
    assert min(pixel(png, 20, 20)) > 240
    assert max(pixel(png, 140, 20), pixel(png, 20, 70), pixel(png, 140, 70)) < (16, 16, 16)


def test_unreadable_exif_is_ignored() -> None:
    sent = saved(photo(SQUARE), "JPEG", exif=b"Exif\0\0no TIFF header", dpi=(72, 72))
    assert opened(to_png(sent, AspectRatio.SQUARE)).size == SQUARE


# The requested shape


@pytest.mark.parametrize("ratio", AspectRatio)
def test_each_ratio_accepts_its_shape_and_refuses_the_other_nine(ratio: AspectRatio) -> None:
    sent = as_jpeg(gradient(size_of(ratio)))
    assert opened(to_png(sent, ratio)).size == size_of(ratio)
    for other in set(AspectRatio) - {ratio}:
        refusal(sent, other)


@pytest.mark.parametrize(
    ("size", "accepted"),
    [
        *(((95, 100), True), ((105, 100), True), ((93, 100), False), ((107, 100), False)),
        *(((1, 1), False), ((16, 16), False), ((63, 63), False)),
    ],
)
def test_a_shape_may_be_five_percent_off_and_no_smaller_than_64_pixels(
    size: tuple[int, int], *, accepted: bool
) -> None:
    if accepted:
        assert opened(to_png(as_jpeg(gradient(size)), AspectRatio.SQUARE)).size == size
    else:
        refusal(as_png(gradient(size)))


# Damaged and hostile input


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"I'm sorry, I can't draw that.",
        b"<!doctype html><title>502 Bad Gateway</title>",
        b"\xff\xd8\xff",
        SIGNATURE,
        b"RIFF\x10\0\0\0WEBPVP8 ",
        base64.b64encode(as_jpeg(photo(SQUARE))),
        dice(1).randbytes(5_000),
        b"\xff\xd8\xff\xe0" + dice(2).randbytes(5_000),
        SIGNATURE + dice(3).randbytes(5_000),
        b"RIFF\x80\x13\0\0WEBPVP8L" + dice(4).randbytes(5_000),
        *(saved(photo(SQUARE), name) for name in ("GIF", "BMP", "TIFF", "PPM", "ICO")),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_bytes_that_are_no_picture_of_an_accepted_format_are_refused(data: bytes) -> None:
    refusal(data)
    assert not is_whole_png(data)


@pytest.mark.parametrize("whole", WHOLE.values(), ids=WHOLE)
def test_a_picture_cut_short_anywhere_is_refused(whole: bytes) -> None:
    to_png(whole, AspectRatio.SQUARE)
    lengths = {*range(0, len(whole), 97), *range(len(whole) - 25, len(whole))}
    for length in lengths:
        refusal(whole[:length])
        assert not is_whole_png(whole[:length])


def test_a_refusal_keeps_its_cause_and_repeats_none_of_its_words() -> None:
    header, _, (kind, pixels), end = chunks_of(encode_png(photo(SQUARE)))
    refused = refusal(png_of(header, (kind, pixels[: len(pixels) // 2]), end))

    assert isinstance(refused.__cause__, UnusablePicture)
    assert isinstance(refused.__cause__.__cause__, OSError)
    assert refused.args == ("no_image",)
    assert refused.body() == {
        "error": "Failed to generate image",
        "message": "The model returned no image",
    }


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_a_picture_of_more_pixels_than_any_model_makes_is_refused(image_format: str) -> None:
    huge = saved(Image.new("L", (4500, 4500)), image_format, lossless=True, method=0)
    assert len(huge) < 1_000_000
    refusal(huge)
    assert not is_whole_png(huge)


@pytest.mark.parametrize("size", [(4096, 4096), (6336, 2688)])
def test_the_largest_pictures_of_the_models_are_accepted(size: tuple[int, int]) -> None:
    assert is_whole_png(as_png(Image.new("1", size)))


@pytest.mark.parametrize("side", [15_000, 2**31 - 1])
def test_a_png_that_declares_an_absurd_size_is_refused(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    refusal(png_of((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")))


def test_a_webp_that_declares_an_absurd_size_is_refused() -> None:
    side_less_one = (2**24 - 1).to_bytes(3, "little")
    canvas = b"VP8X" + struct.pack("<II", 10, 0) + side_less_one * 2
    still = as_webp(photo(SQUARE))[12:]
    body = b"WEBP" + canvas + still
    refusal(b"RIFF" + struct.pack("<I", len(body)) + body)


def test_bytes_over_the_limit_are_refused_unread() -> None:
    refusal(as_jpeg(photo(SQUARE)) + bytes(MAX_IMAGE_BYTES))


def test_pillows_global_settings_are_unchanged() -> None:
    pixels_before = Image.MAX_IMAGE_PIXELS
    to_png(as_jpeg(photo(SQUARE)), AspectRatio.SQUARE)
    refusal(as_jpeg(photo(SQUARE))[:-200])
    assert pixels_before == Image.MAX_IMAGE_PIXELS
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_concurrent_conversions_give_the_same_bytes_as_sequential_ones() -> None:
    ratio = AspectRatio.LANDSCAPE_16_9
    sent = [as_jpeg(photo((320, 180), seed)) for seed in range(8)]
    one_by_one = [to_png(data, ratio) for data in sent]
    with ThreadPoolExecutor(max_workers=8) as pool:
        at_once = list(pool.map(lambda data: to_png(data, ratio), sent * 4))
    assert at_once == one_by_one * 4


# The encoder


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    levels=st.sampled_from([2, 3, 16, 256]),
)
def test_any_pixels_are_encoded_losslessly(width: int, height: int, seed: int, levels: int) -> None:
    spread = [level * 255 // (levels - 1) for level in range(levels)] * (256 // levels + 1)
    pixels = dice(seed).randbytes(3 * width * height).translate(bytes(spread[:256]))
    image = Image.frombytes("RGB", (width, height), pixels)
    assert opened(encode_png(image)).tobytes() == pixels


def follows_paeth(size: tuple[int, int], surprises: float, seed: int) -> Image.Image:
    """Pixels that Paeth's filter predicts (PNG specification, section 9.4), with surprises."""
    chance = dice(seed)
    width, height = size
    rows = [bytearray(3 * width + 3)]
    for _ in range(height):
        above, row = rows[-1], bytearray(3 * width + 3)
        for index in range(3, len(row)):
            a, b, c = row[index - 3], above[index], above[index - 3]
            estimate = a + b - c
            nearest = min((a, b, c), key=lambda neighbour: abs(estimate - neighbour))
            surprise = chance.randrange(256) if chance.random() < surprises else 0
            row[index] = (nearest + surprise) % 256
        rows.append(row)
    return Image.frombytes("RGB", size, b"".join(row[3:] for row in rows[1:]))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2), (1376, 3), (3, 1376)])
def test_narrow_and_flat_pictures_are_encoded_losslessly(size: tuple[int, int]) -> None:
    image = photo(size)
    assert opened(encode_png(image)).tobytes() == image.tobytes()


@pytest.mark.parametrize("draw", [photo, night_photo, illustration, noise])
def test_a_png_is_at_most_a_tenth_larger_than_pillows(
    draw: Callable[[tuple[int, int]], Image.Image],
) -> None:
    sent = Image.open(BytesIO(as_jpeg(draw((688, 384)))))
    png = encode_png(sent)
    assert len(png) <= 1.10 * len(saved(sent, "PNG"))
    assert opened(png).tobytes() == sent.tobytes()


def test_each_filter_is_chosen_where_it_pays_and_is_lossless() -> None:
    chance = dice(5)
    slopes = [(chance.randrange(256), chance.randrange(256)) for _ in range(256)]
    ramps = bytes((start + slope * x // 3) % 256 for start, slope in slopes for x in range(768))
    along_rows = Image.frombytes("RGB", (256, 256), ramps)
    along_columns = along_rows.transpose(Image.Transpose.TRANSPOSE)
    paeth = [follows_paeth((160, 120), surprises, seed=7) for surprises in (0.01, 0.1, 0.4)]
    for kind, image in ((1, along_rows), (2, along_columns), *((4, each) for each in paeth)):
        png = encode_png(image)
        assert kind in filters_of(png)
        assert opened(png).tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_the_encoder_accepts_rgb_only(mode: str) -> None:
    with pytest.raises(ValueError, match=mode):
        encode_png(Image.new(mode, SQUARE))


def test_the_benchmark_measures_time_and_bytes_of_both_encoders() -> None:
    figures = measure(photo((160, 90)), repeats=1)
    assert figures.our_bytes == len(encode_png(photo((160, 90))))
    assert figures.pillow_bytes == len(saved(photo((160, 90)), "PNG"))
    assert figures.size == figures.our_bytes / figures.pillow_bytes
    assert figures.pillow_ms > 0 < figures.our_ms


# A stored object


def test_a_png_with_an_altered_byte_is_neither_accepted_nor_whole() -> None:
    png = to_png(as_jpeg(photo((64, 64))), AspectRatio.SQUARE)
    for position in {*range(0, len(png), 41), *range(len(png) - 25, len(png))}:
        altered = bytearray(png)
        altered[position] ^= 0x10
        refusal(bytes(altered))
        assert not is_whole_png(bytes(altered))


def test_a_stored_png_may_be_larger_than_what_a_model_may_send() -> None:
    stored = BytesIO()
    Image.new("RGB", (3600, 3600)).save(stored, "PNG", compress_level=0)
    assert len(stored.getvalue()) > MAX_IMAGE_BYTES
    assert is_whole_png(stored.getvalue())


def test_a_png_whose_pixels_stop_in_the_middle_is_not_whole_though_its_chunks_are() -> None:
    header, _, (kind, pixels), end = chunks_of(encode_png(photo(SQUARE)))

    assert is_whole_png(png_of(header, (kind, pixels), end))
    assert not is_whole_png(png_of(header, (kind, pixels[: len(pixels) // 2]), end))
    assert not is_whole_png(png_of(header, end))


def test_a_png_with_a_palette_index_but_no_palette_is_not_whole() -> None:
    chunks = chunks_of(as_png(illustration(SQUARE).quantize(16)))
    colourless = png_of(*(chunk for chunk in chunks if chunk[0] != b"PLTE"))
    assert not is_whole_png(colourless)
    refusal(colourless)
