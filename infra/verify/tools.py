"""Installs what ``make verify`` needs under ``.build/tools``, once, and says where it is.

    python -m infra.verify.tools

Each download is pinned to a version and checked against a hash.
"""

import base64
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from infra import environments
from infra.build import python313 as machine
from infra.template import PROJECT_ROOT

__all__ = [
    "ToolMissingError",
    "aws",
    "axe",
    "browser",
    "checkov",
    "client_generator",
    "dynamodb_local",
    "emulator",
    "install_pip_audit",
    "java",
    "make_environment",
    "ministack",
    "openai_clients",
    "openai_python",
    "openapi_tools",
    "packages",
    "pip_audit",
    "python313",
    "sam",
    "schemathesis",
]

TOOLS = PROJECT_ROOT / ".build" / "tools"
REQUIREMENTS = PROJECT_ROOT / "infra" / "requirements"
# npm packages, pinned and with their hashes in package-lock.json.
NPM_PACKAGES = PROJECT_ROOT / "infra" / "verify" / "npm"

# An npm package of Amazon's that carries DynamoDB Local 1.25.1.
SIMULATOR = "amplify-dynamodb-simulator"
SIMULATOR_VERSION = "2.9.30"
SIMULATOR_SHA512 = (
    "xTeeRLvzEfqyd5lh3bH4c0kHvSHHmmhD5ZDsHFKAQ5g2Zl6JqlFdutaQhCLHzxEp6Ry1o7TB6niIoXuQAnSewQ=="
)
# Deque's accessibility checks, one script.
AXE = "axe-core"
AXE_VERSION = "4.14.1"
AXE_SHA512 = (
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
)
# The clients of OpenAI's API: the lock names every package of npm, with its hash.
OPENAI_CLIENTS = Path(__file__).with_name("openai_clients")
OPENAI_MAJORS = (0, 1, 2, 3)
_JAVA_AT_LEAST = 17
_EMULATORS = {
    "x86_64": "aws-lambda-rie-x86_64",
    "aarch64": "aws-lambda-rie-arm64",
}
_COMMAND_TAKES_S = 600
_QUICK_S = 30


class ToolMissingError(Exception):
    """Something is not on this machine; the sentence says what, and how to get it."""


def dynamodb_local() -> Path:
    """The directory with ``DynamoDBLocal.jar``.

    Raises:
        ToolMissingError
    """
    return _installed(_dynamodb_local())


def emulator() -> Path:
    """Lambda's runtime interface emulator, an executable that SAM's package brings along.

    Raises:
        ToolMissingError
    """
    name = _EMULATORS.get(platform.machine())
    if name is None or sys.platform != "linux":
        raise ToolMissingError("Lambda's emulator runs on Linux, on x86-64 and arm64, only")
    (found,) = _installed(_sam()).glob(f"lib/python3.*/site-packages/samcli/local/rapid/{name}")
    return found


def sam() -> Path:
    """The command ``sam``. ``SAM_CLI_TELEMETRY=0`` keeps it from calling home.

    Raises:
        ToolMissingError
    """
    return _installed(_sam()) / "bin" / "sam"


def aws() -> Path:
    """The command ``aws``.

    Raises:
        ToolMissingError
    """
    return _installed(_sam()) / "bin" / "aws"


def ministack() -> Path:
    """The Python of an environment in which MiniStack is installed, an emulator of AWS.

    Raises:
        ToolMissingError
    """
    return _installed(_ministack()) / "bin" / "python"


def checkov() -> Path:
    """The command ``checkov``. ``--skip-download`` keeps it offline.

    Raises:
        ToolMissingError
    """
    return _installed(_checkov()) / "bin" / "checkov"


def schemathesis() -> Path:
    """The ``schemathesis`` command, in an environment of its own.

    Raises:
        ToolMissingError
    """
    return _installed(_schemathesis()) / "bin" / "schemathesis"


def client_generator() -> Path:
    """The directory of the commands of an environment with openapi-python-client.

    Raises:
        ToolMissingError
    """
    return _installed(_client_generator()) / "bin"


def openapi_tools() -> Path:
    """A ``node_modules`` with linters of OpenAPI, generators of clients, and TypeScript.

    Raises:
        ToolMissingError
    """
    return _installed(_openapi_tools()) / "node_modules"


def openai_python(major: int) -> Path:
    """The Python of an environment with this major version of the library ``openai``.

    Raises:
        ToolMissingError
    """
    return _installed(_openai_python(major)) / "bin" / "python"


def openai_clients() -> tuple[Path, Path]:
    """A Node, and the directory in which the clients for it are installed.

    Raises:
        ToolMissingError
    """
    home = _installed(_openai_node())
    found = sorted(home.glob("node_modules/node-linux-*/bin/node"))
    if not found:
        raise ToolMissingError("Node's package has no build for this machine")
    return found[0], home


