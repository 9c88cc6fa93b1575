"""An operator who follows the deploy guide literally, and what they see of their stack."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import boto3

from infra.docs.markdown import Fence, Markdown
from infra.local.aws import REGION
from infra.template import PROJECT_ROOT, Template
from infra.verify import tools
from infra.verify.cloud import ACCOUNT, Cloud
from tests.alarms import Minute, rings, values_in
from tests.cloudformation import DOCUMENT, Variant
from tests.reporting import Tried, tally

__all__ = [
    "FUNCTIONS",
    "GUIDE",
    "Change",
    "Operator",
    "Upstream",
    "form",
    "lost",
    "now_ms",
    "republished",
    "ringing",
]

GUIDE = Markdown.read(PROJECT_ROOT / "infra" / "docs" / "DEPLOY.md")
FUNCTIONS = frozenset(each.name for each in Template(DOCUMENT).functions())
STACK = "gemini-generate"
# What holds customers' money and images, and what serves them.
_HOLDS_DATA = ("AWS::CloudFront::Distribution", "AWS::DynamoDB::Table", "AWS::S3::Bucket")
_CHANGE = re.compile(r"^[+*-] (Add|Modify|Delete) +(\w+) +(AWS::\S+) +(\S+) *$", re.MULTILINE)
_BLOCK_TAKES_S = 600
_YES = "y\n" * 100_000
# sam compresses each function's copy of the artifact anew, half of a deployment's time. Its own
# command, with the fastest compression.
_QUICK_SAM = """\
import runpy, sys, zipfile
from functools import partialmethod

zipfile.ZipFile.__init__ = partialmethod(zipfile.ZipFile.__init__, compresslevel=1)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Change:
    """One line of the change set that ``sam deploy`` shows."""

    action: str
    name: str
    kind: str
    replacement: str


# The checks, which the mutants of a deployment have to fail.


def lost(changes: list[Change]) -> list[Change]:
    """The changes with which an upgrade would lose something: the guide's rule for reading them.

    A version of a function may be deleted: CloudFormation keeps it.
    """
    return [
        each
        for each in changes
        if (each.action == "Delete" and each.kind != "AWS::Lambda::Version")
        or each.replacement == "True"
        or (each.action == "Add" and each.kind in _HOLDS_DATA)
    ]


