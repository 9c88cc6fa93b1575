"""Once a day: every organisation's rows are compared with its account."""

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from handlers.dependencies import dependencies
from handlers.initialization import initialize
from lib.deadline import AUDIT_ENDS_BEFORE_S, Deadline
from lib.ledger.table import LedgerUnreachable

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

__all__ = ["handler"]

# A log line holds 256 KB; `gemini-generate audit` shows all.
MAX_LOGGED = 50


def handler(_event: Mapping[str, Any], context: "LambdaContext") -> dict[str, int]:
    """The Lambda entry point; returns the number of organisations and of findings.

    Raises:
        LedgerUnreachable: the organisations can't be listed. The run has not ended, so that
            ``AuditSilentAlarm`` rings after a day.
    """
    time_left_s = context.get_remaining_time_in_millis() / 1000
    deadline = Deadline(time_left_s - AUDIT_ENDS_BEFORE_S)
    accounts, telemetry = dependencies().accounts, dependencies().telemetry
    findings, unfinished = 0, []
    with telemetry.observe(context.aws_request_id) as observation:
        organisations = accounts.organisations(deadline)
        # If a run is too short for all, the next ones reach those that it left.
        random.shuffle(organisations)
        for organisation in organisations:
            try:
                report = accounts.audit(organisation, deadline)
            except LedgerUnreachable as fault:
                unfinished.append(organisation)
                if not deadline.passed():
                    observation.warning("an audit failed", fault, organisation=organisation)
                continue
            if not report.healthy:
                findings += len(report.findings)
                observation.warning(
                    "the books do not add up",
                    organisation=organisation,
                    drift=report.drift,
                    findings=report.findings[:MAX_LOGGED],
                )
        observation.count("AuditDrift", findings)
        observation.count("AuditsUnfinished", len(unfinished))
        observation.count("AuditsEnded", 0 if unfinished else 1)
        if unfinished:
            observation.warning(
                "the time was too short to audit all", not_audited=sorted(unfinished)[:MAX_LOGGED]
            )
    return {
        "organisations": len(organisations),
        "findings": findings,
        "unfinished": len(unfinished),
    }


initialize(build=lambda: dependencies().accounts)