def pip_audit() -> Path:
    """The command ``pip-audit``, in an environment of its own.

    Raises:
        ToolMissingError
    """
    return _installed(_pip_audit(), "make advisories") / "bin" / "pip-audit"


def install_pip_audit() -> None:
    """Installs ``pip-audit``, unless it is there.

    Raises:
        ToolMissingError
    """
    if not _is_whole(_pip_audit()):
        _install(_pip_audit(), _make_pip_audit)


def axe() -> Path:
    """The script of axe-core.

    Raises:
        ToolMissingError
    """
    return _installed(_axe()) / "axe.min.js"


def browser() -> tuple[str, str]:
    """The paths of Chromium and of its ChromeDriver.

    Raises:
        ToolMissingError
    """
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        raise ToolMissingError(
            "Chromium and ChromeDriver are needed: install them with"
            " `apt-get install chromium chromium-driver`"
        )
    chromium, driver = map(str, paths)
    return chromium, driver


def python313() -> Path:
    """A Python 3.13 with nothing but Lambda's runtime interface client, as on Lambda.

    Raises:
        ToolMissingError
    """
    return _installed(_python313()) / "bin" / "python"


def packages() -> Path:
    """What the functions import beside our own code, for ``python313``, with bytecode.

    Raises:
        ToolMissingError
    """
    return _installed(_packages())


def make_environment(goal: Path, requirements: str, python: str = sys.executable) -> None:
    """Makes ``goal`` a virtual environment of ``python`` with what one of our lists pins.

    The list has an environment of its own, since its pins may contradict the contributor's.

    Raises:
        ToolMissingError
    """
    _run([python, "-m", "venv", "--without-pip", "--clear", str(goal)], _COMMAND_TAKES_S)
    _install_pinned(requirements, goal)


def java() -> str:
    """The path of a Java runtime, 17 or newer.

    Raises:
        ToolMissingError
    """
    sentence = "Java 17 or newer is needed: install it with `apt-get install default-jre-headless`"
    path = shutil.which("java")
    if path is None:
        raise ToolMissingError(sentence)
    version = _run([path, "-version"], _QUICK_S)
    found = re.search(r'version "(\d+)', version)
    if found is None or int(found[1]) < _JAVA_AT_LEAST:
        raise ToolMissingError(sentence)
    return path


def _dynamodb_local() -> Path:
    return TOOLS / f"dynamodb-local-{SIMULATOR_VERSION}"


def _sam() -> Path:
    return TOOLS / f"sam-{_digest('sam.txt')}"


def _ministack() -> Path:
    return TOOLS / f"ministack-{_digest('ministack.txt')}"


def _checkov() -> Path:
    return TOOLS / f"checkov-{_digest('checkov.txt')}"


def _schemathesis() -> Path:
    return TOOLS / f"schemathesis-{_digest('schemathesis.txt')}"


def _client_generator() -> Path:
    return TOOLS / f"client-generator-{_digest('clients.txt')}"


def _openapi_tools() -> Path:
    lock = (NPM_PACKAGES / "package-lock.json").read_bytes()
    return TOOLS / f"openapi-tools-{hashlib.sha256(lock).hexdigest()[:12]}"


def _openai_python(major: int) -> Path:
    return TOOLS / f"openai{major}-{_digest(f'openai{major}.txt')}"


def _openai_node() -> Path:
    lock = (OPENAI_CLIENTS / "package-lock.json").read_bytes()
    return TOOLS / f"openai-node-{hashlib.sha256(lock).hexdigest()[:12]}"


def _pip_audit() -> Path:
    return TOOLS / f"pip-audit-{_digest('advisories.txt')}"


def _axe() -> Path:
    return TOOLS / f"axe-core-{AXE_VERSION}"


def _python313() -> Path:
    return TOOLS / f"python3.13-{_digest('verify.txt')}"


def _packages() -> Path:
    return TOOLS / f"packages-{_digest('runtime.txt')}"


def _digest(requirements: str) -> str:
    """Other pins make another directory."""
    return hashlib.sha256((REQUIREMENTS / requirements).read_bytes()).hexdigest()[:12]


def _installed(path: Path, command: str = "make verify-tools") -> Path:
    if not _is_whole(path):
        raise ToolMissingError(f"{path.name} is not installed: run `{command}` first")
    return path


def _is_whole(path: Path) -> bool:
    return (path / ".installed").exists()


def _install(goal: Path, make: Callable[[Path], None]) -> None:
    """Makes the directory ``goal`` unless an earlier run made it whole."""
    if _is_whole(goal):
        print(f"{goal.name}: there already")
        return
    print(f"{goal.name}: installing ...", flush=True)
    shutil.rmtree(goal, ignore_errors=True)
    goal.mkdir(parents=True)
    make(goal)
    (goal / ".installed").touch()