def republished(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    """The functions whose ``live`` has moved to another version."""
    return {name for name in FUNCTIONS if after[name] != before[name]}


def ringing(alarms: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> set[str]:
    """The alarms that ring by the end of some minute, with no data before the first record."""
    by_minute: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        by_minute[record["_aws"]["Timestamp"] // 60_000].append(record)
    span = range(min(by_minute), max(by_minute) + 1)
    minutes: list[Minute] = [values_in(by_minute.get(minute, [])) for minute in span]
    return {
        name
        for name, alarm in alarms.items()
        if any(rings(alarm, minutes[: end + 1]) for end in range(len(minutes)))
    }


def form(command: str) -> str:
    """The command without the text between single quotes, such as the message of a commit."""
    return re.sub(r"'[^']*'", "''", command)


class Upstream:
    """The project's repository as it is now, with releases that a test publishes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        _git(directory.parent, "init", "--quiet", "--initial-branch=main", str(directory))
        listed = _git(PROJECT_ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        for name in filter(None, listed.split("\0")):
            if (PROJECT_ROOT / name).is_file():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(PROJECT_ROOT / name, directory / name)

    def release(self, version: str, file: str = "", old: str = "", new: str = "") -> None:
        """Tags the project, with ``old`` in ``file`` replaced by ``new``."""
        if file:
            path = self.directory / file
            text = path.read_text(encoding="utf-8")
            assert text.count(old) == 1, (file, old)
            path.write_text(text.replace(old, new), encoding="utf-8")
        _git(self.directory, "add", "--all")
        _git(self.directory, "commit", "--quiet", "--message", f"Release {version}")
        _git(self.directory, "tag", version)


@dataclass
class Operator:
    """Runs blocks of the guide one after the other, in one terminal.

    ``followed`` holds the lines that ran, as the guide writes them.
    """

    cloud: Cloud
    clone: Path
    home: Path
    followed: set[str] = field(default_factory=set)

    @classmethod
    def at(cls, cloud: Cloud, upstream: Upstream, home: Path) -> Self:
        """An operator with a fresh clone, AWS's two commands, and nothing deployed."""
        clone = home / "clone"
        _git(home, "clone", "--quiet", str(upstream.directory), str(clone))
        # The wheels need no second download.
        (clone / ".build").mkdir()
        (PROJECT_ROOT / ".build" / "wheels").mkdir(parents=True, exist_ok=True)
        (clone / ".build" / "wheels").symlink_to(PROJECT_ROOT / ".build" / "wheels")
        venv = clone / ".venv" / "bin"
        venv.mkdir(parents=True)
        for name in ("python", "gemini-generate"):
            _script(venv / name, f'exec "{Path(sys.executable).with_name(name)}" "$@"')
        (clone / ".venv" / ".installed").touch()
        (home / "bin").mkdir()
        (home / "bin" / "aws").symlink_to(tools.aws())
        sam = tools.sam()
        (home / "sam.py").write_text(_QUICK_SAM)
        _script(home / "bin" / "sam", f'exec "{sam.parent}/python" "{home}/sam.py" "{sam}" "$@"')
        # Every host is this machine.
        _, _, port = cloud.tls_url.rpartition(":")
        (home / ".curlrc").write_text(f'connect-to = "::127.0.0.1:{port}"\ninsecure\n')
        _script(home / "editor", 'cp "$(dirname "$0")/typed" "$1"')
        (home / "yes").write_text(_YES)
        return cls(cloud, clone, home)

    def follow(self, part: str, typed: str = "", **replaced: str) -> str:
        """Runs the guide's one block that contains ``part``; returns what it wrote.

        ``typed`` is what the operator types into the editor. ``replaced`` are the placeholders'
        real values.
        """
        (block,) = {each.text for each in GUIDE.fences if part in each.text}
        self.followed |= set(map(form, Fence("sh", block).commands()))
        (self.home / "typed").write_text(typed)
        for old, new in replaced.items():
            assert old in block, old
            block = block.replace(old, new)
        return self.run(block)

    def run(self, block: str) -> str:
        """Runs commands with the functions and variables of the blocks before.

        Raises:
            AssertionError: one of them failed.
        """
        self.followed |= set(map(form, Fence("sh", block).commands()))
        state = self.home / "state"
        script = (
            f"set -eu; umask 022; cd '{self.clone}'; [ ! -e '{state}' ] || . '{state}'\n{block}\n"
            f"{{ declare -f; export -p; }} > '{state}'\n"
        )
        with (self.home / "yes").open() as yes:
            done = subprocess.run(  # noqa: S603 - our own commands and the guide's
                ["bash", "-c", script],  # noqa: S607 - from the PATH, as the operator's
                stdin=yes,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                timeout=_BLOCK_TAKES_S,
                text=True,
                errors="replace",
                check=False,
            )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{self.cloud.last_words()}"
        tally(Tried.DEPLOYMENTS, len(re.findall(r"\bsam deploy(?! --no-execute)", block)))
        return done.stdout

    def configure(self, **values: str) -> None:
        """Edits parameters in ``samconfig.toml``."""
        path = self.clone / "samconfig.toml"
        text = path.read_text(encoding="utf-8")
        for name, value in values.items():
            text, many = re.subn(
                rf'^{name} = ".*"$', f'{name} = "{value}"', text, flags=re.MULTILINE
            )
            assert many == 1, name
        path.write_text(text, encoding="utf-8")

    def changes(self, output: str) -> list[Change]:
        """The change set in the output of ``sam deploy``."""
        return [Change(*each) for each in _CHANGE.findall(output)]

    @contextmanager
    def mutated(self, file: str, old: str, new: str) -> Iterator[None]:
        """Another text in a file of the clone, until the block ends."""
        path = self.clone / file
        before = path.read_text(encoding="utf-8")
        assert old in before, old
        path.write_text(before.replace(old, new), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(before, encoding="utf-8")

    # What the operator can see

    def client(self, service: str, account: str = ACCOUNT) -> Any:
        """A boto3 client of the account."""
        return boto3.Session(
            aws_access_key_id=account, aws_secret_access_key="test", region_name=REGION
        ).client(service, endpoint_url=self.cloud.url)  # type: ignore[call-overload]

    def physical(self) -> dict[str, str]:
        """The physical names of the stack's resources, by logical name."""
        pages = self.client("cloudformation").get_paginator("list_stack_resources")
        return {
            each["LogicalResourceId"]: each["PhysicalResourceId"]
            for page in pages.paginate(StackName=STACK)
            for each in page["StackResourceSummaries"]
        }

    def parameters(self) -> dict[str, str]:
        """The values that the stack has."""
        (stack,) = self.client("cloudformation").describe_stacks(StackName=STACK)["Stacks"]
        return {each["ParameterKey"]: each["ParameterValue"] for each in stack["Parameters"]}

    def live(self) -> dict[str, str]:
        """The version that each function's alias leads to."""
        names, functions = self.physical(), self.client("lambda")
        return {
            name: functions.get_alias(FunctionName=names[name], Name="live")["FunctionVersion"]
            for name in FUNCTIONS
        }

    def architectures(self) -> set[str]:
        """The architectures on which the versions run that ``live`` leads to."""
        names, functions = self.physical(), self.client("lambda")
        found = (
            functions.get_function_configuration(FunctionName=names[name], Qualifier="live")
            for name in FUNCTIONS
        )
        return {architecture for each in found for architecture in each["Architectures"]}

    def deployment_alarms(self) -> dict[str, Any]:
        """The properties of the alarms that stop a deployment, as they are deployed."""
        template = self.client("cloudformation").get_template(
            StackName=STACK, TemplateStage="Processed"
        )["TemplateBody"]
        document = json.loads(template) if isinstance(template, str) else template
        variant = Variant(
            document, self.parameters(), names=self.physical(), account=ACCOUNT, stack=STACK
        )
        groups = [
            each["Properties"]["AlarmConfiguration"]["Alarms"]
            for each in document["Resources"].values()
            if each["Type"] == "AWS::CodeDeploy::DeploymentGroup"
        ]
        names = {alarm["Name"]["Ref"] for alarms in groups for alarm in alarms}
        assert names
        return {name: variant.resolved(document["Resources"][name]["Properties"]) for name in names}

    def after_a_daily_audit(self) -> None:
        """Sets the alarms as a daily audit without drift does.

        MiniStack extracts no metrics from logs, so no alarm ever has data.
        """
        watch = self.client("cloudwatch")
        for logical, physical in self.physical().items():
            if logical.startswith("Audit") and logical.endswith("Alarm"):
                watch.set_alarm_state(AlarmName=physical, StateValue="OK", StateReason="audited")

    def emitted(self, since_ms: int) -> list[dict[str, Any]]:
        """The metrics that functions logged since then, as records of the embedded format."""
        logs = self.client("logs")
        lines = [
            event["message"]
            for group in logs.describe_log_groups(logGroupNamePrefix=f"/{STACK}/")["logGroups"]
            for event in logs.filter_log_events(
                logGroupName=group["logGroupName"], startTime=since_ms
            )["events"]
        ]
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return [
            each for each in records if "_aws" in each and each["_aws"]["Timestamp"] >= since_ms
        ]

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "CREDITS_", "ORG_SECRET_"))
        }
        return (
            inherited
            | self.cloud.environment()
            | {
                "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}",
                "GOOGLE_GEMINI_BASE_URL": self.cloud.model_url,
                "CURL_HOME": str(self.home),
                "EDITOR": str(self.home / "editor"),
                # `sam deploy` draws its tables as wide as this.
                "COLUMNS": "300",
                "SAM_CLI_TELEMETRY": "0",
                "__SAM_CLI_APP_DIR": str(self.home / "sam"),
                **_COMMITTER,
            }
        )


_COMMITTER = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "An Operator"), ("EMAIL", "operator@example.com"))
} | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_MERGE_AUTOEDIT": "no"}


def _git(directory: Path, *arguments: str) -> str:
    return subprocess.run(  # noqa: S603 - our own command
        ["git", *arguments],  # noqa: S607 - from the PATH
        cwd=directory,
        env=os.environ | _COMMITTER,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def _script(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def now_ms() -> int:
    """The time, as logs count it."""
    return round(time.time() * 1000)
