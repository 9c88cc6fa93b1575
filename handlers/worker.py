"""Jobs from the queue: accepted generations are made, then settled or refunded."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from handlers.dependencies import dependencies
from handlers.initialization import initialize
from lib.deadline import RESPONSE_TAKES_S, Deadline
from lib.errors import OutcomePending, ServiceUnavailable, UnexpectedFailure
from lib.jobs import Job, UnreadableJob
from lib.ledger.table import LedgerUnreachable

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

__all__ = ["handler"]


def handler(event: Mapping[str, Any], context: "LambdaContext") -> dict[str, list[dict[str, str]]]:
    """The Lambda entry point; returns the messages that the queue is to deliver again.

    A job whose image fails has ended: it was refunded. The queue redelivers a job that was never
    begun, and one whose image may be stored.
    """
    deadline = Deadline(context.get_remaining_time_in_millis() / 1000 - RESPONSE_TAKES_S)
    jobs, telemetry = dependencies().jobs, dependencies().telemetry
    failed = []
    for record in event["Records"]:
        message = str(record["messageId"])
        with telemetry.observe(message) as observation:
            try:
                job = Job.from_message(record["body"])
                jobs.work(job, deadline, observation, redelivered=_deliveries(record) > 1)
                observation.info("job ended")
            except (LedgerUnreachable, UnreadableJob) as fault:
                observation.count("JobsNotBegun")
                observation.count_job(ServiceUnavailable())
                observation.warning("a job could not be begun", fault)
                failed.append({"itemIdentifier": message})
            except OutcomePending as fault:
                observation.count("JobsInDoubt")
                observation.count_job(fault)
                observation.warning("the store does not say whether it has a job's image", fault)
                failed.append({"itemIdentifier": message})
            except Exception:
                observation.count_job(UnexpectedFailure())
                raise
    return {"batchItemFailures": failed}


def _deliveries(record: Mapping[str, Any]) -> int:
    """How often SQS has delivered the message, this time included."""
    return int(record.get("attributes", {}).get("ApproximateReceiveCount", 1))


initialize(build=lambda: dependencies().jobs)
