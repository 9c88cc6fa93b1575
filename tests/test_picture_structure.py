import logging
import random
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import get_args

import pytest
from PIL import Image

from lib.errors import NoImageReturned
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.check import MAX_IMAGE_BYTES, MAX_PIXELS
from lib.picture.jpeg_file import MAX_FILL_BYTES, MAX_RESTARTS, MAX_SCANS, MAX_SEGMENTS
from lib.picture.picture_file import Reason, UnusablePicture
from lib.picture.png import to_png
from lib.picture.png_file import MAX_CHUNKS as MAX_PNG_CHUNKS
from lib.picture.webp_file import MAX_CHUNKS as MAX_WEBP_CHUNKS
from tests.picture_files import (
    SQUARE,
    chunks_of,
    png_of,
    progressive_jpeg,
    reason,
    refusal,
    saved,
    segment,
    sold,
)
from tests.pictures import as_jpeg, as_png, as_webp, gradient, illustration, noise, photo

COMMENT, APP1, APP11, DRI = 0xFE, 0xE1, 0xEB, 0xDD
EOI = b"\xff\xd9"
LARGEST_PX = 4472
SMALL = as_jpeg(Image.new("RGB", (64, 64), (9, 99, 200)))
PHOTO = photo((512, 512))
PHOTO_JPEG = as_jpeg(PHOTO, quality=92)
PHOTO_PNG = as_png(photo(SQUARE))
DC = (0, 0, 0, 0)
AC = (1, 63, 0, 0)


def after_soi(*blocks: bytes) -> bytes:
    return b"".join((SMALL[:2], *blocks, SMALL[2:]))


def after_header(png: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    header, *others = chunks_of(png)
    return png_of(header, *chunks, *others)


def webp_with(junk: bytes) -> bytes:
    body = as_webp(photo(SQUARE))[8:] + junk
    return b"RIFF" + struct.pack("<I", len(body)) + body


# More blocks than a real file has

NO_CHUNK = png_of((b"tEXt", b""))[8:]
FLOODS: dict[str, Callable[[], bytes]] = {
    "2,000 scans": lambda: progressive_jpeg(LARGEST_PX, [DC, *[AC] * 2_000]),
    "26,000 scans": lambda: progressive_jpeg(LARGEST_PX, [DC, *[AC] * 26_000]),
    "a scan too many that refines": lambda: progressive_jpeg(
        LARGEST_PX,
        [DC, *((k, k, 0, 1) for k in range(1, 64)), *((k, k, 1, 0) for k in range(1, 64))],
    ),
    "750,000 comments": lambda: after_soi(segment(COMMENT, b"") * 750_000),
    "7,500,000 comments": lambda: after_soi(segment(COMMENT, b"") * 7_500_000),
    "empty EXIF segments": lambda: after_soi(segment(APP1, b"Exif\0\0") * 1_000_000),
    "empty C2PA segments": lambda: after_soi(segment(APP11, b"") * 1_000_000),
    "32 MB of fill after SOI": lambda: after_soi(b"\xff" * 32_000_000),
    "32 MB of fill before EOI": lambda: SMALL[:-2] + b"\xff" * 32_000_000 + EOI,
    "fill in many places": lambda: after_soi((b"\xff" * 100 + segment(COMMENT, b"")) * 1_000),
    "30 MB of restart markers": lambda: (
        SMALL[:-2] + bytes.fromhex("ffd0ffd1ffd2ffd3ffd4ffd5ffd6ffd7") * 1_900_000 + EOI
    ),
    "2,000,000 empty PNG chunks": lambda: PHOTO_PNG[:33] + NO_CHUNK * 2_000_000 + PHOTO_PNG[33:],
    "2,000,000 empty IDAT chunks": lambda: (
        PHOTO_PNG[:33] + png_of((b"IDAT", b""))[8:] * 2_000_000 + PHOTO_PNG[33:]
    ),
    "2,000,000 empty WebP chunks": lambda: webp_with(b"JUNK\0\0\0\0" * 2_000_000),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_of_blocks_is_refused_at_once(flood: Callable[[], bytes]) -> None:
    sent = flood()
    assert len(sent) <= MAX_IMAGE_BYTES
    start_s = time.process_time()

    assert reason(sent) == "structure"

    assert time.process_time() - start_s < 0.5


def test_a_flood_of_stuffed_bytes_ends_with_the_picture() -> None:
    start_s = time.process_time()

    assert reason(SMALL[:-2] + b"\xff\0" * 15_000_000 + EOI) == "damaged"

    assert time.process_time() - start_s < 1.0


@pytest.mark.parametrize(
    ("fits", "exceeds"),
    [
        (
            after_soi(segment(COMMENT, b"") * (MAX_SEGMENTS - 20)),
            after_soi(segment(COMMENT, b"") * MAX_SEGMENTS),
        ),
        (after_soi(b"\xff" * MAX_FILL_BYTES), after_soi(b"\xff" * (MAX_FILL_BYTES + 1))),
        (
            progressive_jpeg(64, [DC, *((k, k, 0, 0) for k in range(1, MAX_SCANS))]),
            progressive_jpeg(
                64, [DC, (1, 1, 0, 1), (1, 1, 1, 0)] + [(k, k, 0, 0) for k in range(2, 64)]
            ),
        ),
        (
            after_header(PHOTO_PNG, *[(b"tEXt", b"")] * (MAX_PNG_CHUNKS - 20)),
            after_header(PHOTO_PNG, *[(b"tEXt", b"")] * MAX_PNG_CHUNKS),
        ),
        (
            webp_with(b"JUNK\0\0\0\0" * (MAX_WEBP_CHUNKS - 5)),
            webp_with(b"JUNK\0\0\0\0" * MAX_WEBP_CHUNKS),
        ),
    ],
    ids=["segments", "fill", "scans", "png chunks", "webp chunks"],
)
def test_a_file_at_the_bound_is_sold_and_one_over_it_refused(fits: bytes, exceeds: bytes) -> None:
    assert min(sold(fits).size) >= 64
    assert reason(exceeds) == "structure"


def test_the_slowest_file_within_the_bounds_takes_no_longer_than_a_picture_may() -> None:
    """45 passes over a picture of the largest size; one with 26,000 took 36 s."""
    highest = 13
    passes = [(1, 63, 0, highest), *((1, 63, bit + 1, bit) for bit in reversed(range(highest)))]
    start_s = time.process_time()

    sold(progressive_jpeg(LARGEST_PX, [DC, *passes]))

    assert time.process_time() - start_s < 3.0


def split_pixels(png: bytes, chunk_bytes: int) -> bytes:
    chunks = []
    for kind, content in chunks_of(png):
        cuts = range(0, len(content), chunk_bytes) if kind == b"IDAT" else [0]
        size = chunk_bytes if kind == b"IDAT" else len(content)
        chunks += [(kind, content[cut : cut + size]) for cut in cuts]
    return png_of(*chunks)


def adobe(transform: int) -> bytes:
    """A JPEG with an Adobe marker in the place of JFIF's."""
    marker = segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))
    return PHOTO_JPEG[:2] + marker + PHOTO_JPEG[PHOTO_JPEG.index(b"\xff\xdb") :]


