"""The pinned wheels for Lambda: downloaded by pip, kept, and checked before each use.

Only files whose SHA-256 stands in the requirements are ever opened, wherever they come from.
"""

import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from infra.build.faults import BuildError
from infra.environments import pip_environment

__all__ = ["PLATFORMS", "contents", "fetch"]

PLATFORMS: Mapping[str, str] = {"arm64": "aarch64", "x86_64": "x86_64"}
"""Lambda's name of an architecture, and that of Python's platform tags."""

# Lambda's python3.13 runs on Amazon Linux 2023, whose glibc is 2.34
# (https://docs.aws.amazon.com/linux/al2023/ug/core-glibc.html). pip takes each tag as it is: an
# older one is not understood to be included.
_GLIBC_MINORS = range(34, 16, -1)
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_LIST = "wheels.txt"
_PIP_TAKES_S = 900
_LAST_WORDS = 2000


def fetch(requirements: Path, architecture: str, cache: Path) -> list[Path]:
    """The wheels that ``requirements`` pins, for Lambda's Python 3.13, each with a right hash.

    They stay in ``cache``: other pins make another directory, the same ones need no network.

    Raises:
        BuildError: pip can't get them, or a file is not the one that is pinned.
    """
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    directory = cache / f"{architecture}-{digest}"
    if not (directory / _LIST).exists():
        _download(requirements, architecture, directory)
    pinned = _pinned_hashes(requirements)
    wheels = [directory / name for name in (directory / _LIST).read_text("utf-8").split()]
    for wheel in wheels:
        _check(wheel, pinned)
    return wheels


def contents(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a wheel that are imported or read: path below the artifact, and bytes.

    Scripts and headers are passed over.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            path = _installed_path(name)
            if path is not None:
                yield path, archive.read(name)


def _installed_path(name: str) -> str | None:
    """Where an installer puts a member of a wheel, or None for what isn't imported.

    https://packaging.python.org/en/latest/specifications/binary-distribution-format/
    """
    path = PurePosixPath(name)
    if name.endswith("/"):
        return None
    if path.is_absolute() or ".." in path.parts:
        raise BuildError(f"a wheel holds a file that would leave the artifact: {name}")
    if path.parts[0].endswith(".data"):
        if path.parts[1] not in {"purelib", "platlib"}:
            return None
        path = PurePosixPath(*path.parts[2:])
    return str(path)


def _pinned_hashes(requirements: Path) -> dict[str, set[str]]:
    """The hashes of each package, by its name as wheels write it."""
    text = requirements.read_text("utf-8").replace("\\\n", " ")
    pins = ((_PIN.match(line), _HASH.findall(line)) for line in text.splitlines())
    return {_normal(pin[1]): set(hashes) for pin, hashes in pins if pin}


def _normal(name: str) -> str:
    """https://packaging.python.org/en/latest/specifications/name-normalization/."""
    return re.sub(r"[-_.]+", "_", name).lower()


def _check(wheel: Path, pinned: Mapping[str, set[str]]) -> None:
    try:
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    except FileNotFoundError as fault:
        raise BuildError(f"{wheel} is gone: delete {wheel.parent} and build again") from fault
    if found not in pinned.get(_normal(wheel.name.split("-")[0]), set()):
        raise BuildError(
            f"{wheel} is not the file that is pinned, its hash is another:"
            f" delete {wheel.parent} and build again"
        )


def _download(requirements: Path, architecture: str, directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        ready = Path(scratch, "ready")
        machine = PLATFORMS[architecture]
        tags = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS]
        _run(
            *_pip(Path(scratch, "pip")),
            "download",
            f"--requirement={requirements}",
            "--require-hashes",
            "--no-deps",
            "--only-binary=:all:",
            "--implementation=cp",
            "--python-version=3.13",
            *(f"--platform={tag}" for tag in (*tags, f"manylinux2014_{machine}")),
            f"--dest={ready}",
        )
        names = sorted(path.name for path in ready.iterdir())
        (ready / _LIST).write_text("\n".join(names) + "\n", "utf-8")
        try:
            ready.rename(directory)
        except OSError as fault:
            # `sam build --parallel`: another build was first, and its files are as good.
            if not (directory / _LIST).exists():
                raise BuildError(f"{directory} can't be written: {fault}") from fault


def _pip(home: Path) -> list[str]:
    """Our own Python's pip; where it has none, one of a new virtual environment."""
    python = sys.executable
    if importlib.util.find_spec("pip") is None:
        _run(python, "-m", "venv", str(home))
        python = str(home / "bin" / "python")
    return [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def _run(*command: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            command,
            timeout=_PIP_TAKES_S,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=pip_environment() | {"PIP_NO_INPUT": "1"},
            text=True,
            errors="replace",
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise BuildError(f"`{' '.join(command[:4])}` did not end well: {fault}") from fault
    if done.returncode:
        raise BuildError(f"`{' '.join(command[:4])}` failed:\n{done.stdout[-_LAST_WORDS:]}")
