import struct
import tracemalloc
import xml.etree.ElementTree as ET
import zlib
from io import BytesIO

import pytest
from PIL import Image, ImageCms

from lib.picture.aspect_ratio import AspectRatio
from lib.picture.colour import MAX_PROFILE_BYTES
from lib.picture.png import to_png
from tests.picture_files import (
    ADOBE_RGB,
    DISPLAY_P3,
    SQUARE,
    chunks_of,
    opened,
    pixel,
    png_of,
    reason,
    saved,
    segment,
    sold,
)
from tests.pictures import as_jpeg, as_png, photo

RED = Image.new("RGB", SQUARE, (200, 60, 60))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SRGB_VIEW = ImageCms.createProfile("sRGB")


def made(data: bytes) -> dict[bytes, bytes]:
    """The chunks of the PNG that is made of ``data``, by kind."""
    return dict(chunks_of(to_png(data, AspectRatio.SQUARE)))


def profile_in(data: bytes) -> bytes | None:
    found = sold(data).info.get("icc_profile")
    assert found is None or isinstance(found, bytes)
    return found


def on_a_screen(png: Image.Image) -> tuple[int, ...]:
    """The middle pixel as a viewer shows it on an sRGB screen."""
    profile = ImageCms.ImageCmsProfile(BytesIO(png.info["icc_profile"]))
    shown = ImageCms.profileToProfile(png, profile, SRGB_VIEW, outputMode="RGB")
    assert shown is not None
    return pixel(shown, 48, 48)


def profile_of(space: bytes, size: int = 200) -> bytes:
    """A profile by its header: length, colour space, signature."""
    header = bytearray(size)
    header[:4] = struct.pack(">I", size)
    header[16:20], header[36:40] = space, b"acsp"
    return bytes(header)


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    header, *others = chunks_of(as_png(RED))
    return png_of(header, *chunks, *others)


# ICC profiles


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("profile", "shown"),
    [(DISPLAY_P3, (217, 42, 52)), (ADOBE_RGB, (231, 58, 57)), (SRGB, (200, 60, 60))],
    ids=["Display P3", "Adobe RGB", "sRGB"],
)
def test_a_picture_with_a_profile_looks_as_its_profile_says(
    image_format: str, profile: bytes, shown: tuple[int, ...]
) -> None:
    options: dict[str, object] = {"quality": 100} if image_format == "JPEG" else {"lossless": True}
    sent = saved(RED, image_format, icc_profile=profile, **options)

    png = sold(sent)

    assert png.info["icc_profile"] == profile
    seen = on_a_screen(png)
    assert max(abs(a - b) for a, b in zip(seen, shown, strict=True)) <= 2


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_a_grey_or_palette_picture_keeps_its_rgb_profile(mode: str) -> None:
    assert profile_in(saved(RED.convert(mode), "PNG", icc_profile=DISPLAY_P3)) == DISPLAY_P3


def test_a_profile_in_many_segments_in_any_order_is_put_together() -> None:
    profile = profile_of(b"RGB ", 200_000)
    pieces = [profile[start : start + 60_000] for start in range(0, len(profile), 60_000)]
    segments = [
        segment(0xE2, b"ICC_PROFILE\0" + bytes([number, len(pieces)]) + piece)
        for number, piece in enumerate(pieces, 1)
    ]
    jpeg = as_jpeg(RED)

    sent = jpeg[:2] + b"".join(reversed(segments)) + jpeg[2:]

    assert profile_in(sent) == profile


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "profile",
    [
        profile_of(b"GRAY"),
        profile_of(b"CMYK"),
        profile_of(b"Lab "),
        b"profile" * 30,
        DISPLAY_P3[:-1],
        DISPLAY_P3 + b"\0",
        profile_of(b"RGB ", 128),
    ],
    ids=["grey", "CMYK", "Lab", "no profile", "cut", "too long", "a header alone"],
)
def test_a_profile_that_viewers_ignore_is_dropped(image_format: str, profile: bytes) -> None:
    assert b"iCCP" not in made(saved(RED, image_format, icc_profile=profile))


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_profile_for_grey_is_dropped_and_the_greys_stay(mode: str) -> None:
    grey = photo(SQUARE).convert("L")
    sent = saved(grey.convert(mode), "PNG", icc_profile=profile_of(b"GRAY"))

    assert profile_in(sent) is None
    assert sold(sent).tobytes() == grey.convert("RGB").tobytes()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_a_profile_at_the_bound_is_copied_and_a_larger_one_refused(image_format: str) -> None:
    largest = profile_of(b"RGB ", MAX_PROFILE_BYTES)

    assert profile_in(saved(RED, image_format, icc_profile=largest)) == largest
    too_large = profile_of(b"RGB ", MAX_PROFILE_BYTES + 1)
    assert reason(saved(RED, image_format, icc_profile=too_large)) == "colour"


@pytest.mark.parametrize(
    "iccp",
    [b"", b"name", b"name\0\0not deflated", b"name\0\1" + zlib.compress(DISPLAY_P3)],
    ids=["empty", "no end of the name", "not deflated", "another compression"],
)
def test_an_unreadable_profile_in_a_png_counts_as_none(iccp: bytes) -> None:
    assert b"iCCP" not in made(png_with((b"iCCP", iccp)))


