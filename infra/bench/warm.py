"""CPU and time of a warm paid request, beside the twenty lines that a user would write instead.

"Bare" is google-genai, Pillow's default PNG and boto3's ``put_object``: no key, no ledger, no
refund. Both send the same prompts to the same servers, by turns, so that a slow minute of the
machine hits both; compare ratios, not milliseconds of different runs.
"""

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any, TypeVar
from unittest.mock import patch

import boto3
from google import genai
from google.genai import types
from PIL import Image

from handlers.dependencies import Dependencies
from infra.bench.caller import Caller, calling
from infra.bench.meters import percentile
from infra.bench.png_encoders import BYTES_TARGET, Picture, save_with_pillow
from infra.bench.servers import GEMINI_KEY, Reach
from infra.bench.words import least_median_most, table, verdict
from lib import generation
from lib.deadline import FUNCTION_TIMEOUT_S, Deadline
from lib.ledger.order import Order
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.png import encode_png, to_png
from lib.settings import Settings

__all__ = ["Warm", "measure", "report"]

CPU_TARGET = 0.30
PNG_APART_TARGET_MS = 18.0
WARM_UP = 3
LARGE_PIXELS = 2_000_000
T = TypeVar("T")


@dataclass
class Arm:
    """All requests of one of the two: milliseconds of CPU, and of the clock on the wall."""

    cpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)

    @property
    def cpu(self) -> float:
        """The median of CPU milliseconds."""
        return statistics.median(self.cpu_ms)

    def wall(self, percent: int) -> float:
        """A percentile of wall milliseconds."""
        return percentile(self.wall_ms, percent)


@dataclass(frozen=True)
class Compared:
    """One picture, by both; and how many bytes our PNG has over the default one."""

    picture: str
    is_large: bool
    ours: Arm
    bare: Arm
    size: float

    @property
    def cpu(self) -> float:
        """Our CPU over that of the bare script."""
        return self.ours.cpu / self.bare.cpu


@dataclass(frozen=True)
class Warm:
    """Every picture; medians of CPU milliseconds by room, and of a request less its PNG."""

    pictures: list[Compared]
    rooms: Mapping[str, float]
    apart_ms: float

    def all_of(self, arm: str, *, large: bool) -> Arm:
        """The requests with pictures of one size as one arm, ``ours`` or ``bare``."""
        arms = [getattr(each, arm) for each in self.pictures if each.is_large is large]
        return Arm(
            [value for each in arms for value in each.cpu_ms],
            [value for each in arms for value in each.wall_ms],
        )


