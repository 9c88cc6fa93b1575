"""Builds once what several functions share: `sam build` asks for each function's artifact alone."""

import hashlib
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from infra.build import bytecode
from infra.build.artifact import OURS, REQUIREMENTS, build, require_empty
from infra.build.faults import BuildError

__all__ = ["build_once"]

KEPT = Path(".build/built")
_INPUTS = (*OURS, "infra/build")


def build_once(root: Path, architecture: str, into: Path, python: str | None) -> list[str]:
    """As ``build``, but copies the artifact of the last build if that had the same inputs.

    Raises:
        BuildError
    """
    require_empty(into)
    made = root / KEPT / architecture / _digest(root, python)
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=made.parent) as scratch:
            build(root, architecture, Path(scratch, "ready"), python)
            for older in set(made.parent.iterdir()) - {Path(scratch)}:
                shutil.rmtree(older, ignore_errors=True)
            try:
                Path(scratch, "ready").rename(made)
            except OSError as fault:
                # `sam build --parallel`: another build was first, and its files are the same.
                if not made.exists():
                    raise BuildError(f"{made} can't be written: {fault}") from fault
    shutil.copytree(made, into, dirs_exist_ok=True)
    return [] if python is not None else [bytecode.WITHOUT]


def _digest(root: Path, python: str | None) -> str:
    found = hashlib.sha256(str(python).encode())
    sources = [path for name in _INPUTS for path in sorted((root / name).rglob("*"))]
    for path in (root / REQUIREMENTS, *sources):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]
