"""What the documents name exists, and what is made from the code is up to date."""

import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from functools import reduce
from pathlib import Path

import pytest

from infra.docs import api
from infra.docs.markdown import Markdown
from infra.docs.trace import trace_a_paid_request
from infra.template import PROJECT_ROOT
from tests.guides import shell_commands
from tests.reporting import HEAD, PAGE, Tried

PATHS = sorted([*PROJECT_ROOT.glob("*.md"), *(PROJECT_ROOT / "infra" / "docs").glob("*.md")])
DOCUMENTS = {path.relative_to(PROJECT_ROOT).as_posix(): Markdown.read(path) for path in PATHS}
READING_LIST = re.findall(r"^\d+\. `([\w.]+:[\w.]+)`", DOCUMENTS["README.md"].text, re.MULTILINE)
every_document = pytest.mark.parametrize("name", DOCUMENTS)


@every_document
def test_the_functions_that_it_names_exist(name: str) -> None:
    for module, function in re.findall(
        r"`((?:handlers|lib|infra)(?:\.\w+)*):(\w[\w.]*)`", DOCUMENTS[name].prose
    ):
        found = reduce(getattr, function.split("."), importlib.import_module(module))
        assert callable(found), f"{module}:{function}"


@every_document
def test_the_files_that_it_names_exist(name: str) -> None:
    pattern = r"`((?:handlers|lib|infra|tests)/[\w./-]*|[\w-]+\.(?:yaml|toml|md))`"

    named = set(re.findall(pattern, DOCUMENTS[name].prose))
    assert [each for each in named if not (PROJECT_ROOT / each).exists()] == []


@every_document
def test_the_tests_that_it_names_exist(name: str) -> None:
    for file, test in re.findall(r"`(tests/\w+\.py)::(test_\w+)`", DOCUMENTS[name].text):
        code = (PROJECT_ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {test}\(", code, re.MULTILINE), f"{file}::{test}"


@every_document
def test_what_it_links_to_exists(name: str) -> None:
    for link in DOCUMENTS[name].links:
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        path = PROJECT_ROOT / Path(name).parent / file if file else PROJECT_ROOT / name
        assert path.exists(), link
        assert not anchor or anchor in Markdown.read(path).anchors, link


@every_document
def test_the_commands_that_it_names_exist(name: str) -> None:
    makefile = (PROJECT_ROOT / "Makefile").read_text(encoding="utf-8")
    text = DOCUMENTS[name].text

    for target in re.findall(r"(?:`|^)make ([a-z-]+)\b", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for module in re.findall(r"python -m (infra[\w.]*)", text):
        assert importlib.util.find_spec(module), module


def test_the_api_reference_is_what_the_contract_renders() -> None:
    for path, text in api.documents().items():
        assert path.read_text(encoding="utf-8") == text, "run python -m infra.docs.api"


def test_a_paid_request_runs_the_reading_list_in_order() -> None:
    ran = trace_a_paid_request().functions()

    assert len(READING_LIST) >= 12
    assert [each for each in ran if each in READING_LIST] == READING_LIST


@pytest.mark.real
def test_the_trace_and_the_replay_of_a_schedule_run_as_written() -> None:
    commands = shell_commands([DOCUMENTS["infra/docs/ARCHITECTURE.md"]])
    trace, replay = (
        subprocess.run(  # noqa: S603 - the document's own commands
            [sys.executable, *command.words[1:]],
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for command in commands
        if "infra.docs.trace" in command.words or "--schedule" in command.words
    )

    assert re.search(r"A warm 200 runs \d+ lines of \d+ functions in \d+ files\.", trace)
    assert "1 passed" in replay


def test_the_counts_are_those_of_a_whole_run() -> None:
    (counted,) = [each for each in Markdown.read(PAGE).tables if each[0] == list(HEAD)]

    assert [what for what, _ in counted[1:]] == list(Tried)
    assert all(int(number.replace(",", "")) > 0 for _, number in counted[1:])


def test_the_version_is_the_one_that_the_changelog_names() -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    assert project["project"]["version"] in DOCUMENTS["CHANGELOG.md"].text


def test_no_document_refers_to_the_design_page() -> None:
    assert [name for name, each in DOCUMENTS.items() if "DESIGN" in each.text] == []