REAL_FILES = {
    "a manifest with thumbnails": after_soi(segment(APP11, b"jumb" * 16_000) * 20),
    "comments and padding": after_soi(segment(COMMENT, b"Lavc") + b"\xff" * 511),
    "a gain map after the picture": SMALL + SMALL,
    "restarts": saved(PHOTO, "JPEG", restart_marker_rows=1),
    "restarts, progressive": saved(PHOTO, "JPEG", restart_marker_blocks=5, progressive=True),
    "its own Huffman tables": saved(PHOTO, "JPEG", optimize=True),
    "every quality": saved(noise((512, 512)), "JPEG", quality=100, subsampling=0),
    "grey": saved(PHOTO.convert("L"), "JPEG"),
    "grey, progressive": saved(PHOTO.convert("L"), "JPEG", progressive=True),
    "RGB, not YCbCr": saved(PHOTO, "JPEG", keep_rgb=True),
    "RGB, as the Adobe marker alone tells": adobe(transform=0),
    "YCbCr, as the Adobe marker tells": adobe(transform=1),
    "32 bytes of padding after the pixels": PHOTO_JPEG[:-2] + bytes(32) + EOI,
    "pixels in chunks of 100 bytes": split_pixels(PHOTO_PNG, 100),
}


@pytest.mark.parametrize("real", REAL_FILES.values(), ids=REAL_FILES)
def test_a_file_as_encoders_write_it_is_sold_with_the_pixels_that_pillow_sees(real: bytes) -> None:
    seen = Image.open(BytesIO(real)).convert("RGB")

    assert sold(real).tobytes() == seen.tobytes()


def test_nothing_compressed_beside_the_pixels_is_unpacked() -> None:
    bomb = zlib.compress(bytes(20_000_000))
    chunks = [(b"zTXt", b"comment\0\0" + bomb), (b"iTXt", b"comment\0\1\0\0\0" + bomb)]
    start_s = time.process_time()

    png = sold(after_header(PHOTO_PNG, *(chunks * 500)))

    assert png.tobytes() == photo(SQUARE).tobytes()
    assert time.process_time() - start_s < 1.0


