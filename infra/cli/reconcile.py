"""``reconcile``: ends what nobody ended, once, as the deployed function does every minute."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TypedDict

import typer
from aws_lambda_powertools.logging import Logger
from botocore.exceptions import BotoCoreError

from infra.cli.desk import Desk
from infra.cli.faults import NotDoneError, why_no_start
from infra.cli.words import command
from lib.deadline import Deadline
from lib.ledger.reconciliation import ROWS_IN_PARALLEL, Reconciler
from lib.observability import Observation, describe_fault
from lib.picture.storage import Images, ObjectStore
from lib.settings import MissingSettingError, Settings

__all__ = ["app"]

app = typer.Typer()
PASS_TAKES_S = 600.0


@command(
    app,
    "reconcile",
    "settled, refunded, swept, failed, left: how many reservations ended so, and "
    "problems: a list of {hold, fault: a list of types and lines of code}",
)
def reconcile(desk: Desk) -> bool:
    """Settle or refund every reservation whose time has run out, once.

    The deployed function does that every minute; this is for when it can't. Repeating it is
    harmless. The exit status is 1 when a reservation could not be ended.
    """
    try:
        settings = Settings.from_environment(desk.variables)
    except MissingSettingError as fault:
        raise NotDoneError(f"{fault}; set it, or give --stack-name or --local") from fault
    found = _Findings(settings.service_name)
    try:
        store = ObjectStore(settings, desk.secrets)
    except (BotoCoreError, ValueError) as fault:
        raise NotDoneError(why_no_start(fault)) from fault
    images = Images(store, settings.image_bucket, settings.image_base_url)
    with (
        ThreadPoolExecutor(ROWS_IN_PARALLEL) as pool,
        desk.screen.working("Reconciling"),
    ):
        reconciler = Reconciler(desk.ledger, images, run_all=pool.map)
        counts = asdict(reconciler.run(Deadline(PASS_TAKES_S), found))
    desk.screen.show(
        {**counts, "problems": found.problems},
        ", ".join(f"{name} {count}" for name, count in counts.items()),
    )
    for problem in found.problems:
        desk.screen.tell(f"{problem['hold']} can't be ended: {'; '.join(problem['fault'])}")
    if counts["failed"] or counts["left"]:
        desk.screen.tell("what failed or was left is there again the next time: repeat this")
        return False
    return True


class _Problem(TypedDict):
    hold: str
    fault: list[str]


class _Findings(Observation):
    """Keeps what the reconciler warns of, instead of logging it."""

    def __init__(self, service: str) -> None:
        super().__init__(Logger(service=service, stream=sys.stderr), "", service, "operator")
        self.problems: list[_Problem] = []

    def warning(self, message: str, fault: BaseException | None = None, **fields: object) -> None:
        """One hold that can't be ended: whose it is, and why without anybody's words."""
        causes = describe_fault(fault) if fault else [message]
        self.problems.append(_Problem(hold=str(fields.get("hold", "")), fault=causes))
