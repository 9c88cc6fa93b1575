"""Jobs from the queue: accepted generations are made, and settled or refunded."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from handlers.composition import Rooms
from handlers.http import Event
from handlers.sandbox import prepare
from lib.deadline import Deadline
from lib.gemini import Gemini
from lib.generation import Generations
from lib.jobs import Job, UnreadableJob
from lib.observability import Telemetry
from lib.settings import Settings
from lib.table import LedgerUnreachable

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

__all__ = ["Service", "handler", "service"]

ANSWER_TAKES_S = 0.5


@dataclass(frozen=True, slots=True)
class Service:
    """The rooms of this function."""

    generations: Generations
    telemetry: Telemetry


@cache
def service() -> Service:
    """Built once a process; later calls return the same."""
    rooms = Rooms(Settings.from_environment())
    model = Gemini(rooms.gemini_api_key, rooms.settings.gemini_model)
    return Service(Generations(rooms.ledger, model, rooms.images), rooms.telemetry)


def handler(event: Event, context: "LambdaContext") -> dict[str, list[dict[str, str]]]:
    """The Lambda entry point; names the messages that the queue is to deliver again.

    A job whose image fails has ended: it was refunded. Only one that was never begun comes again.
    """
    deadline = Deadline(context.get_remaining_time_in_millis() / 1000 - ANSWER_TAKES_S)
    rooms = service()
    failed = []
    for record in event["Records"]:
        message = str(record["messageId"])
        with rooms.telemetry.observe(message) as observation:
            try:
                job = Job.from_message(record["body"])
                rooms.generations.work(job, deadline, observation)
            except (LedgerUnreachable, UnreadableJob) as fault:
                observation.count("JobsNotBegun")
                observation.warning("a job could not be begun", fault)
                failed.append({"itemIdentifier": message})
    return {"batchItemFailures": failed}


prepare(build=service)
