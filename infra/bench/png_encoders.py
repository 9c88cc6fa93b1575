"""CPU and bytes of our PNG encoder beside Pillow's default: ``python -m infra.bench.png_encoders``.

Run from a checkout, for the pictures are those of the tests. Each is sent through JPEG first, as
the image models do; what is timed is encoding alone, from decoded pixels to a PNG's bytes. The two
encoders take turns, so that a slow minute of the machine hits both; compare ratios, not
milliseconds of different runs. The exit status is 1 if a target is missed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from lib.picture.png import encode_png
from tests.pictures import as_jpeg, illustration, night_photo, noise, photo

__all__ = ["Figures", "Picture", "main", "measure", "pictures", "save_with_pillow"]

SIZES = ((1376, 768), (2048, 2048))
BYTES_TARGET = 1.10
CPU_TARGET = 0.30
# Pillow is quick where little is left after its filters, and so there is less to win.
ILLUSTRATION_CPU_TARGET = 0.50
KINDS: dict[str, tuple[Callable[[tuple[int, int]], Image.Image], float]] = {
    "photo by day": (photo, CPU_TARGET),
    "photo by night": (night_photo, CPU_TARGET),
    "illustration": (illustration, ILLUSTRATION_CPU_TARGET),
    "noise": (noise, CPU_TARGET),
}


Picture = tuple[str, Image.Image, float]
"""A name, the picture after JPEG, and what part of Pillow's CPU it is allowed."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One picture: medians of CPU milliseconds, and bytes, of Pillow's encoder and of ours."""

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
    """Encodes ``picture`` by both, in turns, ``repeats`` times each."""
    pillow_ms, our_ms = [], []
    pillow_png, our_png = b"", b""
    for _ in range(repeats):
        elapsed_ms, pillow_png = _timed(save_with_pillow, picture)
        pillow_ms.append(elapsed_ms)
        elapsed_ms, our_png = _timed(encode_png, picture)
        our_ms.append(elapsed_ms)
    return Figures(
        statistics.median(pillow_ms), statistics.median(our_ms), len(pillow_png), len(our_png)
    )


def _timed(encode: Callable[[Image.Image], bytes], picture: Image.Image) -> tuple[float, bytes]:
    start_s = time.process_time()
    png = encode(picture)
    return (time.process_time() - start_s) * 1000, png


def save_with_pillow(picture: Image.Image) -> bytes:
    """A PNG as Pillow makes it by default."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def pictures() -> Iterator[Picture]:
    """Draws the set."""
    for size in SIZES:
        for kind, (draw, cpu_target) in KINDS.items():
            sent = Image.open(BytesIO(as_jpeg(draw(size))))
            sent.load()
            yield f"{kind}, {size[0]}x{size[1]}", sent, cpu_target


def main() -> int:
    """Prints the table; 1 if a target is missed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=5, help="of each encoder (default 5)")
    repeats = options.parse_args().repeats
    missed = []
    print(f"{'picture':26}{'Pillow ms':>10}{'ours ms':>9}{'CPU':>7}{'target':>8}{'bytes':>8}")
    for name, picture, cpu_target in pictures():
        figures = measure(picture, repeats)
        print(
            f"{name:26}{figures.pillow_ms:10.0f}{figures.our_ms:9.0f}"
            f"{figures.cpu:7.2f}{cpu_target:8.2f}{figures.size:8.2f}",
            flush=True,
        )
        if figures.cpu > cpu_target or figures.size > BYTES_TARGET:
            missed.append(name)
    print(f"bytes: target {BYTES_TARGET:.2f}; missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
