"""CPU and bytes of our PNG encoder beside Pillow's: ``python -m infra.bench.png_encoders 5``.

It needs a checkout: the pictures are those of the tests, after JPEG, as image models send them.
Only the encoding of decoded pixels is timed. The encoders alternate, so that a slow minute of the
machine slows both; compare ratios, not milliseconds of different runs.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from infra.bench.tables import table, verdict
from lib.picture.png import encode_png
from tests.pictures import as_jpeg, illustration, night_photo, noise, photo

SIZES = ((1376, 768), (2048, 2048))
BYTES_TARGET = 1.10
CPU_TARGET = 0.30
# Pillow's deflate is fast on the little that its filters leave of an illustration.
ILLUSTRATION_CPU_TARGET = 0.50
KINDS: dict[str, tuple[Callable[[tuple[int, int]], Image.Image], float]] = {
    "photo by day": (photo, CPU_TARGET),
    "photo by night": (night_photo, CPU_TARGET),
    "illustration": (illustration, ILLUSTRATION_CPU_TARGET),
    "noise": (noise, CPU_TARGET),
}

Picture = tuple[str, Image.Image, float]
"""A name, the picture after JPEG, and the target for our CPU over Pillow's."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One picture by both encoders: median CPU milliseconds, and bytes."""

    pillow_ms: float
    our_ms: float
    pillow_bytes: int
    our_bytes: int

    @property
    def cpu(self) -> float:
        """Our CPU over Pillow's."""
        return self.our_ms / self.pillow_ms

    @property
    def size(self) -> float:
        """Our bytes over Pillow's."""
        return self.our_bytes / self.pillow_bytes


def measure(picture: Image.Image, repeats: int) -> Figures:
    """Encodes ``picture`` ``repeats`` times by each encoder, alternating."""
    took_ms: list[list[float]] = [[], []]
    sizes = [0, 0]
    for number, encode in enumerate((save_with_pillow, encode_png) * repeats):
        start_s = time.process_time()
        sizes[number % 2] = len(encode(picture))
        took_ms[number % 2].append((time.process_time() - start_s) * 1000)
    pillow_ms, our_ms = map(statistics.median, took_ms)
    return Figures(pillow_ms, our_ms, *sizes)


def save_with_pillow(picture: Image.Image) -> bytes:
    """Pillow's default PNG."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def pictures() -> Iterator[Picture]:
    """Draws every kind in every size."""
    for size in SIZES:
        for kind, (draw, cpu_target) in KINDS.items():
            picture = Image.open(BytesIO(as_jpeg(draw(size))))
            picture.load()
            yield f"{kind}, {size[0]}x{size[1]}", picture, cpu_target


def main() -> int:
    """Prints the table; returns 1 if a target is missed."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    rows = []
    for name, picture, target in pictures():
        found = measure(picture, repeats)
        cpu = f"{found.cpu:.2f}; {verdict(found.cpu, target)}"
        size = f"{found.size:.2f}; {verdict(found.size, BYTES_TARGET)}"
        rows.append((name, f"{found.pillow_ms:.0f}", f"{found.our_ms:.0f}", cpu, size))
    head = ("picture", "Pillow, CPU ms", "ours", "CPU, ours / Pillow", "bytes")
    lines = list(table(head, rows))
    print("\n".join(lines))
    return int("missed" in "".join(lines))


if __name__ == "__main__":
    sys.exit(main())
