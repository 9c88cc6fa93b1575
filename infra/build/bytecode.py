"""Compiles what ships with the Python that Lambda runs, so that no start has to.

Lambda's copy of the artifact can't be written to: without this, every new sandbox compiles all that
it imports.
"""

import subprocess
from pathlib import Path

from infra.build.faults import BuildError

__all__ = ["WITHOUT", "compile_all"]

WITHOUT = (
    "No Python 3.13 was found, so no bytecode was compiled: it works the same, but a cold start"
    " takes more than twice as long, as Lambda compiles the sources each time. Install python3.13,"
    " or name one with PYTHON313=..., and build again."
)

# Where Lambda unpacks the artifact: what tracebacks show.
_TASK_ROOT = "/var/task"
_TAKES_S = 600
_LAST_WORDS = 2000


def compile_all(artifact: Path, ours: tuple[str, ...], python: str) -> None:
    """Adds bytecode beside the sources of ``ours``; that of all the rest replaces its sources.

    Only a deployment ever changes them, so nothing compares them with their sources when they are
    imported.

    Raises:
        BuildError: a source can't be compiled.
    """
    entries = sorted(path.name for path in artifact.iterdir())
    theirs = [name for name in entries if name not in ours]
    _compile(python, artifact, list(ours), [])
    # "-b" writes module.pyc where module.py is, and Python imports it from there.
    _compile(python, artifact, theirs, ["-b"])
    for name in theirs:
        entry = artifact / name
        for source in sorted(entry.rglob("*.py")) if entry.is_dir() else [entry]:
            if source.suffix == ".py":
                source.unlink()


def _compile(python: str, artifact: Path, names: list[str], options: list[str]) -> None:
    """One process, a fixed order and fixed hashes: the same sources give the same bytes."""
    if not names:
        return
    command = [python, "-s", "-S", "-B", "-m", "compileall", "-q", *options]
    command += ["--invalidation-mode", "unchecked-hash", "-s", ".", "-p", _TASK_ROOT, *names]
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            command,
            cwd=artifact,
            timeout=_TAKES_S,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            text=True,
            errors="replace",
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise BuildError(f"`{python} -m compileall` did not end well: {fault}") from fault
    if done.returncode:
        raise BuildError(f"`{python} -m compileall` failed:\n{done.stdout[-_LAST_WORDS:]}")
