"""Jobs from the queue: accepted generations are made, then settled or refunded."""

from typing import TYPE_CHECKING

from handlers.dependencies import dependencies
from handlers.http import Event
from handlers.initialization import initialize
from lib.deadline import RESPONSE_TAKES_S, Deadline
from lib.jobs import Job, UnreadableJob
from lib.ledger.table import LedgerUnreachable

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

__all__ = ["handler"]


def handler(event: Event, context: "LambdaContext") -> dict[str, list[dict[str, str]]]:
    """The Lambda entry point; returns the messages that the queue is to deliver again.

    A job whose image fails has ended: it was refunded. Only a job that was never begun comes again.
    """
    deadline = Deadline(context.get_remaining_time_in_millis() / 1000 - RESPONSE_TAKES_S)
    generations, telemetry = dependencies().generations, dependencies().telemetry
    failed = []
    for record in event["Records"]:
        message = str(record["messageId"])
        with telemetry.observe(message) as observation:
            try:
                job = Job.from_message(record["body"])
                generations.work(job, deadline, observation)
            except (LedgerUnreachable, UnreadableJob) as fault:
                observation.count("JobsNotBegun")
                observation.warning("a job could not be begun", fault)
                failed.append({"itemIdentifier": message})
    return {"batchItemFailures": failed}


initialize(build=lambda: dependencies().generations)
