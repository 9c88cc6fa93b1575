"""``audit``: whether the organisations' credits add up."""

import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from infra.cli.errors import CommandFailed, explain
from infra.cli.options import OptionalOrganisation
from infra.cli.output import Row
from infra.cli.session import CALL_WITHIN_S, SCAN_WITHIN_S, Command, Session
from lib.deadline import Deadline
from lib.ledger.table import LedgerUnreachable
from lib.picture.storage import StorageUnreachable

__all__ = ["app"]

app = typer.Typer()
_NO_STORE = "the object store does not respond or refuses; check the bucket and your permissions"
MAX_NAMED = 20
_FIGURES = ("granted", "credits", "drift", "slack", "reserved", "settled", "refunded")
_FIELDS = (
    f"organisations: a list of {{organisation, audited, healthy, problem, {', '.join(_FIGURES)}, "
    "images: how many are stored, null without --images, findings}, healthy: whether all are. "
    "If audited is false, problem says why, and the figures are null"
)
_Images = Annotated[
    bool, typer.Option("--images", help="Compare the rows with the stored images, too.")
]
_KeptDays = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="DAYS",
        help="With --images: do not expect older images, which ImageRetentionDays deletes.",
    ),
]
DAY_MS = 24 * 60 * 60 * 1000


@app.command("audit", cls=Command, epilog=f"--json: {_FIELDS}")
def audit(
    session: Session,
    organisation: OptionalOrganisation = None,
    *,
    images: _Images = False,
    kept_days: _KeptDays = None,
) -> None:
    """Recompute the credits of one organisation, or of all, and report what does not add up.

    Runs beside any number of requests. With --images, a settled generation without its image and a
    refunded one with an image are findings too, unless the reconciler is still to visit it. Exits
    with 1 if any organisation is unhealthy or cannot be audited; the others are audited all the
    same. Changes nothing.
    """
    bad: list[str] = []
    since_ms = 0 if kept_days is None else round(time.time() * 1000) - kept_days * DAY_MS

    def verdicts(names: list[str]) -> Iterator[Row]:
        for count, name in enumerate(names, start=1):
            update(f"{count} of {len(names)}")
            verdict = _verdict(session, name, since_ms, with_images=images)
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
        if not session.accounts.exists(organisation, Deadline(CALL_WITHIN_S)):
            raise CommandFailed(f"there is no organisation {organisation}; create it first")
        return [organisation]
    with session.output.progress("Reading the list"):
        names = session.accounts.organisations(Deadline(SCAN_WITHIN_S))
    session.output.note(f"{len(names)} organisations")
    return names


def _verdict(
    session: Session, organisation: str, kept_since_ms: int, *, with_images: bool
) -> dict[str, Any]:
    verdict: dict[str, Any] = {"organisation": organisation}
    stored, findings = None, []
    try:
        report = session.accounts.audit(organisation, Deadline(SCAN_WITHIN_S))
        if with_images:
            found = session.accounts.audit_images(
                organisation, session.images, Deadline(SCAN_WITHIN_S), kept_since_ms
            )
            stored, findings = found.stored, [*found.findings]
    except (LedgerUnreachable, StorageUnreachable) as fault:
        # One organisation that cannot be audited must not stop the audit of the others.
        problem = explain(fault) if isinstance(fault, LedgerUnreachable) else _NO_STORE
        verdict |= {"audited": False, "healthy": False, "problem": problem}
        return verdict | dict.fromkeys((*_FIGURES, "images")) | {"findings": []}
    healthy = report.healthy and not findings
    verdict |= {"audited": True, "healthy": healthy, "problem": None}
    verdict |= {name: getattr(report, name) for name in _FIGURES}
    return verdict | {"images": stored, "findings": [*report.findings, *findings]}


def _lines(verdict: Mapping[str, Any]) -> Iterator[str]:
    if not verdict["audited"]:
        yield "{organisation}: NOT AUDITED: {problem}".format_map(verdict)
        return
    health = "healthy" if verdict["healthy"] else "UNHEALTHY"
    line = (
        "{organisation}: {health}: granted {granted}, balance {credits}, drift {drift}; "
        "generations: {reserved} reserved, {settled} settled, {refunded} refunded"
    )
    if verdict["images"] is not None:
        line += "; images: {images} stored"
    if verdict["slack"]:
        line += "; too busy to exclude a drift of {slack}"
    yield line.format_map({**verdict, "health": health})
    for finding in verdict["findings"]:
        yield f"  {finding}"