def _make_dynamodb_local(goal: Path) -> None:
    with _npm_package(SIMULATOR, SIMULATOR_VERSION, SIMULATOR_SHA512) as package:
        shutil.copytree(package / "emulator", goal, dirs_exist_ok=True)


@contextmanager
def _npm_package(name: str, version: str, sha512: str) -> Iterator[Path]:
    """What is in a package of the npm registry, until the block ends."""
    with TemporaryDirectory() as scratch:
        wanted = [f"{name}@{version}", "--silent", "--pack-destination", scratch]
        _run([_npm(), "pack", *wanted], _COMMAND_TAKES_S)
        archive = Path(scratch, f"{name}-{version}.tgz")
        digest = hashlib.sha512(archive.read_bytes()).digest()
        if base64.b64encode(digest).decode() != sha512:
            raise ToolMissingError(f"{name} is not the package it should be: its hash differs")
        with tarfile.open(archive) as opened:
            opened.extractall(scratch, filter="data")
        yield Path(scratch, "package")


def _npm() -> str:
    npm = shutil.which("npm")
    if npm is None:
        raise ToolMissingError("npm is needed: install it with `apt-get install npm`")
    return npm


def _make_sam(goal: Path) -> None:
    make_environment(goal, "sam.txt")


def _make_ministack(goal: Path) -> None:
    make_environment(goal, "ministack.txt")


def _make_checkov(goal: Path) -> None:
    make_environment(goal, "checkov.txt")


def _make_schemathesis(goal: Path) -> None:
    make_environment(goal, "schemathesis.txt")


def _make_client_generator(goal: Path) -> None:
    make_environment(goal, "clients.txt")


def _make_openapi_tools(goal: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NPM_PACKAGES / name, goal)
    # No package may run a script of its own here.
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--silent", "--prefix", str(goal)]
    _run([_npm(), "ci", *options], _COMMAND_TAKES_S)


def _make_openai_node(goal: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(OPENAI_CLIENTS / name, goal)
    quietly = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    _run([_npm(), "ci", "--prefix", str(goal), *quietly], _COMMAND_TAKES_S)


def _make_pip_audit(goal: Path) -> None:
    make_environment(goal, "advisories.txt")


def _make_axe(goal: Path) -> None:
    with _npm_package(AXE, AXE_VERSION, AXE_SHA512) as package:
        shutil.copy(package / "axe.min.js", goal)


def _make_python313(goal: Path) -> None:
    make_environment(goal, "verify.txt", _find_python313())


def _make_packages(goal: Path) -> None:
    into = f"--target={goal}"
    _install_pinned("runtime.txt", _installed(_python313()), "--compile-bytecode", into)


def _install_pinned(requirements: str, environment: Path, *options: str) -> None:
    try:
        environments.install([REQUIREMENTS / requirements], environment, *options)
    except environments.InstallationError as fault:
        raise ToolMissingError(f"{requirements} can't be installed: {fault}") from fault


def _find_python313() -> str:
    found = machine.find()
    if found is None:
        raise ToolMissingError(
            "Python 3.13 is needed, as on Lambda: install it with your package manager"
            " (`apt-get install python3.13-venv`), uv or pyenv, and put it on the PATH"
            " or name it with PYTHON313=..."
        )
    return found


def _run(command: list[str], within_s: float) -> str:
    """What the command writes, errors included."""
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            command,
            timeout=within_s,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as fault:
        raise ToolMissingError(f"`{command[0]}` does not run") from fault
    except subprocess.TimeoutExpired as fault:
        raise ToolMissingError(f"`{command[0]}` did not end in {within_s} s") from fault
    if done.returncode:
        raise ToolMissingError(f"`{' '.join(command)}` failed:\n{done.stdout}")
    return done.stdout


def main() -> int:
    """Installs all; returns the exit status."""
    try:
        java()
        browser()
        _install(_dynamodb_local(), _make_dynamodb_local)
        _install(_sam(), _make_sam)
        _install(_ministack(), _make_ministack)
        _install(_checkov(), _make_checkov)
        _install(_schemathesis(), _make_schemathesis)
        _install(_pip_audit(), _make_pip_audit)
        _install(_openai_node(), _make_openai_node)
        for major in OPENAI_MAJORS:
            make = partial(make_environment, requirements=f"openai{major}.txt")
            _install(_openai_python(major), make)
        _install(_axe(), _make_axe)
        _install(_client_generator(), _make_client_generator)
        _install(_openapi_tools(), _make_openapi_tools)
        _install(_python313(), _make_python313)
        _install(_packages(), _make_packages)
    except ToolMissingError as missing:
        print(missing, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
