"""``audit``: whether the money of the organisations adds up."""

from collections.abc import Iterator
from typing import TypedDict

import typer

from infra.cli.desk import WHOLE_TABLE_TAKES_S, Desk
from infra.cli.faults import why
from infra.cli.words import MaybeOrganisation, command
from lib.deadline import Deadline
from lib.ledger.table import LedgerUnreachable

__all__ = ["app"]

app = typer.Typer()
AUDIT_TAKES_S = 120.0
MAX_NAMED = 20
_FIELDS = (
    "organisations: a list of {organisation, audited, healthy, problem, granted, credits, drift, "
    "reserved, settled, refunded, findings}, healthy: whether all are. Without audited there is "
    "a problem in words, and null for each figure"
)


class _Verdict(TypedDict):
    organisation: str
    audited: bool
    healthy: bool
    problem: str | None
    granted: int | None
    credits: int | None
    drift: int | None
    reserved: int | None
    settled: int | None
    refunded: int | None
    findings: list[str]


@command(app, "audit", _FIELDS)
def audit(desk: Desk, organisation: MaybeOrganisation = None) -> bool:
    """Recompute the money of one organisation, or of all, and name what does not add up.

    It goes on after an organisation that is not healthy or can't be audited; the exit status is 1
    when there was any. It changes nothing.
    """
    bad: list[str] = []

    def verdicts(names: list[str]) -> Iterator[_Verdict]:
        for count, name in enumerate(names, start=1):
            seen(f"{count} of {len(names)}")
            verdict = _verdict(desk, name)
            if not verdict["healthy"]:
                bad.append(name)
            yield verdict

    names = _names(desk, organisation)
    with desk.screen.working("Auditing") as seen:
        desk.screen.report(
            "organisations", verdicts(names), _lines, more=lambda: {"healthy": not bad}
        )
    if bad:
        others = f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
        desk.screen.tell(f"look into {', '.join(bad[:MAX_NAMED])}{others}")
    return not bad


def _names(desk: Desk, organisation: str | None) -> list[str]:
    if organisation is not None:
        # Nothing is wrong with an organisation that does not exist, and yet it is no good news.
        desk.account(organisation)
        return [organisation]
    with desk.screen.working("Reading the table"):
        names = desk.accounts.organisations(Deadline(WHOLE_TABLE_TAKES_S))
    desk.screen.tell(f"{len(names)} organisations")
    return names


def _verdict(desk: Desk, organisation: str) -> _Verdict:
    try:
        report = desk.accounts.audit(organisation, Deadline(AUDIT_TAKES_S))
    except LedgerUnreachable as fault:
        # One account that is never at rest must not keep the others from being audited.
        return _Verdict(
            organisation=organisation,
            audited=False,
            healthy=False,
            problem=why(fault),
            granted=None,
            credits=None,
            drift=None,
            reserved=None,
            settled=None,
            refunded=None,
            findings=[],
        )
    return _Verdict(
        organisation=organisation,
        audited=True,
        healthy=report.healthy,
        problem=None,
        granted=report.granted,
        credits=report.credits,
        drift=report.drift,
        reserved=report.reserved,
        settled=report.settled,
        refunded=report.refunded,
        findings=list(report.findings),
    )


def _lines(verdict: _Verdict) -> Iterator[str]:
    if not verdict["audited"]:
        yield f"{verdict['organisation']}: NOT AUDITED: {verdict['problem']}"
        return
    yield (
        f"{verdict['organisation']}: {'healthy' if verdict['healthy'] else 'UNHEALTHY'}: "
        f"granted {verdict['granted']}, balance {verdict['credits']}, drift {verdict['drift']}; "
        f"generations: {verdict['reserved']} reserved, {verdict['settled']} settled, "
        f"{verdict['refunded']} refunded"
    )
    for finding in verdict["findings"]:
        yield f"  {finding}"
