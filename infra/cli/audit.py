"""``audit``: whether the organisations' credits add up."""

from collections.abc import Iterator, Mapping
from typing import Any

import typer

from infra.cli.errors import explain
from infra.cli.options import OptionalOrganisation
from infra.cli.output import Row
from infra.cli.session import SCAN_WITHIN_S, Command, Session
from lib.deadline import Deadline
from lib.ledger.table import LedgerUnreachable

__all__ = ["app"]

app = typer.Typer()
AUDIT_WITHIN_S = 120.0
MAX_NAMED = 20
_FIGURES = ("granted", "credits", "drift", "reserved", "settled", "refunded")
_FIELDS = (
    f"organisations: a list of {{organisation, audited, healthy, problem, {', '.join(_FIGURES)}, "
    "findings}, healthy: whether all are. If audited is false, problem says why, and the figures "
    "are null"
)


@app.command("audit", cls=Command, epilog=f"--json: {_FIELDS}")
def audit(session: Session, organisation: OptionalOrganisation = None) -> None:
    """Recompute the credits of one organisation, or of all, and report what does not add up.

    Exits with 1 if any organisation is unhealthy or cannot be audited; the others are audited all
    the same. Changes nothing.
    """
    bad: list[str] = []

    def verdicts(names: list[str]) -> Iterator[Row]:
        for count, name in enumerate(names, start=1):
            update(f"{count} of {len(names)}")
            verdict = _verdict(session, name)
            if not verdict["healthy"]:
                bad.append(name)
            yield verdict

    names = _names(session, organisation)
    with session.output.progress("Auditing") as update:
        session.output.report(
            "organisations", verdicts(names), _lines, more=lambda: {"healthy": not bad}
        )
    if bad:
        others = f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
        session.output.note(f"investigate {', '.join(bad[:MAX_NAMED])}{others}")
        raise typer.Exit(1)


def _names(session: Session, organisation: str | None) -> list[str]:
    if organisation is not None:
        # An organisation that does not exist would audit as healthy.
        session.account(organisation)
        return [organisation]
    with session.output.progress("Reading the table"):
        names = session.accounts.organisations(Deadline(SCAN_WITHIN_S))
    session.output.note(f"{len(names)} organisations")
    return names


def _verdict(session: Session, organisation: str) -> dict[str, Any]:
    verdict: dict[str, Any] = {"organisation": organisation}
    try:
        report = session.accounts.audit(organisation, Deadline(AUDIT_WITHIN_S))
    except LedgerUnreachable as fault:
        # An account that changes too fast to be audited must not stop the audit of the others.
        verdict |= {"audited": False, "healthy": False, "problem": explain(fault)}
        return verdict | dict.fromkeys(_FIGURES) | {"findings": []}
    verdict |= {"audited": True, "healthy": report.healthy, "problem": None}
    return verdict | {name: getattr(report, name) for name in (*_FIGURES, "findings")}


def _lines(verdict: Mapping[str, Any]) -> Iterator[str]:
    if not verdict["audited"]:
        yield "{organisation}: NOT AUDITED: {problem}".format_map(verdict)
        return
    health = "healthy" if verdict["healthy"] else "UNHEALTHY"
    yield (
        "{organisation}: {health}: granted {granted}, balance {credits}, drift {drift}; "
        "generations: {reserved} reserved, {settled} settled, {refunded} refunded"
    ).format_map({**verdict, "health": health})
    for finding in verdict["findings"]:
        yield f"  {finding}"
