"""CPU and time of a warm paid request, beside the twenty lines that a user would write instead.

"Bare" is google-genai, Pillow's default PNG and boto3's ``put_object``: no key, no ledger, no
refund. Both send the same prompts to the same servers, by turns, so that a slow minute of the
machine hits both; compare ratios, not milliseconds of different runs.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import boto3
from google import genai
from google.genai import types
from PIL import Image

from handlers.composition import Rooms
from handlers.generate import handler
from infra.bench.png_encoders import pictures
from infra.bench.servers import Reach
from infra.local.functions import LambdaContext
from lib.deadline import FUNCTION_TIMEOUT_S, Deadline
from lib.gemini import Gemini
from lib.ledger import Order
from lib.models import AspectRatio
from lib.png import to_png
from lib.settings import Settings

__all__ = ["ROOMS", "Arm", "Compared", "Sample", "measure", "measure_rooms"]

ROUTE = "POST /api/v1/models/gemini/generate"
WARM_UP = 5
T = TypeVar("T")
ROOMS = ("api_keys", "reserve", "model", "png", "put", "settle")


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: milliseconds of this process's CPU, and of the clock on the wall."""

    cpu_ms: float
    wall_ms: float


@dataclass
class Arm:
    """All requests of one of the two."""

    samples: list[Sample] = field(default_factory=list)

    def cpu_ms(self) -> float:
        """The median."""
        return statistics.median(sample.cpu_ms for sample in self.samples)

    def wall_ms(self, percent: int) -> float:
        """A percentile."""
        ordered = sorted(sample.wall_ms for sample in self.samples)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


@dataclass(frozen=True)
class Compared:
    """One picture, by both."""

    picture: str
    ours: Arm
    bare: Arm

    @property
    def cpu(self) -> float:
        """Our CPU over that of the bare script."""
        return self.ours.cpu_ms() / self.bare.cpu_ms()


def measure(reach: Reach, requests: int) -> list[Compared]:
    """``requests`` paid requests and as many bare ones, by turns, for each picture of the set."""
    os.environ.update(reach.environment)
    bare = _Bare(reach.environment)
    found = []
    for name, picture, _ in pictures():
        ratio = "1:1" if picture.width == picture.height else "16:9"
        ours, theirs = Arm(), Arm()
        arms = (
            (ours, partial(_paid, reach.api_key, name, ratio)),
            (theirs, partial(bare.request, name, ratio)),
        )
        for number in range(WARM_UP + requests):
            for arm, request in arms:
                sample = _timed(request)
                if number >= WARM_UP:
                    arm.samples.append(sample)
        found.append(Compared(name, ours, theirs))
    return found


def measure_rooms(reach: Reach, requests: int) -> Mapping[str, float]:
    """Where a paid request's CPU goes: medians of milliseconds by room, on the first picture."""
    os.environ.update(reach.environment)
    rooms = Rooms(Settings.from_environment())
    model = Gemini(rooms.gemini_api_key, rooms.settings.gemini_model)
    name, *_ = next(pictures())
    spent: dict[str, list[float]] = {room: [] for room in ROOMS}

    def timed(room: str, call: Callable[..., T], *arguments: Any) -> T:
        began = time.process_time()
        result = call(*arguments)
        spent[room].append((time.process_time() - began) * 1000)
        return result

    ratio = AspectRatio.LANDSCAPE_16_9
    ledger, images = rooms.ledger, rooms.images
    for _ in range(WARM_UP + requests):
        deadline = Deadline(FUNCTION_TIMEOUT_S)
        bearer = f"Bearer {reach.api_key}"
        organisation = timed("api_keys", rooms.api_keys.organisation_of, bearer)
        order = Order(organisation, name, ratio)
        generation = timed("reserve", ledger.reserve, order, _key, deadline)
        picture = timed("model", model.generate, name, ratio, deadline)
        png = timed("png", to_png, picture, ratio)
        stored = (generation.image_key, png, generation.attempt_id, deadline)
        timed("put", images.put, *stored)
        timed("settle", ledger.settle, generation, 1, deadline)
    model.close()
    return {room: statistics.median(values[WARM_UP:]) for room, values in spent.items()}


def _key(created_ms: int) -> str:
    return f"generated/rooms/{created_ms}.png"


def _timed(request: Callable[[], None]) -> Sample:
    began_cpu, began = time.process_time(), time.perf_counter()
    request()
    return Sample((time.process_time() - began_cpu) * 1000, (time.perf_counter() - began) * 1000)


def _paid(api_key: str, prompt: str, ratio: str) -> None:
    event = {
        "version": "2.0",
        "routeKey": ROUTE,
        "headers": {"authorization": f"Bearer {api_key}"},
        "requestContext": {"requestId": "bench"},
        "body": json.dumps({"prompt": prompt, "aspectRatio": ratio}),
        "isBase64Encoded": False,
    }
    context: Any = LambdaContext("bench", "1024", FUNCTION_TIMEOUT_S)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        answer = handler(event, context)
    if answer["statusCode"] != 200:  # noqa: PLR2004 - OK
        raise RuntimeError(f"the service answered {answer['statusCode']} to {prompt}")


class _Bare:
    """The script that a user would write."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        options = types.HttpOptions(base_url=environment["GOOGLE_GEMINI_BASE_URL"])
        self._gemini = genai.Client(api_key="any-key-will-do", http_options=options)
        self._s3 = boto3.client("s3")
        self._bucket = environment["IMAGE_BUCKET"]
        self._number = 0

    def request(self, prompt: str, ratio: str) -> None:
        """One image."""
        answer = self._gemini.models.generate_content(
            model="gemini-3.1-flash-lite-image",
            contents=prompt,
            config=types.GenerateContentConfig(
                response_modalities=["IMAGE"],
                image_config=types.ImageConfig(aspect_ratio=ratio),
            ),
        )
        parts = answer.parts or []
        data = next(part.inline_data.data for part in parts if part.inline_data)
        written = BytesIO()
        Image.open(BytesIO(data or b"")).save(written, "PNG")
        self._number += 1
        key = f"bare/{self._number}.png"
        self._s3.put_object(
            Bucket=self._bucket, Key=key, Body=written.getvalue(), ContentType="image/png"
        )
