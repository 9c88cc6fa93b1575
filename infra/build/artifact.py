"""The steps of a build: our sources, the wheels less the cuts, bytecode, fixed times and modes.

Two builds of the same commit with the same Python 3.13 give the same bytes, wherever they run.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from infra.build import bytecode, wheels
from infra.build.cuts import is_cut
from infra.build.descriptions import slimmed
from infra.build.faults import BuildError

__all__ = ["OURS", "add_files", "build", "copy_sources", "make_uniform", "require_empty"]

OURS = ("handlers", "lib")
REQUIREMENTS = Path("infra/requirements/runtime.txt")
CACHE = Path(".build/wheels")

# Whatever else lies in our packages was not meant to be deployed.
_SOURCES = frozenset({".py", ".css", ".html", ".js", ".json", ".svg"})
# 2000-01-01 in UTC: zip files know no time before 1980.
_MODIFIED_AT = 946_684_800
_DIRECTORY_MODE = 0o755
_FILE_MODE = 0o644


def build(root: Path, architecture: str, into: Path, python: str | None) -> list[str]:
    """Makes the artifact of the project at ``root`` in the directory ``into``.

    ``python`` is a Python 3.13 for the bytecode, or None. Returns sentences on what is missing.

    Raises:
        BuildError
    """
    require_empty(into)
    into.mkdir(parents=True, exist_ok=True)
    for name in OURS:
        copy_sources(root / name, into / name)
    for wheel in wheels.fetch(root / REQUIREMENTS, architecture, root / CACHE):
        add_files(wheels.contents(wheel), into)
    if python is not None:
        bytecode.compile_all(into, OURS, python)
    make_uniform(into)
    return [] if python is not None else [bytecode.WITHOUT]


def require_empty(directory: Path) -> None:
    """Refuses a directory with anything in it.

    Raises:
        BuildError
    """
    if directory.exists() and any(directory.iterdir()):
        raise BuildError(f"{directory} is not empty: name a new directory, or empty it")


def copy_sources(package: Path, into: Path) -> None:
    """Copies one of the project's packages, without hidden files and Python's caches.

    Raises:
        BuildError: a file is neither a source nor an asset of the service.
    """
    into.mkdir(parents=True)
    for path in sorted(package.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_symlink():
            raise BuildError(f"{path} is a link, and would ship: move it away")
        if path.is_dir():
            copy_sources(path, into / path.name)
        elif path.suffix in _SOURCES:
            (into / path.name).write_bytes(path.read_bytes())
        else:
            raise BuildError(f"{path} is no source file, and would ship: move it away")


def add_files(files: Iterable[tuple[str, bytes]], into: Path) -> None:
    """Writes the files that are not cut, some of them slimmed.

    Raises:
        BuildError: two packages, or a package and the service, have a file in common; or one is not
            what it was so far.
    """
    for original, whole in files:
        if is_cut(original):
            continue
        name, content = slimmed(original, whole)
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise BuildError(f"{name} comes from two places")
        path.write_bytes(content)


def make_uniform(directory: Path) -> None:
    """Gives everything in ``directory`` the same times and modes, for reproducible builds."""
    for parent, _, names in os.walk(directory, topdown=False):
        for name in names:
            _fix(Path(parent, name), _FILE_MODE)
        _fix(Path(parent), _DIRECTORY_MODE)


def _fix(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)
    os.utime(path, (_MODIFIED_AT, _MODIFIED_AT))
