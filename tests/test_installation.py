"""What the locks pin is what a fresh machine installs, whatever has been published since."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from infra.template import PROJECT_ROOT

REQUIREMENTS = PROJECT_ROOT / "infra" / "requirements"
LISTS = sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))
JSON = "application/vnd.pypi.simple.v1+json"
INSTALLS_WITHIN_S = 300


def pins(name: str) -> set[tuple[str, str]]:
    """The packages of a list with their versions; some have one for each of several Pythons."""
    text = (REQUIREMENTS / f"{name}.txt").read_text("utf-8")
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {(canonicalize_name(package), version) for package, version in found}


@pytest.mark.parametrize("name", LISTS)
def test_every_line_of_a_list_has_a_version_and_a_hash_and_names_no_index(name: str) -> None:
    text = (REQUIREMENTS / f"{name}.txt").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]

    assert lines
    for line in lines:
        requirement = Requirement(line.partition("--hash")[0])
        assert [each.operator for each in requirement.specifier] == ["=="], line
        assert "--hash=sha256:" in line


def test_contributors_run_the_versions_that_ship() -> None:
    assert pins("runtime") <= pins("dev")


def test_make_lists_every_target_by_what_it_does() -> None:
    makefile = (PROJECT_ROOT / "Makefile").read_text("utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)

    listed = run("make", cwd=PROJECT_ROOT).splitlines()

    assert [line.split()[:2] for line in listed] == [["make", each] for each in phony.split()]
    assert all(len(line.split()) > 3 for line in listed)


# A fresh machine, in a year


def pythons() -> list[str]:
    """Each Python on this machine that the project supports, once."""
    directories = [*map(Path, os.environ["PATH"].split(os.pathsep))]
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    directories += sorted(pyenv.glob("versions/*/bin"))
    tell = "import ensurepip, os, sys; print(os.path.realpath(sys._base_executable))"
    found = set()
    for directory in directories:
        for path in directory.glob("python3.[1-9][0-9]"):
            if int(path.suffix[1:]) >= 11:
                done = subprocess.run(  # noqa: S603 - a Python of this machine
                    [path, "-c", tell], capture_output=True, text=True, check=False, timeout=30
                )
                found |= {done.stdout.strip()} if done.returncode == 0 else set()
    return sorted(found)


def run(*command: str, cwd: Path, **variables: str) -> str:
    done = subprocess.run(  # noqa: S603 - our own commands
        command,
        cwd=cwd,
        env=without_settings() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=INSTALLS_WITHIN_S,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def without_settings() -> dict[str, str]:
    """The environment without what configures installers and make, and without this test's own."""
    dropped = re.compile(
        r"(PIP(?!_CERT|_PROXY)|UV|PYTEST|MAKE|PYENV)_|MAKE|MFLAGS|PYTHON|VIRTUAL_ENV"
    )
    return {name: value for name, value in os.environ.items() if not dropped.match(name)}


def configured_index() -> str:
    """The address of the index that this machine installs from."""
    named = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL")
    default = asked_of(sys.executable, "-c", PIPS_OWN_INDEX)
    configured = asked_of(sys.executable, "-m", "pip", "config", "get", "global.index-url")
    address = named or os.environ.get("PIP_INDEX_URL") or configured or default
    return address.rstrip("/") + "/"


PIPS_OWN_INDEX = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"