def exif_flood(tags: int, total: int) -> bytes:
    """An EXIF directory of many tags that each claim the same tens of kilobytes."""
    offset = 8 + 2 + 12 * tags + 4
    numbers = [tag for tag in range(1, 65_536) if tag != 0x112][:tags]
    entries = (struct.pack("<HHII", tag, 7, total - offset, offset) for tag in numbers)
    directory = struct.pack("<IH", 8, tags) + b"".join(entries)
    return b"II*\0" + directory + bytes(4 + total - offset)


@pytest.mark.parametrize(
    "sent",
    [
        after_soi(segment(APP1, b"Exif\0\0" + exif_flood(2_700, 65_000))),
        after_header(PHOTO_PNG, (b"eXIf", exif_flood(60_000, 2_000_000))),
        saved(photo(SQUARE), "WEBP", exif=exif_flood(2_700, 65_000)),
    ],
    ids=["jpeg", "png", "webp"],
)
def test_exif_of_thousands_of_tags_prints_and_logs_nothing(
    sent: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        sold(sent)

    assert warned == []
    assert capfd.readouterr() == ("", "")
    assert [line for line in caplog.records if line.levelno >= logging.INFO] == []


# Damage


def closed(jpeg: bytes, part: float) -> bytes:
    """The first ``part`` of a JPEG, with an EOI as if that were all."""
    return jpeg[: int(len(jpeg) * part)] + EOI


def without(data: bytes, size: int, part: float = 1 / 3) -> bytes:
    at = int(len(data) * part)
    return data[:at] + data[at + size :]


def zeroed(data: bytes, size: int, part: float = 1 / 3) -> bytes:
    at = int(len(data) * part)
    return data[:at] + bytes(size) + data[at + size :]


PROGRESSIVE = saved(PHOTO, "JPEG", progressive=True)
RESTARTS = saved(PHOTO, "JPEG", restart_marker_rows=1)
LAST_SCAN = PROGRESSIVE.rindex(b"\xff\xda")
DAMAGED = {
    "cut": PHOTO_JPEG[: len(PHOTO_JPEG) * 6 // 10],
    "cut and closed with EOI": closed(PHOTO_JPEG, 0.6),
    "cut and closed with a table": closed(PHOTO_JPEG, 0.6)[:-2] + segment(DRI, b"\0\0") + EOI,
    "cut at the end and closed": PHOTO_JPEG[:-40] + EOI,
    "4 KB missing in the middle": without(PHOTO_JPEG, 4096),
    "1 KB zeroed": zeroed(PHOTO_JPEG, 1024),
    "200 bytes too many": PHOTO_JPEG[:-2] + bytes(200) + EOI,
    "its second half zeroed": zeroed(PHOTO_JPEG[:-2], len(PHOTO_JPEG) // 2 - 2, 0.5) + EOI,
    "grey, cut and closed": closed(saved(PHOTO.convert("L"), "JPEG"), 0.6),
    "restarts, cut and closed": closed(RESTARTS, 0.6),
    "restarts, one row missing": RESTARTS[: RESTARTS.index(b"\xff\xd3")]
    + RESTARTS[RESTARTS.index(b"\xff\xd4") :],
    "restarts without an interval": PHOTO_JPEG[:-2] + b"\xff\xd3" + EOI,
    "progressive, cut and closed": closed(PROGRESSIVE, 0.4),
    "progressive, without its last scan": PROGRESSIVE[:LAST_SCAN] + EOI,
    "no scan": SMALL[: SMALL.index(b"\xff\xda")] + EOI,
    "no frame": b"\xff\xd8" + EOI + bytes(20),
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_damage_that_a_decoder_only_warns_about_is_refused(damaged: bytes) -> None:
    assert reason(damaged) == "damaged"


@pytest.mark.parametrize("draw", [photo, illustration, gradient, noise])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"subsampling": 0}], ids=str)
def test_a_jpeg_cut_anywhere_and_closed_is_refused(
    draw: object, options: dict[str, object]
) -> None:
    assert callable(draw)
    whole = saved(draw((256, 256)), "JPEG", quality=90, **options)
    pixels = whole.index(b"\xff\xda") + 14
    sold(whole)

    for length in range(pixels, len(whole) - 40, max((len(whole) - pixels) // 50, 1)):
        refusal(whole[:length] + EOI)


def test_nineteen_of_twenty_jpegs_that_miss_512_bytes_are_refused() -> None:
    chance = random.Random(3)  # noqa: S311 - it damages
    first = PHOTO_JPEG.index(b"\xff\xda") + 14
    refused = 0
    for _ in range(100):
        at = chance.randrange(first, len(PHOTO_JPEG) - 600)
        try:
            to_png(PHOTO_JPEG[:at] + PHOTO_JPEG[at + 512 :], AspectRatio.SQUARE)
        except NoImageReturned:
            refused += 1

    assert refused >= 95


def test_altered_bytes_of_a_lossy_webp_are_not_noticed() -> None:
    """WebP has no checksum. The documentation promises no more than this."""
    webp = saved(PHOTO, "WEBP", quality=90)

    assert sold(zeroed(webp, 8, 0.5)).size == PHOTO.size


@pytest.mark.parametrize(
    ("first", "second"),
    [((0, 0, 0, 1), (0, 0, 0, 0)), (DC, (0, 0, 2, 1)), (DC, (1, 64, 0, 0)), (DC, (9, 3, 0, 0))],
    ids=["sent twice", "refines what is not due", "a 65th coefficient", "backwards"],
)
def test_a_scan_that_no_encoder_writes_is_refused(
    first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    assert reason(progressive_jpeg(64, [first, second])) == "structure"


@pytest.mark.parametrize(
    "odd",
    [
        after_soi(b"\xff\xd8"),
        after_soi(b"\xff\xd0"),
        after_soi(b"\xff\x01"),
        after_soi(b"\xff\xfe\x00\x01"),
        SMALL[: SMALL.index(b"\xff\xda")] + b"junk" + SMALL[SMALL.index(b"\xff\xda") :],
        after_soi(SMALL[SMALL.index(b"\xff\xc0") : SMALL.index(b"\xff\xc4")]),
        png_of(*chunks_of(PHOTO_PNG)[1:]),
        png_of((b"IHDR", b"short"), *chunks_of(PHOTO_PNG)[1:]),
    ],
    ids=[
        "two starts",
        "a restart among the tables",
        "a reserved marker",
        "a segment shorter than its length",
        "junk between segments",
        "two frames",
        "a PNG without header",
        "a PNG with half a header",
    ],
)
def test_blocks_in_disorder_are_refused(odd: bytes) -> None:
    assert reason(odd) == "structure"


# Why

BROKEN_RULES: dict[Reason, bytes] = {
    "cmyk": saved(photo(SQUARE).convert("CMYK"), "JPEG", icc_profile=b"CMYK" * 40),
    "colour": saved(
        photo(SQUARE), "PNG", icc_profile=bytes(16) + b"RGB " + bytes(16) + b"acsp" + bytes(300_000)
    ),
    "damaged": PHOTO_JPEG[:-1000],
    "format": b"\0\0\0\x20ftypavif" + bytes(100),
    "pixels": saved(Image.new("L", (LARGEST_PX + 10, LARGEST_PX)), "PNG"),
    "ratio": as_jpeg(photo((96, 160))),
    "structure": FLOODS["2,000 scans"](),
    "too_large": SMALL + bytes(MAX_IMAGE_BYTES),
    "too_small": as_jpeg(photo((63, 63))),
}


@pytest.mark.parametrize("code", get_args(Reason))
def test_a_refusal_says_which_rule_was_broken(code: Reason) -> None:
    refused = refusal(BROKEN_RULES[code])

    assert isinstance(refused.__cause__, UnusablePicture)
    assert (refused.__cause__.reason, str(refused.__cause__)) == (code, code)


def test_the_log_of_a_refusal_holds_its_first_bytes_and_length_and_nothing_else() -> None:
    avif = b"\x00\x00\x00\x20ftypavif" + b"the customer's picture" * 100

    refused = refusal(avif)

    assert refused.log_fields() == {
        "reason": "format",
        "magic": "000000206674797061766966",
        "length": len(avif),
    }
    assert "customer" not in f"{refused.body()}{refused}"


@pytest.mark.parametrize("code", ["cmyk", "pixels", "ratio", "too_small"])
def test_a_refusal_of_a_picture_that_could_be_read_says_how_large_it_is(code: Reason) -> None:
    refused = refusal(BROKEN_RULES[code])

    sizes = {"cmyk": SQUARE, "pixels": (4482, 4472), "ratio": (96, 160), "too_small": (63, 63)}
    width, height = sizes[code]
    assert refused.log_fields()["size"] == f"{width}x{height}"


def test_restarts_are_bounded_by_the_blocks_of_the_largest_picture() -> None:
    assert MAX_RESTARTS * 64 == MAX_PIXELS
