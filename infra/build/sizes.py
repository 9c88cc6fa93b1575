"""How large an artifact is, and what of it."""

import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path

__all__ = ["largest_parts", "report", "unzipped_bytes", "zipped_bytes"]

_PARTS = 10
_MB = 1_000_000


def unzipped_bytes(directory: Path) -> int:
    """The sum of all files' sizes, which is what Lambda's limit of 250 MB is about."""
    return sum(_sizes(directory).values())


def zipped_bytes(directory: Path) -> int:
    """The size of a zip file of the directory."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _sizes(directory):
            archive.write(directory / name, name)
    return len(buffer.getbuffer())


def report(directory: Path) -> str:
    """Both sizes, and the largest parts: packages, and what is beside them."""
    unzipped, zipped = unzipped_bytes(directory), zipped_bytes(directory)
    lines = [f"{unzipped / _MB:.1f} MB unzipped, {zipped / _MB:.1f} MB zipped; the largest parts:"]
    lines += [f"{size / _MB:8.2f} MB  {part}" for part, size in largest_parts(directory)]
    return "\n".join(lines)


def largest_parts(directory: Path) -> list[tuple[str, int]]:
    """Names and bytes of the ten largest packages and files, the largest first."""
    parts: Counter[str] = Counter()
    for name, size in _sizes(directory).items():
        parts[name.split("/", 1)[0]] += size
    return parts.most_common(_PARTS)


def _sizes(directory: Path) -> dict[str, int]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}
