"""The Python 3.13 of this machine, if it has one: the version that Lambda runs."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["find"]

_ANSWERS_IN_S = 30


def find() -> str | None:
    """The path of a python3.13 that runs; ``PYTHON313`` in the environment goes first."""
    return next(filter(_is_313, _candidates()), None)


def _candidates() -> Iterator[str]:
    named = os.environ.get("PYTHON313")
    if named:
        yield named
        return
    on_path = shutil.which("python3.13")
    if on_path:
        yield on_path
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    yield from sorted(map(str, pyenv.glob("versions/3.13.*/bin/python3.13")), reverse=True)


def _is_313(path: str) -> bool:
    # pyenv puts a python3.13 on the path that refuses to run where it is not chosen.
    try:
        done = subprocess.run(  # noqa: S603 - the person who builds chose it
            [path, "--version"],
            timeout=_ANSWERS_IN_S,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.startswith("Python 3.13.")
