"""CPU and time of a warm paid request, beside the script that a user would write instead.

The bare script is google-genai, Pillow's default PNG and boto3's ``put_object``: no key, no ledger,
no refund. Both send the same prompts to the same servers, alternating, so that a slow minute of the
machine slows both; compare ratios, not milliseconds of different runs.
"""

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field
from functools import partial
from io import BytesIO
from itertools import chain, count
from typing import Any
from unittest.mock import patch

import boto3
from google import genai
from google.genai import types
from PIL import Image

from infra.bench.caller import configured, expect, paid_event
from infra.bench.meters import percentile
from infra.bench.png_encoders import BYTES_TARGET, Picture, save_with_pillow
from infra.bench.servers import GEMINI_KEY, Servers
from infra.bench.tables import section, spread, table, verdict
from lib import generation
from lib.keys.verification import KeyVerifier
from lib.ledger.ledger import Ledger
from lib.picture.gemini import Gemini
from lib.picture.png import encode_png
from lib.picture.storage import Images

CPU_TARGET = 0.25
# What the bare script spends on an illustration is little to begin with; our decoding, exact
# filters and calls cost nearly the same for every picture.
ILLUSTRATION_CPU_TARGET = 0.44
OWN_CPU_TARGET_MS = 16.0
WARM_UP = 3
PNG = "encode the PNG"
STEPS: tuple[tuple[str, object, str], ...] = (
    ("verify the key", KeyVerifier, "verify"),
    ("reserve", Ledger, "reserve"),
    ("call the model", Gemini, "generate"),
    (PNG, generation, "to_png"),
    ("store the image", Images, "put"),
    ("settle", Ledger, "settle"),
)


@dataclass
class Samples:
    """Milliseconds of CPU and of wall time, one of each a request."""

    cpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)

    def add(self, request: Callable[[], object]) -> None:
        """Times one request."""
        began_cpu, began = time.process_time(), time.perf_counter()
        request()
        self.cpu_ms.append((time.process_time() - began_cpu) * 1000)
        self.wall_ms.append((time.perf_counter() - began) * 1000)


@dataclass(frozen=True)
class Comparison:
    """One picture by the service and by the bare script; ``size`` is PNG bytes, ours over its."""

    picture: str
    is_large: bool
    ours: Samples
    bare: Samples
    size: float

    @property
    def cpu(self) -> float:
        """Our median CPU over that of the bare script."""
        return statistics.median(self.ours.cpu_ms) / statistics.median(self.bare.cpu_ms)


@dataclass(frozen=True)
class Warm:
    """Every picture; median CPU milliseconds of each step, and of a request without its PNG."""

    pictures: list[Comparison]
    steps: Mapping[str, float]
    own_cpu_ms: float

    def samples(self, arm: str, *, large: bool) -> Samples:
        """All requests of ``ours`` or ``bare`` for pictures of one size."""
        arms = [getattr(each, arm) for each in self.pictures if each.is_large is large]
        cpu_ms, wall_ms = ([*chain(*each)] for each in zip(*map(astuple, arms), strict=True))
        return Samples(cpu_ms, wall_ms)


