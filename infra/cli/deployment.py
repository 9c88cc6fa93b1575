"""A deployed stack, as CloudFormation describes it, and the resources that commands look at."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.cli.errors import CommandFailed, explain_aws, explain_client
from lib.clients import error_code

__all__ = ["ALIAS", "WRITERS", "Deployment", "FunctionVersions", "LogLine", "client_of"]

CONNECT_S = 2
READ_S = 5
ALIAS = "live"
WRITERS = ("GenerateFunction", "DeleteFunction", "WorkerFunction", "ReconcileFunction")
"""The functions that write to the table."""
# What a version of a function keeps, and a deployment changes.
_SETTINGS = ("CodeSha256", "Environment", "Architectures", "MemorySize", "Timeout")


@dataclass(frozen=True, slots=True)
class FunctionVersions:
    """The version behind the alias, the newest one, and whether its settings are the stack's."""

    live: int
    newest: int
    is_shifting: bool
    is_current: bool


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a function's log; ``at_ms`` is in epoch milliseconds."""

    at_ms: int
    group: str = field(compare=False)
    text: str = field(compare=False)


class Deployment:
    """A stack that was deployed from ``template.yaml``.

    Its methods may raise ``ClientError`` and ``BotoCoreError``.
    """

    def __init__(self, name: str, region: str | None) -> None:
        """Describes the stack.

        Raises:
            CommandFailed: there is none, or CloudFormation does not describe it.
        """
        self.name = name
        self.region = region
        self._clients: dict[str, Any] = {}
        client = self._client("cloudformation")
        try:
            stack = client.describe_stacks(StackName=name)["Stacks"][0]
        except (ClientError, BotoCoreError, LookupError) as fault:
            reason = _why_not_described(name, client.meta.region_name, fault)
            raise CommandFailed(reason) from fault
        self.parameters: Mapping[str, str] = {
            each["ParameterKey"]: each.get("ParameterValue", "")
            for each in stack.get("Parameters", ())
        }
        self.outputs: Mapping[str, str] = {
            each["OutputKey"]: each.get("OutputValue", "") for each in stack.get("Outputs", ())
        }

    def resources(self, kind: str) -> dict[str, str]:
        """The physical names of the resources of a type, by their names in the template."""
        return {
            each["LogicalResourceId"]: each["PhysicalResourceId"]
            for each in self._resources
            if each["ResourceType"] == kind and each.get("PhysicalResourceId")
        }

    def versions(self, function: str) -> FunctionVersions:
        """The versions of the function with this physical name."""
        client = self._client("lambda")
        alias = client.get_alias(FunctionName=function, Name=ALIAS)
        pages = client.get_paginator("list_versions_by_function").paginate(FunctionName=function)
        versions = {each["Version"]: each for page in pages for each in page["Versions"]}
        live, latest = versions.get(alias["FunctionVersion"], {}), versions["$LATEST"]
        return FunctionVersions(
            live=int(alias["FunctionVersion"]),
            newest=max(int(each) for each in versions if each.isdigit()),
            is_shifting=bool(alias.get("RoutingConfig", {}).get("AdditionalVersionWeights")),
            is_current=all(live.get(name) == latest.get(name) for name in _SETTINGS),
        )

    def reserved_concurrency(self, function: str) -> int | None:
        """How many executions are reserved for the function; None if it shares the account's."""
        answer = self._client("lambda").get_function_concurrency(FunctionName=function)
        reserved: int | None = answer.get("ReservedConcurrentExecutions")
        return reserved

    def concurrency(self) -> tuple[int, int]:
        """The account's concurrent executions, and how many of them are not reserved."""
        limit = self._client("lambda").get_account_settings()["AccountLimit"]
        return limit["ConcurrentExecutions"], limit["UnreservedConcurrentExecutions"]

    def subscriptions(self, topic: str) -> list[str]:
        """The protocols of the topic's confirmed subscriptions, such as ``email``."""
        pages = self._client("sns").get_paginator("list_subscriptions_by_topic")
        found = (each for page in pages.paginate(TopicArn=topic) for each in page["Subscriptions"])
        return [each["Protocol"] for each in found if each["SubscriptionArn"].startswith("arn:")]

    def alarm_states(self, names: list[str]) -> dict[str, str]:
        """The state of each alarm: ``OK``, ``ALARM`` or ``INSUFFICIENT_DATA``."""
        pages = self._client("cloudwatch").get_paginator("describe_alarms")
        found = (each for page in pages.paginate(AlarmNames=names) for each in page["MetricAlarms"])
        return {each["AlarmName"]: each["StateValue"] for each in found}

    def log_lines(self, text: str, since_ms: int) -> list[LogLine]:
        """The lines of all logs that contain ``text``, oldest first."""
        client = self._client("logs")

        def lines() -> Iterator[LogLine]:
            for group in self.resources("AWS::Logs::LogGroup").values():
                pages = client.get_paginator("filter_log_events").paginate(
                    logGroupName=group, startTime=since_ms, filterPattern=f'"{text}"'
                )
                for event in (each for page in pages for each in page["events"]):
                    yield LogLine(event["timestamp"], group, event["message"].rstrip())

        return sorted(lines(), key=lambda line: line.at_ms)

    @cached_property
    def _resources(self) -> list[Any]:
        pages = self._client("cloudformation").get_paginator("list_stack_resources")
        found = pages.paginate(StackName=self.name)
        return [each for page in found for each in page["StackResourceSummaries"]]

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = client_of(service, self.region)
        return self._clients[service]


def client_of(service: str, region: str | None) -> Any:
    """A client for a call that only operators make.

    Raises:
        CommandFailed: the SDK's own configuration is unusable.
    """
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    build: Callable[..., Any] = boto3.client
    try:
        return build(service, region_name=region, config=config)
    except (BotoCoreError, ValueError) as fault:
        raise CommandFailed(explain_client(fault)) from fault


def _why_not_described(name: str, region: str, fault: Exception) -> str:
    code = error_code(fault) if isinstance(fault, ClientError) else ""
    if code == "ValidationError" or isinstance(fault, LookupError):
        return (
            f"there is no stack {name} in {region}; list the stacks with `aws cloudformation "
            "list-stacks`, or pass --region"
        )
    return explain_aws(fault) or (
        f"CloudFormation did not describe the stack {name} ({code or type(fault).__name__}); "
        "check its name, the region and your permissions"
    )
