"""Reads ``template.yaml`` for the rest of ``infra``, which keeps it the only definition.

The local stack, the tests and the benchmarks get the table, the routes, the handlers, the timeouts
and the schedules from here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from samtranslator.yaml_helper import yaml_parse  # type: ignore[import-untyped]

__all__ = [
    "DEFAULT_ROUTE",
    "PROJECT_ROOT",
    "TEMPLATE_PATH",
    "Cors",
    "Function",
    "Queue",
    "Route",
    "Template",
    "TemplateError",
    "Throttle",
    "parse",
]

PROJECT_ROOT = Path(__file__).resolve().parent.parent
TEMPLATE_PATH = PROJECT_ROOT / "template.yaml"

# The properties that CloudFormation and DynamoDB's CreateTable share, in the same form.
_TABLE_PROPERTIES = (
    "AttributeDefinitions",
    "KeySchema",
    "BillingMode",
    "GlobalSecondaryIndexes",
)
_RATE = re.compile(r"rate\((\d+) (minute|hour|day)s?\)")
_SECONDS = {"minute": 60, "hour": 3600, "day": 86400}
# Lambda's defaults.
_DEFAULT_TIMEOUT_S = 3
_DEFAULT_MEMORY_MB = 128


class TemplateError(Exception):
    """The template lacks what is asked for, or has it in an unsupported form."""


@dataclass(frozen=True, slots=True)
class Route:
    """One ``HttpApi`` event: ``path`` may hold parameters, as in ``/things/{id}``."""

    method: str
    path: str

    @property
    def key(self) -> str:
        """What API Gateway calls it in an event."""
        return self.path if self == DEFAULT_ROUTE else f"{self.method} {self.path}"


DEFAULT_ROUTE = Route("ANY", "$default")
"""The route of the requests that no other route matches."""


def _route(properties: Mapping[str, Any]) -> Route:
    if "Path" not in properties:
        return DEFAULT_ROUTE
    return Route(str(properties["Method"]).upper(), str(properties["Path"]))


@dataclass(frozen=True, slots=True)
class Function:
    """One function. ``handler`` is ``module.attribute``; each schedule is a period in seconds.

    ``queues`` holds the logical names of the SQS queues that invoke it.

    ``environment`` holds the values as the template writes them: text, or an intrinsic function
    such as ``{"Ref": "CreditsTable"}``.
    """

    name: str
    handler: str
    timeout_s: int
    memory_mb: int
    environment: Mapping[str, object]
    routes: tuple[Route, ...]
    schedules_s: tuple[int, ...]
    queues: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Queue:
    """An SQS queue. After ``receives`` deliveries a message moves to ``dead_letters``.

    ``dead_letters`` is the logical name of the dead-letter queue.
    """

    visibility_timeout_s: int
    receives: int | None
    dead_letters: str | None


@dataclass(frozen=True, slots=True)
class Cors:
    """The ``CorsConfiguration`` of the HTTP API. Header names are lower-case."""

    origins: tuple[str, ...]
    methods: tuple[str, ...]
    headers: tuple[str, ...]
    expose: tuple[str, ...]
    max_age_s: int


@dataclass(frozen=True, slots=True)
class Throttle:
    """A token bucket of the HTTP API: ``per_s`` requests a second, and ``burst`` at once."""

    per_s: float
    burst: int


class Template:
    """A parsed SAM template; intrinsic functions are kept as data and never evaluated."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    @classmethod
    def from_file(cls, path: Path = TEMPLATE_PATH) -> Self:
        """Reads a template.

        Raises:
            TemplateError: it is not YAML, or has no resources.
            OSError: it can't be read.
        """
        return cls(parse(path.read_text(encoding="utf-8")))

    def functions(self) -> tuple[Function, ...]:
        """All functions, in the template's order, with ``Globals`` applied."""
        return tuple(
            self._function(name, properties)
            for name, properties in self._of_type("AWS::Serverless::Function")
        )

    def literal(self, value: object) -> str | None:
        """A value known without a deployment: text, a number, a parameter's default; else None."""
        if isinstance(value, str | int):
            return str(value)
        name = value.get("Ref") if isinstance(value, Mapping) else None
        default = self._document.get("Parameters", {}).get(name, {}).get("Default")
        return None if default is None else str(default)

    def table_definition(self, table_name: str, resource: str = "CreditsTable") -> dict[str, Any]:
        """The arguments of boto3's ``create_table`` for the table ``resource``.

        Raises:
            TemplateError: there is no such table.
        """
        properties = self._properties(resource, "AWS::DynamoDB::Table")
        wanted = {name: properties[name] for name in _TABLE_PROPERTIES if name in properties}
        return {"TableName": table_name} | wanted

    def expiry_attribute(self, resource: str = "CreditsTable") -> str:
        """The attribute with the epoch seconds after which the table ``resource`` deletes an item.

        Raises:
            TemplateError: there is no such table, or it never deletes items.
        """
        properties = self._properties(resource, "AWS::DynamoDB::Table")
        specification = properties.get("TimeToLiveSpecification", {})
        if not specification.get("Enabled"):
            raise TemplateError(f"{resource} has no enabled TimeToLiveSpecification")
        return str(specification["AttributeName"])

    def queue(self, resource: str) -> Queue:
        """The SQS queue ``resource``.

        Raises:
            TemplateError: there is no such queue.
        """
        properties = self._properties(resource, "AWS::SQS::Queue")
        redrive = properties.get("RedrivePolicy", {})
        target = redrive.get("deadLetterTargetArn", {}).get("Fn::GetAtt", [None])[0]
        return Queue(
            visibility_timeout_s=int(properties.get("VisibilityTimeout", 30)),
            receives=redrive.get("maxReceiveCount"),
            dead_letters=target,
        )

    def cors(self, resource: str = "HttpApi") -> Cors:
        """The CORS configuration of the HTTP API ``resource``.

        Raises:
            TemplateError: there is no such API, or it has no configuration.
        """
        properties = self._properties(resource, "AWS::Serverless::HttpApi")
        if "CorsConfiguration" not in properties:
            raise TemplateError(f"{resource} has no CorsConfiguration")
        configuration = properties["CorsConfiguration"]
        return Cors(
            origins=tuple(configuration["AllowOrigins"]),
            methods=tuple(configuration["AllowMethods"]),
            headers=tuple(name.lower() for name in configuration["AllowHeaders"]),
            expose=tuple(name.lower() for name in configuration["ExposeHeaders"]),
            max_age_s=int(configuration["MaxAge"]),
        )

    def throttles(self, resource: str = "HttpApi") -> dict[str | None, Throttle]:
        """The throttles of the HTTP API ``resource``: of routes by key, and of all others by None.

        A limit that refers to a parameter is the parameter's default.

        Raises:
            TemplateError: there is no such API, or it has no throttles.
        """
        properties = self._properties(resource, "AWS::Serverless::HttpApi")
        if "DefaultRouteSettings" not in properties:
            raise TemplateError(f"{resource} has no DefaultRouteSettings")
        settings = {None: properties["DefaultRouteSettings"]} | properties.get("RouteSettings", {})
        return {
            route: Throttle(
                float(self.literal(each["ThrottlingRateLimit"]) or 0),
                int(self.literal(each["ThrottlingBurstLimit"]) or 0),
            )
            for route, each in settings.items()
        }

    def _of_type(self, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, resource in self._document["Resources"].items():
            if resource["Type"] == kind:
                yield name, resource.get("Properties", {})

    def _properties(self, name: str, kind: str) -> Mapping[str, Any]:
        for found, properties in self._of_type(kind):
            if found == name:
                return properties
        raise TemplateError(f"the template has no {kind} called {name}")

    def _function(self, name: str, own: Mapping[str, Any]) -> Function:
        shared = self._document.get("Globals", {}).get("Function", {})
        properties = {**shared, **own}
        events = list(own.get("Events", {}).values())
        return Function(
            name=name,
            handler=properties["Handler"],
            timeout_s=_whole_number(name, "Timeout", properties, _DEFAULT_TIMEOUT_S),
            memory_mb=_whole_number(name, "MemorySize", properties, _DEFAULT_MEMORY_MB),
            environment=_variables(shared) | _variables(own),
            routes=tuple(
                _route(event["Properties"]) for event in events if event["Type"] == "HttpApi"
            ),
            schedules_s=tuple(
                _period_s(event["Properties"]["Schedule"])
                for event in events
                if event["Type"] == "Schedule"
            ),
            queues=tuple(
                event["Properties"]["Queue"]["Fn::GetAtt"][0]
                for event in events
                if event["Type"] == "SQS"
            ),
        )


def parse(text: str) -> dict[str, Any]:
    """The template as plain data: ``!Ref A`` becomes ``{"Ref": "A"}``.

    Raises:
        TemplateError: it is not YAML, or has no resources.
    """
    try:
        document = yaml_parse(text)
    except yaml.YAMLError as fault:
        raise TemplateError("the template is not YAML") from fault
    if not isinstance(document, dict) or not isinstance(document.get("Resources"), dict):
        raise TemplateError("the template has no Resources")
    return document


def _variables(properties: Mapping[str, Any]) -> dict[str, object]:
    return dict(properties.get("Environment", {}).get("Variables", {}))


def _whole_number(name: str, key: str, properties: Mapping[str, Any], default: int) -> int:
    value = properties.get(key, default)
    if not isinstance(value, int):
        raise TemplateError(f"{name}: {key} must be a whole number")
    return value


def _period_s(schedule: object) -> int:
    match = _RATE.fullmatch(schedule) if isinstance(schedule, str) else None
    if match is None:
        raise TemplateError(f"{schedule}: only rate(...) schedules are supported")
    return int(match[1]) * _SECONDS[match[2]]