def asked_of(*command: str) -> str:
    """What a command prints, or nothing where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip()


def next_after(version: str) -> str:
    """The post-release, which all but an exact pin allows."""
    return f"{Version(version).base_version}.post{(Version(version).post or 0) + 1}"


def wheel_of(package: str, version: str) -> bytes:
    """A release that installs: metadata alone."""
    buffer = io.BytesIO()
    folder = f"{package.replace('-', '_')}-{version}.dist-info"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{folder}/METADATA", metadata_of(package, version))
        archive.writestr(f"{folder}/WHEEL", wheel)
        archive.writestr(f"{folder}/RECORD", "")
    return buffer.getvalue()


def metadata_of(package: str, version: str) -> str:
    extras = "".join(f"Provides-Extra: {each}\n" for each in ("requests", "crt", "server", "email"))
    return f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n{extras}"


class NextYear:
    """The index of this machine, on which each package that we pin has had another release.

    https://packaging.python.org/en/latest/specifications/simple-repository-api/
    """

    def __init__(self, index: str) -> None:
        self.index = index
        self.asked_for: set[str] = set()
        self.releases: dict[str, dict[str, bytes]] = {}
        for name in LISTS:
            for package, version in pins(name):
                newer = next_after(version)
                self.releases.setdefault(package, {})[newer] = wheel_of(package, newer)

    def page(self, package: str) -> bytes:
        self.asked_for.add(package)
        request = urllib.request.Request(  # noqa: S310 - the machine's own index
            f"{self.index}{package}/", headers={"Accept": JSON}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - as above
            page: dict[str, Any] = json.load(answer)
            for file in page["files"]:
                file["url"] = urljoin(answer.url, file["url"])
        for version, content in self.releases.get(package, {}).items():
            name = f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
            metadata = metadata_of(package, version).encode()
            page["files"].append(
                {
                    "filename": name,
                    "url": f"/files/{package}/{version}/{name}",
                    "hashes": {"sha256": hashlib.sha256(content).hexdigest()},
                    "core-metadata": {"sha256": hashlib.sha256(metadata).hexdigest()},
                    "size": len(content),
                    "upload-time": "2025-01-01T00:00:00.000000Z",
                }
            )
            page.setdefault("versions", []).append(version)
        return json.dumps(page).encode()

    def file(self, package: str, version: str, name: str) -> bytes:
        if name.endswith(".metadata"):
            return metadata_of(package, version).encode()
        return self.releases[package][version]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    year: NextYear

    def do_GET(self) -> None:
        _, kind, *rest = self.path.rstrip("/").split("/")
        try:
            body = self.year.page(*rest) if kind == "simple" else self.year.file(*rest)
        except urllib.error.HTTPError as refused:
            self.answer(refused.code, b"")
            return
        self.answer(200, body)

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", JSON if "/simple/" in self.path else "application/zip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def year() -> NextYear:
    return NextYear(configured_index())


@pytest.fixture(scope="module")
def index(year: NextYear) -> Iterator[str]:
    """The address of the index in a year."""
    handler = type("YearHandler", (Handler,), {"year": year})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/simple/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> str:
    """uv's cache of what the tools' lists name, so that not every Python downloads it again."""
    return str(tmp_path_factory.mktemp("downloads"))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    into = tmp_path / "clone"
    run("git", "clone", "--quiet", str(PROJECT_ROOT), str(into), cwd=tmp_path)
    return into


INSTALLED = """
import importlib.metadata
for each in importlib.metadata.distributions():
    print(f"{each.name}=={each.version}")
"""


def installed(environment: Path) -> set[tuple[str, str]]:
    """The packages of an environment with their versions, but for what comes without a list."""
    printed = run(str(environment / "bin" / "python"), "-c", INSTALLED, cwd=environment)
    found = [line.split("==") for line in printed.splitlines()]
    return {
        (canonicalize_name(package), version)
        for package, version in found
        if package not in {"pip", "setuptools", "gemini-generate"}
    }


MAKE_ENVIRONMENT = """
import sys
from pathlib import Path
from infra.verify import tools
tools.make_environment(Path(sys.argv[1]), f"{sys.argv[2]}.txt")
"""


@pytest.mark.real
@pytest.mark.parametrize(
    ("python", "configured"),
    [*zip(pythons(), cycle(["PIP_INDEX_URL", "UV_DEFAULT_INDEX"]), strict=False)],
)
def test_newer_releases_change_nothing(
    python: str,
    configured: str,
    clone: Path,
    year: NextYear,
    index: str,
    downloads: str,
    tmp_path: Path,
) -> None:
    """Every list, from a fresh clone with empty caches, through the project's own commands.

    Only one of the two installers is configured to use the index; the other has to follow.
    """
    machine = {
        configured: index,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "UV_CACHE_DIR": str(tmp_path / "cache"),
    }
    year.asked_for.clear()
    run("make", "build", f"PYTHON={python}", cwd=clone, **machine)
    run("make", ".venv/.installed", f"PYTHON={python}", cwd=clone, **machine)

    assert {"uv", "deflate", "pytest"} <= year.asked_for
    contributors = installed(clone / ".venv")
    assert contributors <= pins("uv") | pins("dev")
    assert dict(contributors).keys() >= {"uv", "boto3", "google-auth", "pytest"}

    ours = str(clone / ".venv" / "bin" / "python")
    newest = run(
        *(ours, "-m", "uv", "pip", "install", "--dry-run", "--upgrade", "google-auth"),
        cwd=tmp_path,
        UV_DEFAULT_INDEX=index,
        UV_NO_CACHE="1",
    )
    assert f"google-auth=={next_after(dict(pins('dev'))['google-auth'])}" in newest

    machine["UV_CACHE_DIR"] = downloads
    for name in sorted({*LISTS} - {"uv", "dev"}):
        goal = tmp_path / "environment"
        run(ours, "-c", MAKE_ENVIRONMENT, str(goal), name, cwd=clone, **machine)
        assert 0 < len(installed(goal)) == len(installed(goal) & pins(name))
        shutil.rmtree(goal)
