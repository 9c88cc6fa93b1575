"""Virtual environments with exactly what a list in ``infra/requirements`` pins.

    python -m infra.environments DIRECTORY

makes the contributor's own. It runs before anything is installed, so it imports nothing but the
standard library.

A list names every package, so it is installed and never resolved: no release that is published
later can change the outcome. pip installs a single package, uv, which depends on nothing; uv
installs the rest in a tenth of pip's time. Both verify the hash of every file.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["InstallationError", "create", "install", "main", "pip_environment"]

_ROOT = Path(__file__).resolve().parents[1]
_REQUIREMENTS = _ROOT / "infra" / "requirements"
_TIMEOUT_S = 900

# The hashes of all that is installed are known. No file is built, since a build would resolve and
# fetch what it needs.
_AS_PINNED = ("--require-hashes", "--no-deps", "--only-binary=:all:")

# Settings that say where packages come from are the user's: a mirror, a proxy, a certificate. These
# say which packages, or where to, and would contradict the pins.
_PIP_IGNORES = {"PIP_CONSTRAINT": os.devnull, "PIP_USER": "0"}
_UV_IGNORES = (
    "UV_BREAK_SYSTEM_PACKAGES",
    "UV_BUILD_CONSTRAINT",
    "UV_CONSTRAINT",
    "UV_EXCLUDE",
    "UV_EXCLUDE_NEWER",
    "UV_NO_BINARY",
    "UV_NO_BINARY_PACKAGE",
    "UV_NO_BUILD",
    "UV_NO_BUILD_PACKAGE",
    "UV_NO_VERIFY_HASHES",
    "UV_OVERRIDE",
    "UV_PROJECT",
    "UV_PYTHON",
    "UV_SYSTEM_PYTHON",
    "UV_TORCH_BACKEND",
    "UV_WORKING_DIR",
)
_UV_INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_FIND_LINKS", "UV_NO_INDEX")
# A company's mirror is often configured for one of the two only.
_UV_FROM_PIP: Mapping[str, str] = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}


class InstallationError(Exception):
    """The environment was not made; the sentence names the command that failed."""


def create(directory: Path, python: str = sys.executable) -> None:
    """Makes ``directory`` a new virtual environment of ``python``, in which uv is installed.

    What was in the directory is gone.

    Raises:
        InstallationError
    """
    _run([python, "-m", "venv", "--clear", str(directory)], os.environ)
    pip = [*_python(directory, "pip"), "install", "--disable-pip-version-check", "--quiet"]
    wanted = f"--requirement={_REQUIREMENTS / 'uv.txt'}"
    _run([*pip, *_AS_PINNED, wanted], pip_environment())


def install(
    requirements: Iterable[Path],
    directory: Path,
    *options: str,
    uv_of: Path = Path(sys.prefix),
) -> None:
    """Installs into the environment ``directory`` all that the lists pin.

    ``uv_of`` is an environment that ``create`` made; unless told, the running one. Afterwards each
    installed package has what it depends on, in a version that suits it.

    Raises:
        InstallationError
    """
    uv = [*_python(uv_of, "uv"), "pip"]
    into = f"--python={directory}"
    environment = _uv_environment(uv_of)
    lists = [f"--requirement={each}" for each in requirements]
    _run([*uv, "install", into, *_AS_PINNED, *options, *lists], environment)
    _run([*uv, "check", "--quiet", into], environment)


def pip_environment() -> dict[str, str]:
    """The variables that pip runs with: where to look for packages, but not which."""
    index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL")
    # uv's may have a name: mirror=https://...
    from_uv = {"PIP_INDEX_URL": re.sub(r"^[\w.-]+=", "", index)} if index else {}
    return from_uv | dict(os.environ) | _PIP_IGNORES


def main(directory: Path) -> None:
    """Makes the environment of ``make run`` and ``make test``, the project's command included.

    Raises:
        InstallationError
    """
    print(f"Installing into {directory} (once; about ten seconds) ...", flush=True)
    create(directory)
    install([_REQUIREMENTS / "dev.txt"], directory, uv_of=directory)
    _run(
        [
            *(*_python(directory, "uv"), "pip", "install", "--quiet", f"--python={directory}"),
            *("--no-deps", "--no-index", "--no-build-isolation", "--editable", str(_ROOT)),
        ],
        _uv_environment(directory),
    )


def _python(environment: Path, module: str) -> list[str]:
    return [str(environment / "bin" / "python"), "-m", module]


def _uv_environment(uv_of: Path) -> dict[str, str]:
    """As ``pip_environment``, for uv."""
    kept = {name: value for name, value in os.environ.items() if name not in _UV_IGNORES}
    if any(map(kept.get, _UV_INDEXES)):
        return kept
    return _where_pip_looks(uv_of) | kept


def _where_pip_looks(environment: Path) -> dict[str, str]:
    """The index and the certificates that pip is configured with, as variables for uv."""
    listed = subprocess.run(  # noqa: S603 - our own command
        [*_python(environment, "pip"), "config", "list"],
        timeout=_TIMEOUT_S,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    ).stdout
    # From the least to the most important: later lines replace earlier ones.
    found = dict(re.findall(r"^(?:global|install)\.([a-z-]+)=(.*)$", listed, re.MULTILINE))
    found |= dict(re.findall(r"^:env:\.([a-z-]+)=(.*)$", listed, re.MULTILINE))
    return {
        theirs: str(ast.literal_eval(found[name]))
        for name, theirs in _UV_FROM_PIP.items()
        if name in found
    }


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    """What the command writes goes where our own output goes."""
    try:
        subprocess.run(  # noqa: S603 - our own command
            command,
            cwd=_ROOT,
            env=dict(environment),
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as fault:
        raise InstallationError(f"{fault}") from fault


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except InstallationError as failed:
        sys.exit(f"The installation failed: {failed}")
