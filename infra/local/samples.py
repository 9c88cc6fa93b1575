"""The accounts of the sample events in ``infra/events``, and how other processes find the stack.

The events carry fixed API keys. Those work only on a local stack with the stand-in: a deployment
issues random keys and can never issue these.
"""

import hashlib
import json
import os
import platform
import time
from typing import Any

from infra.local.stack import LocalStack
from infra.template import DEFAULT_ROUTE, PROJECT_ROOT, Route, Template
from lib.deadline import Deadline
from lib.ledger.accounts import Accounts
from lib.ledger.rows import Grant
from lib.ledger.table import Table

__all__ = [
    "SAMPLE_CREDITS",
    "artifact",
    "environment",
    "open_sample_accounts",
    "sam_template",
    "sam_variables",
]

SAMPLE_CREDITS = 100
# An organisation with credits, and one without.
_KEYS = {
    "sample": "gg_sample_ForTheLocalStackAndNowhereElse00000000000004X0ZKt",
    "sample-empty": "gg_sample-empty_ForTheLocalStackAndNowhereElse00000000000004VIHIp",
}
_SETUP_S = 10.0
_OF_GOOGLE = ("GOOGLE_GEMINI_BASE_URL",)


def open_sample_accounts(stack: LocalStack) -> None:
    """Opens the accounts of the sample events and stores their keys."""
    deadline = Deadline(_SETUP_S)
    accounts = Accounts(Table(stack.aws.client("dynamodb"), stack.table))
    for organisation, key in _KEYS.items():
        accounts.create(organisation, deadline)
        record = {
            "id": "key_sample",
            "sha256": hashlib.sha256(key.encode()).hexdigest(),
            "createdAt": "2026-01-01T00:00:00Z",
            "expiresAt": None,
            "revokedAt": None,
        }
        name = os.environ["ORG_SECRET_PREFIX"] + organisation
        stack.aws.create_secret(name, json.dumps({"keys": [record]}))
    grant = Grant("sample", SAMPLE_CREDITS, "For sam local", "local stack", int(time.time()))
    accounts.grant("sample", grant, deadline)


def environment(stack: LocalStack) -> str:
    """The variables, as a JSON object, that point another process of this machine at the stack."""
    variables = _settings() | dict(stack.aws.environment())
    if stack.stand_in is not None:
        variables |= {name: os.environ[name] for name in _OF_GOOGLE}
    return json.dumps(variables, indent=2) + "\n"


def artifact() -> str:
    """The directory that ``make build`` fills for this machine's processor."""
    return str(PROJECT_ROOT / ".build" / "artifact" / _architecture())


def sam_template(stack: LocalStack) -> str:
    """A template with only the built functions and their routes, for ``sam local``.

    SAM gives a function only the variables that its template declares, which are those of
    ``sam_variables``. Source: samcli/local/lambdafn/env_vars.py.
    """
    names = _settings() | _addresses(stack)
    resources: dict[str, Any] = {
        function.name: {
            "Type": "AWS::Serverless::Function",
            "Properties": {
                "Runtime": "python3.13",
                "Architectures": [_architecture()],
                "CodeUri": artifact(),
                "Handler": function.handler,
                "Timeout": function.timeout_s,
                "MemorySize": function.memory_mb,
                "Environment": {"Variables": dict.fromkeys(names, "")},
                "Events": {
                    f"Route{number}": {"Type": "HttpApi", "Properties": _event(route)}
                    for number, route in enumerate(function.routes)
                },
            },
        }
        for function in Template.from_file().functions()
    }
    transform = "AWS::Serverless-2016-10-31"
    return json.dumps({"Transform": transform, "Resources": resources}, indent=2) + "\n"


def sam_variables(stack: LocalStack, host: str) -> str:
    """The variables that point a container to the stack, whose servers it reaches at ``host``.

    For ``sam local --env-vars``: alone these go before the variables of the user's shell.
    """
    addresses = {
        name: value.replace("127.0.0.1", host) for name, value in _addresses(stack).items()
    }
    return json.dumps({"Parameters": _settings() | addresses}, indent=2) + "\n"


def _settings() -> dict[str, str]:
    functions = Template.from_file().functions()
    return {name: os.environ[name] for each in functions for name in each.environment}


def _addresses(stack: LocalStack) -> dict[str, str]:
    return {name: os.environ[name] for name in (*stack.aws.environment(), *_OF_GOOGLE)}


def _event(route: Route) -> dict[str, str]:
    if route == DEFAULT_ROUTE:
        return {}
    return {"Method": route.method, "Path": route.path}


def _architecture() -> str:
    return "arm64" if platform.machine() in {"arm64", "aarch64"} else "x86_64"