def measure(servers: Servers, drawn: Sequence[Picture], requests: int) -> Warm:
    """Makes ``requests`` paid and as many bare requests at 1K, and half as many at 2K."""
    sizes = Counter(picture.width == picture.height for _, picture, _ in drawn)
    found = []
    with configured(servers.environment):
        bare = _bare_script(servers.environment)
        for name, picture, _ in drawn:
            large = picture.width == picture.height
            ratio = "1:1" if large else "16:9"
            event = paid_event(servers.api_key, name, ratio)
            ours, theirs = Samples(), Samples()
            for number in range(WARM_UP + max(2, requests // (1 + large) // sizes[large])):
                if number == WARM_UP:
                    ours, theirs = Samples(), Samples()
                ours.add(partial(expect, 200, event))
                theirs.add(partial(bare, name, ratio))
            size = len(encode_png(picture)) / len(save_with_pillow(picture))
            found.append(Comparison(name, large, ours, theirs, size))
        event = paid_event(servers.api_key, drawn[0][0], "16:9")
        steps, own_cpu_ms = _cpu_by_step(event, max(5, requests // 2))
    return Warm(found, steps, own_cpu_ms)


def _bare_script(environment: Mapping[str, str]) -> Callable[[str, str], None]:
    """The script that a user would write: it stores the image of a prompt in a ratio."""
    options = types.HttpOptions(base_url=environment["GOOGLE_GEMINI_BASE_URL"])
    gemini = genai.Client(api_key=GEMINI_KEY, http_options=options)
    s3 = boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL_S3"])
    bucket, numbers = environment["IMAGE_BUCKET"], count()

    def image(prompt: str, ratio: str) -> None:
        answer = gemini.models.generate_content(
            model="gemini-3.1-flash-lite-image",
            contents=prompt,
            config=types.GenerateContentConfig(
                response_modalities=["IMAGE"], image_config=types.ImageConfig(aspect_ratio=ratio)
            ),
        )
        data = next(part.inline_data.data for part in answer.parts or [] if part.inline_data)
        png = save_with_pillow(Image.open(BytesIO(data or b"")))
        key = f"bare/{os.getpid()}-{next(numbers)}.png"
        s3.put_object(Bucket=bucket, Key=key, Body=png, ContentType="image/png")

    return image


def _cpu_by_step(event: Mapping[str, Any], requests: int) -> tuple[dict[str, float], float]:
    """Median CPU milliseconds of each step of a request, and of a whole request without its PNG."""
    spent: dict[str, list[float]] = {step: [] for step, _, _ in STEPS}
    whole_ms: list[float] = []

    def timed(took_ms: list[float], call: Any) -> Any:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            began = time.process_time()
            result = call(*arguments, **named)
            took_ms.append((time.process_time() - began) * 1000)
            return result

        return wrapper

    with ExitStack() as patched:
        for step, owner, name in STEPS:
            wrapped = timed(spent[step], getattr(owner, name))
            patched.enter_context(patch.object(owner, name, wrapped))
        request = timed(whole_ms, expect)
        for _ in range(WARM_UP + requests):
            request(200, event)
    own_ms = [whole - png for whole, png in zip(whole_ms, spent[PNG], strict=True)]
    medians = {step: statistics.median(values[WARM_UP:]) for step, values in spent.items()}
    return medians, statistics.median(own_ms[WARM_UP:])


def report(warm: Warm) -> Iterator[str]:
    """The section of the results."""
    yield from section(
        "A warm paid request, beside the bare script",
        "CPU of the calling process; requests alternate, and the servers are other processes.",
        "`bare` is google-genai, Pillow's default PNG and boto3's `put_object`: no key, no ledger.",
    )
    ratios = ("CPU, ours / bare", "target", "PNG bytes, ours / default", "target")
    head: tuple[str, ...] = ("picture", *ratios)
    rows: list[tuple[str, ...]] = []
    for each in warm.pictures:
        cpu = (f"**{each.cpu:.2f}**", verdict(each.cpu, cpu_target(each.picture)))
        size = (f"{each.size:.2f}", verdict(each.size, BYTES_TARGET))
        rows.append((each.picture, *cpu, *size, spread(each.ours.cpu_ms), spread(each.bare.cpu_ms)))
    yield from table((*head, "ours, CPU ms: median (min to max)", "bare, CPU ms"), rows)
    head = ("all requests", "of each", "ours, wall ms: p50 / p95 / p99", "bare, wall ms")
    yield from ("", *table(head, (_walls(warm, large=large) for large in (False, True))))
    yield from ("", f"Our CPU by step ({warm.pictures[0].picture}):", "")
    rest = warm.own_cpu_ms - sum(ms for step, ms in warm.steps.items() if step != PNG)
    own = f"**{warm.own_cpu_ms:.1f}**; {verdict(warm.own_cpu_ms, OWN_CPU_TARGET_MS, '.0f')}"
    rows = [(step, f"{ms:.1f}") for step, ms in warm.steps.items()]
    rows.append(("the rest: event, validation, log, metrics", f"{rest:.1f}"))
    yield from table(("step", "CPU ms, median"), [*rows, ("**everything but the PNG**", own)])


def cpu_target(picture: str) -> float:
    """The target for the ratio of our CPU to the bare script's."""
    return ILLUSTRATION_CPU_TARGET if "illustration" in picture else CPU_TARGET


def _walls(warm: Warm, *, large: bool) -> tuple[str, ...]:
    arms = [warm.samples(arm, large=large).wall_ms for arm in ("ours", "bare")]
    walls = [" / ".join(f"{percentile(arm, rank):.0f}" for rank in (50, 95, 99)) for arm in arms]
    return ("at 2K" if large else "at 1K", str(len(arms[0])), *walls)
