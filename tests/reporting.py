"""What a test run tried: the lines at its end, and the table in ``infra/docs/ARCHITECTURE.md``.

A run leaves its sums in ``.build/tried.json``. ``make counts`` writes those of the last whole
``make verify`` into the page.
"""

import json
import sys
from collections import Counter
from datetime import UTC, datetime
from enum import StrEnum

from infra.docs.markdown import table
from infra.template import PROJECT_ROOT

__all__ = ["PAGE", "Tried", "lines", "receive", "report", "rows", "save", "tally", "to_send"]

PAGE = PROJECT_ROOT / "infra" / "docs" / "ARCHITECTURE.md"
HEAD = ("what was tried", "how often")
_SAVED = PROJECT_ROOT / ".build" / "tried.json"
_BEGIN, _END = "<!-- counts: make counts -->\n", "<!-- end of counts -->"


class Tried(StrEnum):
    """What is counted, in the words of the table. Each was found sound, or the run failed."""

    CRASH_POINTS = "faults at every call of every path, on DynamoDB Local"
    DOUBLE_FAULTS = "pairs of faults, on DynamoDB Local"
    INTERLEAVINGS = "interleavings with crashes, clocks and a lagging index, on DynamoDB Local"
    HISTORY_STEPS = "steps of generated histories, on DynamoDB Local"
    REQUEST_KILLS = "SIGKILL of a runtime with a request, at a random moment"
    REQUEST_STOPS = "runtimes stopped by their timeout, or paused past their lease"
    WORKER_KILLS = "SIGKILL of a worker"
    ACCEPTOR_KILLS = "SIGKILL of a runtime that accepts a job"
    CONFLICTS = "conflicts put into concurrent calls"
    LOST_RESPONSES = "responses of concurrent calls lost"
    GENERATED_REQUESTS = "requests generated from the OpenAPI document"
    DEPLOYMENTS = "runs of sam deploy, on an emulated account"


_LINES: list[str] = []
_TALLIES: Counter[str] = Counter()


def report(line: str) -> None:
    """Adds a line to the summary."""
    _LINES.append(line)


def tally(what: Tried, number: int) -> None:
    """Adds ``number`` to a sum in the summary."""
    # xdist sends plain strings only.
    _TALLIES[str(what)] += number


def lines() -> list[str]:
    """The summary so far."""
    return [*_LINES, *(f"{name}: {number:,}" for name, number in rows(_TALLIES))]


def rows(tallies: Counter[str]) -> list[tuple[str, int]]:
    """What was tried and how often, in the order of ``Tried``."""
    return [(what, tallies[what]) for what in Tried if tallies[what]]


def save() -> None:
    """Leaves the sums for ``make counts``."""
    _SAVED.parent.mkdir(exist_ok=True)
    _SAVED.write_text(json.dumps(_TALLIES), encoding="utf-8")


def to_send() -> tuple[list[str], dict[str, int]]:
    """What a worker of a parallel run sends to the process that prints."""
    return list(_LINES), dict(_TALLIES)


def receive(sent: tuple[list[str], dict[str, int]] | None) -> None:
    """Adds what a worker sent; a worker that died sent nothing."""
    if sent is not None:
        _LINES.extend(sent[0])
        _TALLIES.update(sent[1])


def main() -> int:
    """Writes the table of the last whole run into the page; 1 if there was none."""
    tallies = Counter(json.loads(_SAVED.read_text("utf-8")) if _SAVED.exists() else {})
    missing = [what for what in Tried if not tallies[what]]
    if missing:
        print(f"run `make verify` first; the last run did not count {', '.join(missing)}")  # noqa: T201 - a command prints
        return 1
    counted = [(what, f"{number:,}") for what, number in rows(tallies)]
    before, _, rest = PAGE.read_text("utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    made = datetime.fromtimestamp(_SAVED.stat().st_mtime, UTC)
    head = f"In the run of {made:%Y-%m-%d}, all of them sound:"
    written = f"{head}\n\n{table(HEAD, counted)}"
    PAGE.write_text(f"{before}{_BEGIN}{written.rstrip()}\n{_END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
