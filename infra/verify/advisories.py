"""Looks every pinned version up in OSV, the open database of known vulnerabilities.

    python -m infra.verify.advisories

It fails on a finding. Where the database can't be reached it says so and succeeds, so that no other
check depends on a network.
"""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

from infra.verify import tools

__all__ = ["ACCEPTED", "DATABASE", "OLD_ON_PURPOSE", "main"]

DATABASE = "https://api.osv.dev/v1/query"
"""Documented at https://google.github.io/osv.dev/post-v1-query/."""

ACCEPTED: Mapping[str, str] = {}
"""Advisories that don't concern this project, by their identifier, each with the reason."""

OLD_ON_PURPOSE = frozenset({"openai0.txt", "openai1.txt", "openai2.txt"})
"""Lists of clients that only a test runs, against this machine, because they are old."""

_QUESTION = {"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "23.2.1"}
_ANSWERS_WITHIN_S = 10
_AUDIT_TAKES_S = 600
_AT_ONCE = 4


class _AuditFailedError(Exception):
    """What pip-audit wrote in place of a report."""


def main(database: str = DATABASE) -> int:
    """Prints what is known about the pins; returns the exit status."""
    if not _answers(database):
        return _skipped(database)
    found = sorted(tools.REQUIREMENTS.glob("*.txt"))
    lists = [path for path in found if path.name not in OLD_ON_PURPOSE]
    try:
        tools.install_pip_audit()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            reports = list(pool.map(_audit, lists, repeat(database)))
    except (tools.ToolMissingError, _AuditFailedError) as fault:
        if not _answers(database):
            return _skipped(database)
        print(fault, file=sys.stderr)
        return 1
    for path, packages in zip(lists, reports, strict=True):
        findings = [line for package in packages for line in _findings(package)]
        print(f"{path.name}: {len(packages)} packages, {len(findings)} known vulnerabilities")
        print(*findings, sep="\n", end="\n" if findings else "")
    return 1 if any(package.get("vulns") for packages in reports for package in packages) else 0


def _skipped(database: str) -> int:
    print(f"Known vulnerabilities were not looked up: {database} can't be reached from here.")
    return 0


def _answers(database: str) -> bool:
    body = json.dumps(_QUESTION).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(database, body, headers)  # noqa: S310 - one of our own
    try:
        with urllib.request.urlopen(request, timeout=_ANSWERS_WITHIN_S) as answer:  # noqa: S310
            json.load(answer)
    except (OSError, ValueError):
        return False
    return True


def _audit(requirements: Path, database: str) -> list[dict[str, Any]]:
    """pip-audit's report on each package of a list."""
    command = [str(tools.pip_audit()), "--vulnerability-service=osv", f"--osv-url={database}"]
    command += ["--require-hashes", "--disable-pip", "--format=json", "--progress-spinner=off"]
    command += [f"--requirement={requirements}"]
    command += [f"--ignore-vuln={identifier}" for identifier in ACCEPTED]
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            command, timeout=_AUDIT_TAKES_S, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired as fault:
        raise _AuditFailedError(f"pip-audit did not end in {_AUDIT_TAKES_S} s") from fault
    if not done.stdout:
        raise _AuditFailedError(f"pip-audit failed on {requirements.name}:\n{done.stderr}")
    packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    return packages


def _findings(package: Mapping[str, Any]) -> list[str]:
    """A line for each vulnerability: what it is, and which release mends it."""
    return [
        f"  {package['name']}=={package['version']}: {each['id']},"
        f" fixed in {', '.join(each['fix_versions']) or 'no release'}"
        for each in package.get("vulns", ())
    ]


if __name__ == "__main__":
    raise SystemExit(main())