def test_a_profile_that_unpacks_to_fifty_megabytes_is_refused_before_it_does() -> None:
    bomb = zlib.compress(profile_of(b"RGB ", 1000) + bytes(50_000_000))

    sent = png_with((b"iCCP", b"name\0\0" + bomb))
    tracemalloc.start()

    assert reason(sent) == "colour"

    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("profile", [profile_of(b"CMYK"), b"unreadable"])
def test_printing_inks_with_a_profile_are_refused(profile: bytes) -> None:
    sent = saved(photo(SQUARE).convert("CMYK"), "JPEG", icc_profile=profile)

    assert reason(sent) == "cmyk"


# The colour chunks of a PNG

GAMA = (b"gAMA", struct.pack(">I", 100_000))
CHRM = (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
CICP = (b"cICP", bytes([12, 13, 0, 1]))
SRGB_CHUNK = (b"sRGB", b"\0")
ICCP = (b"iCCP", b"name\0\0" + zlib.compress(DISPLAY_P3))


@pytest.mark.parametrize("chunk", [GAMA, CHRM, CICP, SRGB_CHUNK], ids=lambda chunk: chunk[0])
def test_a_chunk_that_gives_colours_their_meaning_is_copied(chunk: tuple[bytes, bytes]) -> None:
    kind, content = chunk

    assert made(png_with(chunk))[kind] == content


def test_all_of_them_together_stand_before_the_pixels() -> None:
    png = to_png(png_with(CHRM, GAMA, ICCP, CICP), AspectRatio.SQUARE)

    kinds = [kind for kind, _ in chunks_of(png)]
    assert kinds == [b"IHDR", b"cICP", b"iCCP", b"gAMA", b"cHRM", b"iTXt", b"IDAT", b"IEND"]


def test_linear_light_stays_linear() -> None:
    assert sold(png_with(GAMA)).info["gamma"] == pytest.approx(1.0)


def test_srgb_gives_way_to_a_profile() -> None:
    assert b"sRGB" not in made(png_with(SRGB_CHUNK, ICCP))
    assert b"sRGB" in made(png_with(SRGB_CHUNK, (b"iCCP", b"broken")))


@pytest.mark.parametrize(
    "chunk",
    [(b"gAMA", b"\0\0\0\0"), (b"gAMA", b"\0"), (b"cHRM", b""), (b"cICP", b"12"), (b"sRGB", b"")],
    ids=repr,
)
def test_a_chunk_of_the_wrong_length_or_of_no_use_is_dropped(chunk: tuple[bytes, bytes]) -> None:
    assert chunk[0] not in made(png_with(chunk))


def test_the_same_picture_gives_the_same_bytes() -> None:
    sent = saved(photo(SQUARE), "JPEG", icc_profile=DISPLAY_P3)

    assert to_png(sent, AspectRatio.SQUARE) == to_png(sent, AspectRatio.SQUARE)


# Transparency


def raw_png(depth: int, colour_type: int, rows: bytes, transparent: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", *SQUARE, depth, colour_type, 0, 0, 0)
    chunks = [(b"tRNS", transparent), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return png_of((b"IHDR", header), *chunks)


def halves(depth: int, left: int, right: int) -> bytes:
    """Rows of grey, the left and the right half of one level each."""
    bits = "".join(format(level, f"0{depth}b") * 48 for level in (left, right))
    return (b"\0" + int(bits, 2).to_bytes(96 * depth // 8, "big")) * 96


@pytest.mark.parametrize(
    ("depth", "hidden", "shown", "level"),
    [
        (1, 1, 0, 0),
        (1, 0, 1, 255),
        (2, 1, 2, 170),
        (4, 5, 12, 204),
        (8, 18, 19, 19),
        (16, 0x1234, 0x1235, 0x12),
        (16, 0x1234, 0xC000, 0xC0),
        (16, 0x0034, 0x3400, 0x34),
    ],
)
def test_the_transparent_grey_of_any_depth_becomes_white_and_its_neighbour_stays(
    depth: int, hidden: int, shown: int, level: int
) -> None:
    png = sold(raw_png(depth, 0, halves(depth, hidden, shown), struct.pack(">H", hidden)))

    assert (pixel(png, 10, 50), pixel(png, 90, 50)) == ((255, 255, 255), (level, level, level))


@pytest.mark.parametrize(
    ("depth", "hidden", "shown"),
    [
        (8, (1, 2, 3), (1, 2, 4)),
        (16, (0x0102, 0x0304, 0x0506), (0x0102, 0x0304, 0x0507)),
        (16, (0x0102, 0x0304, 0x0506), (0x0002, 0x0304, 0x0506)),
    ],
)
def test_the_transparent_colour_of_any_depth_becomes_white_and_its_neighbour_stays(
    depth: int, hidden: tuple[int, ...], shown: tuple[int, ...]
) -> None:
    form = ">3H" if depth == 16 else ">3B"
    row = b"\0" + struct.pack(form, *hidden) * 48 + struct.pack(form, *shown) * 48
    png = sold(raw_png(depth, 2, row * 96, struct.pack(">3H", *hidden)))

    assert pixel(png, 10, 50) == (255, 255, 255)
    assert pixel(png, 90, 50) == tuple(level >> depth - 8 for level in shown)


def test_of_the_transparent_level_only_the_bits_of_the_depth_count() -> None:
    png = sold(raw_png(4, 0, halves(4, 5, 12), b"\xff\xf5"))

    assert (pixel(png, 10, 50), pixel(png, 90, 50)) == ((255,) * 3, (204,) * 3)


def test_a_transparent_level_of_the_wrong_length_counts_as_none() -> None:
    assert pixel(sold(raw_png(8, 0, halves(8, 5, 12), b"\5")), 10, 50) == (5, 5, 5)


def test_a_transparent_16_bit_picture_on_its_side_is_turned_with_its_transparency() -> None:
    row = b"\0" + struct.pack(">3H", 1, 2, 3) * 48 + struct.pack(">3H", 256, 0, 0) * 48
    header, *others = chunks_of(raw_png(16, 2, row * 96, struct.pack(">3H", 1, 2, 3)))
    turned = struct.pack(">2sHIHHHIHH", b"MM", 42, 8, 1, 0x0112, 3, 1, 6, 0)

    png = sold(png_of(header, (b"eXIf", turned), *others))

    assert (pixel(png, 50, 10), pixel(png, 50, 90)) == ((255, 255, 255), (1, 0, 0))


def test_a_picture_of_one_colour_is_a_picture() -> None:
    """A prompt may ask for it; and transparent pixels show what viewers show: white."""
    black, nothing = Image.new("RGB", SQUARE), Image.new("RGBA", SQUARE, (255, 0, 0, 0))

    assert pixel(sold(as_jpeg(black)), 5, 5) == (0, 0, 0)
    assert pixel(sold(as_png(nothing)), 5, 5) == (255, 255, 255)


# EXIF


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"MM",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff" + bytes(7),
        struct.pack("<2sHIHHHIHH", b"II", 42, 8, 1, 0x0112, 3, 1, 9, 0),
        struct.pack("<2sHIHHHIHH", b"II", 42, 8, 1, 0x0112, 2, 1, 6, 0),
    ],
    ids=["empty", "cut", "elsewhere", "too short", "ninth orientation", "an orientation in text"],
)
def test_an_orientation_that_makes_no_sense_leaves_the_picture_as_it_is(exif: bytes) -> None:
    header, *others = chunks_of(as_png(photo(SQUARE)))

    png = sold(png_of(header, (b"eXIf", exif), *others))

    assert png.tobytes() == photo(SQUARE).tobytes()


def test_of_two_exif_blocks_the_first_counts() -> None:
    sideways, upright = (
        segment(0xE1, b"Exif\0\0" + struct.pack("<2sHIHHHIHH", b"II", 42, 8, 1, 0x0112, 3, 1, n, 0))
        for n in (6, 1)
    )
    jpeg = as_jpeg(photo((90, 160)))

    png = sold(jpeg[:2] + sideways + upright + jpeg[2:], AspectRatio.LANDSCAPE_16_9)

    assert png.size == (160, 90)


# Provenance

IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_every_png_says_that_a_model_made_it(image_format: str) -> None:
    png = to_png(saved(photo(SQUARE), image_format), AspectRatio.SQUARE)

    xmp = opened(png).info["xmp"]
    description = ET.fromstring(xmp.decode()).find(".//*[@" + IPTC + "]")  # noqa: S314 - our own
    assert description is not None
    assert description.get(IPTC) == MADE_BY_A_MODEL


def test_the_marking_is_uncompressed_stands_before_the_pixels_and_takes_under_500_bytes() -> None:
    chunks = chunks_of(to_png(as_jpeg(photo(SQUARE)), AspectRatio.SQUARE))

    kinds = [kind for kind, _ in chunks]
    content = dict(chunks)[b"iTXt"]
    assert kinds.count(b"iTXt") == 1
    assert kinds.index(b"iTXt") < kinds.index(b"IDAT")
    assert content.startswith(b"XML:com.adobe.xmp\0\0\0\0\0<?xpacket")
    assert len(content) < 500


def test_a_manifest_signed_for_other_bytes_and_foreign_xmp_are_dropped() -> None:
    jpeg = as_jpeg(photo(SQUARE))
    foreign = segment(0xEB, b"JP\0\1jumbc2pa") + segment(
        0xE1, b"http://ns.adobe.com/xap/1.0/\0<x>secret prompt</x>"
    )
    sent = jpeg[:2] + foreign + jpeg[2:]
    png = to_png(png_with((b"caBX", b"jumbc2pa"), (b"tEXt", b"prompt\0secret")), AspectRatio.SQUARE)

    assert to_png(sent, AspectRatio.SQUARE) == to_png(jpeg, AspectRatio.SQUARE)
    assert b"c2pa" not in png
    assert b"secret" not in png