def measure(reach: Reach, drawn: Sequence[Picture], requests: int) -> Warm:
    """``requests`` paid requests and as many bare ones at 1K, and half as many at 2K, by turns."""
    sizes = Counter(_is_large(picture) for _, picture, _ in drawn)
    found = []
    with calling(reach.environment, reach.api_key) as caller:
        bare = _Bare(reach.environment)
        for name, picture, _ in drawn:
            is_large = _is_large(picture)
            share = requests // (2 if is_large else 1) // sizes[is_large]
            ours, theirs = _by_turns(caller, bare, name, picture, max(2, share))
            size = len(encode_png(picture)) / len(save_with_pillow(picture))
            found.append(Compared(name, is_large, ours, theirs, size))
        rooms, apart_ms = _rooms(caller, reach.api_key, drawn[0][0], max(5, requests // 2))
    return Warm(found, rooms, apart_ms)


def _is_large(picture: Image.Image) -> bool:
    return picture.width * picture.height > LARGE_PIXELS


def _by_turns(
    caller: Caller, bare: "_Bare", name: str, picture: Image.Image, requests: int
) -> tuple[Arm, Arm]:
    ratio = "1:1" if picture.width == picture.height else "16:9"
    ours, theirs = Arm(), Arm()
    arms = ((ours, partial(caller.paid, name, ratio)), (theirs, partial(bare.image, name, ratio)))
    for number in range(WARM_UP + requests):
        for arm, request in arms:
            began_cpu, began = time.process_time(), time.perf_counter()
            request()
            cpu_s, wall_s = time.process_time() - began_cpu, time.perf_counter() - began
            if number >= WARM_UP:
                arm.cpu_ms.append(cpu_s * 1000)
                arm.wall_ms.append(wall_s * 1000)
    return ours, theirs


def _rooms(
    caller: Caller, api_key: str, prompt: str, requests: int
) -> tuple[dict[str, float], float]:
    """Where a paid request's CPU goes, room by room; and by turns what a whole one takes.

    Of a whole one its PNG is taken off, as it was measured in that very request.
    """
    rooms = Dependencies(Settings.from_environment())
    model, ledger, images, ratio = (
        rooms.model,
        rooms.ledger,
        rooms.images,
        AspectRatio.LANDSCAPE_16_9,
    )
    spent: dict[str, list[float]] = {}
    apart_ms: list[float] = []

    def timed(room: str, call: Callable[..., T], *arguments: Any) -> T:
        began = time.process_time()
        result = call(*arguments)
        spent.setdefault(room, []).append((time.process_time() - began) * 1000)
        return result

    for _ in range(WARM_UP + requests):
        with _png_timed() as png_ms:
            timed("whole", caller.paid, prompt, ratio.value)
        apart_ms.append(spent["whole"][-1] - sum(png_ms))
        deadline = Deadline(FUNCTION_TIMEOUT_S)
        organisation = timed("api_keys", rooms.key_verifier.organisation_of, f"Bearer {api_key}")
        order = Order(organisation, prompt, ratio)
        reserved = timed("reserve", ledger.reserve, order, _key, deadline)
        picture = timed("model", model.generate, prompt, ratio, deadline)
        png = timed("png", to_png, picture, ratio)
        stored = (reserved.image_key, png, reserved.attempt_id, deadline)
        timed("put", images.put, *stored)
        timed("settle", ledger.settle, reserved, 1, deadline)
    model.close()
    del spent["whole"]
    medians = {room: statistics.median(values[WARM_UP:]) for room, values in spent.items()}
    return medians, statistics.median(apart_ms[WARM_UP:])


@contextmanager
def _png_timed() -> Iterator[list[float]]:
    """The CPU milliseconds of each PNG that the service makes until the block ends."""
    took_ms: list[float] = []

    def timed_png(image: bytes, ratio: AspectRatio) -> bytes:
        began = time.process_time()
        png = to_png(image, ratio)
        took_ms.append((time.process_time() - began) * 1000)
        return png

    with patch.object(generation, "to_png", timed_png):
        yield took_ms


def _key(created_ms: int) -> str:
    return f"generated/rooms/{created_ms}.png"


class _Bare:
    """The script that a user would write."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        options = types.HttpOptions(base_url=environment["GOOGLE_GEMINI_BASE_URL"])
        self._gemini = genai.Client(api_key=GEMINI_KEY, http_options=options)
        self._s3 = boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL_S3"])
        self._bucket = environment["IMAGE_BUCKET"]
        self._number = 0

    def image(self, prompt: str, ratio: str) -> None:
        """One image."""
        answer = self._gemini.models.generate_content(
            model="gemini-3.1-flash-lite-image",
            contents=prompt,
            config=types.GenerateContentConfig(
                response_modalities=["IMAGE"],
                image_config=types.ImageConfig(aspect_ratio=ratio),
            ),
        )
        data = next(part.inline_data.data for part in answer.parts or [] if part.inline_data)
        png = save_with_pillow(Image.open(BytesIO(data or b"")))
        self._number += 1
        key = f"bare/{os.getpid()}-{self._number}.png"
        self._s3.put_object(Bucket=self._bucket, Key=key, Body=png, ContentType="image/png")


def report(warm: Warm) -> Iterator[str]:
    """The section of the results."""
    yield from ("## A warm paid request, beside the bare script", "")
    yield "CPU of the calling process, by turns; the servers are other processes. `bare` is"
    yield "google-genai, Pillow's default PNG and boto3's `put_object`, with no key and no ledger."
    yield ""
    yield from table(
        (
            "picture",
            "CPU, ours / bare",
            "target",
            "PNG bytes, ours / default",
            "target",
            "ours, CPU ms: median (least to most)",
            "bare, CPU ms",
        ),
        (
            (
                each.picture,
                f"**{each.cpu:.2f}**",
                verdict(each.cpu, CPU_TARGET),
                f"{each.size:.2f}",
                verdict(each.size, BYTES_TARGET),
                least_median_most(each.ours.cpu_ms),
                least_median_most(each.bare.cpu_ms),
            )
            for each in warm.pictures
        ),
    )
    yield from _why_missed(warm)
    yield ""
    yield from table(
        ("all requests", "number of each", "ours, wall ms: p50 / p95 / p99", "bare, wall ms"),
        (_walls(warm, large=False), _walls(warm, large=True)),
    )
    yield from ("", f"Where our CPU goes ({warm.pictures[0].picture}):", "")
    rest = warm.apart_ms - sum(ms for room, ms in warm.rooms.items() if room != "png")
    yield from table(
        ("room", "CPU ms, median"),
        [(room, f"{ms:.1f}") for room, ms in warm.rooms.items()]
        + [
            ("the rest: event, validation, log, metrics", f"{rest:.1f}"),
            (
                "**all but the PNG**",
                f"**{warm.apart_ms:.1f}**; {verdict(warm.apart_ms, PNG_APART_TARGET_MS, '.0f')}",
            ),
        ],
    )


def _why_missed(warm: Warm) -> Iterator[str]:
    missed = [each for each in warm.pictures if each.cpu > CPU_TARGET]
    if not missed:
        return
    least = min(each.bare.cpu for each in warm.pictures if not each.is_large)
    most = max(each.bare.cpu for each in warm.pictures if not each.is_large)
    yield ""
    yield f"Missed by {', '.join(each.picture for each in missed)}. At 1K the bare script needs"
    yield f"{least / most:.0%} of the CPU for the easiest picture that it needs for the hardest;"
    yield "what we spend on decoding, exact filters and calls is nearly the same for all. It would"
    yield "take the filters in one compiled pass, where now several go over each band: a compiler,"
    yield "or a wheel of our own for each platform. Bytes can't be traded for speed: they are near"
    yield "their limit, too."


def _walls(warm: Warm, *, large: bool) -> tuple[str, ...]:
    arms = warm.all_of("ours", large=large), warm.all_of("bare", large=large)
    walls = [" / ".join(f"{arm.wall(percent):.0f}" for percent in (50, 95, 99)) for arm in arms]
    return ("at 2K" if large else "at 1K", str(len(arms[0].wall_ms)), *walls)
