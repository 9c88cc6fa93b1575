"""JSON log lines, and CloudWatch metrics in the embedded metric format.

Neither ever contains what a customer wrote or another service returned: no key, no prompt, no
exception message. A fault is described by its exception types and source locations.

Source of the format: "Embedded metric format" in CloudWatch's user guide.
"""

import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.metrics.provider.cloudwatch_emf.cloudwatch import (
    AmazonCloudWatchEMFProvider,
)
from botocore.exceptions import ClientError

from lib.clients import error_code
from lib.errors import ServiceError

if TYPE_CHECKING:
    from lib.settings import Settings

__all__ = ["Observation", "Telemetry", "describe_fault"]

_LIBRARIES = ("boto3", "botocore", "urllib3", "httpx2", "httpcore2", "google_genai", "PIL")
MAX_CAUSES = 6
MAX_LOCATIONS = 6


class Telemetry:
    """The process's logger; ``observe`` starts the observation of one request."""

    def __init__(self, settings: "Settings") -> None:
        self._namespace = settings.metrics_namespace
        self._service = settings.service_name
        self._logger = Logger(service=settings.service_name, utc=True)
        # At level DEBUG these libraries log whole requests, with keys and prompts.
        for name in _LIBRARIES:
            logging.getLogger(name).setLevel(logging.ERROR)

    @contextmanager
    def observe(self, request_id: str) -> Iterator["Observation"]:
        """Observes one request; its metrics are written when the block ends."""
        observation = Observation(self._logger, self._namespace, self._service, request_id)
        try:
            yield observation
        finally:
            observation.flush()


class Observation:
    """One request's log lines and metrics. Not shared between threads."""

    def __init__(self, logger: Logger, namespace: str, service: str, request_id: str) -> None:
        self.request_id = request_id
        self._logger = logger
        self._namespace = namespace
        self._service = service
        self._metrics = self._new_metrics()
        self._by_code: dict[str, int] = {}
        self._identity: dict[str, object] = {}

    def identify(self, **fields: object) -> None:
        """Adds ``fields`` to every later line: whose request it is, and what it is about."""
        self._identity |= fields

    def info(self, message: str, **fields: object) -> None:
        """Logs an expected event. ``fields`` become attributes of the log line."""
        self._logger.info(message, extra=self._extra(fields), stacklevel=3)

    def warning(self, message: str, fault: BaseException | None = None, **fields: object) -> None:
        """Logs an event that an operator may want to investigate, with the types of ``fault``."""
        described = {"fault": describe_fault(fault)} if fault else {}
        self._logger.warning(message, extra=self._extra(described | fields), stacklevel=3)

    def count(self, name: str, value: int = 1) -> None:
        """Adds ``value`` to the count metric ``name``."""
        self._metrics.add_metric(name, MetricUnit.Count, value)

    def count_request(self, failure: ServiceError | None = None) -> None:
        """Counts a request for an image that was not rejected, and whether it failed by a fault."""
        is_fault = failure is not None and failure.is_fault
        self._count_attempts(requests=1, request_faults=int(is_fault))

    def count_job(self, failure: ServiceError | None = None) -> None:
        """Counts a delivery of a job, or an acceptance that failed, and whether by a fault."""
        is_fault = failure is not None and failure.is_fault
        self._count_attempts(jobs=1, job_faults=int(is_fault))

    def _count_attempts(
        self, requests: int = 0, request_faults: int = 0, jobs: int = 0, job_faults: int = 0
    ) -> None:
        """Counts all four: an alarm's expression has no value while one of its metrics has none."""
        self.count("Requests", requests)
        self.count("RequestFaults", request_faults)
        self.count("Jobs", jobs)
        self.count("JobFaults", job_faults)

    def count_failure(self, code: str) -> None:
        """Counts a failed generation by its error code."""
        self._by_code[code] = self._by_code.get(code, 0) + 1

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Records how long the block takes as the metric ``name``, in milliseconds."""
        started_at = time.monotonic()
        try:
            yield
        finally:
            elapsed_ms = (time.monotonic() - started_at) * 1000
            self._metrics.add_metric(name, MetricUnit.Milliseconds, round(elapsed_ms, 1))

    def flush(self) -> None:
        """Writes the pending metrics to standard output, from where Lambda ships them."""
        if self._metrics.metric_set:
            self._write(self._metrics)
            self._metrics = self._new_metrics()
        for code, value in self._by_code.items():
            metrics = self._new_metrics()
            metrics.add_dimension("code", code)
            metrics.add_metric("FailuresByCode", MetricUnit.Count, value)
            self._write(metrics)
        self._by_code = {}

    def _extra(self, fields: Mapping[str, object]) -> dict[str, object]:
        return {"request_id": self.request_id, **self._identity, **fields}

    def _new_metrics(self) -> AmazonCloudWatchEMFProvider:
        return AmazonCloudWatchEMFProvider(namespace=self._namespace, service=self._service)

    @staticmethod
    def _write(metrics: AmazonCloudWatchEMFProvider) -> None:
        line = json.dumps(metrics.serialize_metric_set(), separators=(",", ":"))
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def describe_fault(fault: BaseException) -> list[str]:
    """Describes an exception and its causes, outermost first, without their messages.

    Each entry has the exception's type, AWS's error code if it has one, and up to six source
    locations, innermost first. There are at most six entries.
    """
    descriptions = []
    cause: BaseException | None = fault
    while cause is not None:
        frames = traceback.extract_tb(cause.__traceback__)
        locations = [
            f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-MAX_LOCATIONS:]
        ]
        name = type(cause).__name__
        if isinstance(cause, ClientError):
            name += f" {error_code(cause)}"
        descriptions.append(f"{name} at {' < '.join(reversed(locations))}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return descriptions[:MAX_CAUSES]
