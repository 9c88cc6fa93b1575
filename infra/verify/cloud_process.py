"""MiniStack, with what it lacks of CloudFormation, as a process of its own.

    python cloud_process.py PORT TLS_PORT CERTIFICATE

It runs in MiniStack's own environment; ``infra/verify/cloud.py`` starts it. Every difference from
MiniStack as released is in this file:

- ``AWS::CodeDeploy::*``: unknown to it. A stub keeps the names; ``live`` moves at once.
- Alarms on an expression: rejected by it. The alarm watches the first metric of the expression.
- Change sets: it compares resources whose condition is false. On AWS they are not there.
- ``AWS::LanguageExtensions``: it leaves ``Ref`` to a parameter as it is. On AWS the transform
  "resolves parameters to literal values during processing", before SAM hashes the functions.
- ``AWS::Lambda::EventSourceMapping``: it needs ``MaximumConcurrency`` as a number. CloudFormation
  gives a property the type of its schema; every parameter is text.
- ``AWS::SecretsManager::Secret``: its ``Ref`` is the name. On AWS it is the ARN, which roles name.
- ``AWS::ApiGatewayV2::Api``: it ignores ``Body``, in which SAM writes the routes.
- Functions run on the Python that it runs on. On Lambda they run on a bare Python 3.13.
"""

import asyncio
import os
import sys
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config
from ministack import app
from ministack.core import lambda_runtime
from ministack.services import apigateway
from ministack.services.cloudformation import changesets, language_extensions, provisioners

_KINDS = provisioners._RESOURCE_HANDLERS
_STUBBED = ("AWS::CodeDeploy::Application", "AWS::CodeDeploy::DeploymentGroup")
_METHODS = {"x-amazon-apigateway-any-method": "ANY"}


def stub_codedeploy() -> None:
    """Creates, updates and deletes nothing, under CloudFormation's usual names."""
    for kind in _STUBBED:
        _KINDS[kind] = {
            "create": lambda name, _properties, stack: (f"{stack}-{name}", {}),
            "update": lambda identity, _before, _after, _stack: (identity, {}),
            "delete": lambda _identity, _properties: None,
        }


def accept_metric_math() -> None:
    """Keeps an alarm's name, threshold and actions."""
    record = provisioners._cw_metric_alarm_record

    def with_one_metric(name: str, properties: dict[str, Any]) -> Any:
        stats = [
            each["MetricStat"] for each in properties.get("Metrics", ()) if "MetricStat" in each
        ]
        if not stats:
            return record(name, properties)
        first = stats[0]
        others = {key: value for key, value in properties.items() if key != "Metrics"}
        one = {"Statistic": first["Stat"], "Period": first["Period"], **first["Metric"]}
        return record(name, others | one)

    provisioners._cw_metric_alarm_record = with_one_metric


def resolve_parameters() -> None:
    """Replaces ``Ref`` to a parameter by its value."""
    expand = language_extensions._expand

    def resolved(node: Any, bindings: Any, context: Any, ids: bool = False) -> Any:  # noqa: FBT001, FBT002 - the signature is MiniStack's
        if isinstance(node, dict) and node.keys() == {"Ref"} and node["Ref"] in context.parameters:
            return context.parameters[node["Ref"]]
        return expand(node, bindings, context, ids)

    language_extensions._expand = resolved


def read_concurrency_as_a_number() -> None:
    """Turns the concurrency of a queue's consumers into a number."""
    kind = _KINDS["AWS::Lambda::EventSourceMapping"]
    create, update = kind["create"], kind["update"]

    def typed(properties: Any) -> Any:
        scaling = properties.get("ScalingConfig")
        if not scaling:
            return properties
        return {
            **properties,
            "ScalingConfig": {"MaximumConcurrency": int(scaling["MaximumConcurrency"])},
        }

    kind["create"] = lambda name, properties, stack: create(name, typed(properties), stack)
    kind["update"] = lambda identity, before, after, *stack: update(
        identity, typed(before), typed(after), *stack
    )


def compare_what_is_created() -> None:
    """Leaves resources whose condition is false out of change sets."""
    resolve = changesets._resolve_props_for_diff

    def created(template: Any, parameters: Any, *stack: str) -> Any:
        resolved = resolve(template, parameters, *stack)
        holds = changesets._evaluate_conditions(template, parameters)
        resources = resolved.get("Resources", {}).items()
        there = {name: each for name, each in resources if holds.get(each.get("Condition"), True)}
        return {**resolved, "Resources": there}

    changesets._resolve_props_for_diff = created


def refer_to_secrets_by_arn() -> None:
    """Makes the ARN of a secret what ``Ref`` returns."""
    kind = _KINDS["AWS::SecretsManager::Secret"]
    create, delete = kind["create"], kind["delete"]

    def created(name: str, properties: Any, stack: str) -> Any:
        _, attributes = create(name, properties, stack)
        return attributes["Arn"], attributes

    def deleted(identity: str, properties: Any) -> None:
        # An ARN ends in the name, a hyphen and six characters.
        delete(identity.rpartition(":")[2][:-7], properties)

    kind["create"], kind["delete"] = created, deleted


def import_routes() -> None:
    """Gives an API the routes of its OpenAPI document."""
    kind = _KINDS["AWS::ApiGatewayV2::Api"]
    create, update = kind["create"], kind["update"]

    def created(name: str, properties: Any, stack: str) -> Any:
        identity, attributes = create(name, properties, stack)
        _add_routes(identity, properties)
        return identity, attributes

    def updated(identity: str, before: Any, after: Any, stack: str, name: str) -> Any:
        found = update(identity, before, after, stack, name)
        _add_routes(found[0], after)
        return found

    kind["create"], kind["update"] = created, updated


def _add_routes(api: str, properties: Any) -> None:
    routes: dict[str, Any] = {}
    integrations: dict[str, Any] = {}
    for path, methods in properties.get("Body", {}).get("paths", {}).items():
        for verb, operation in methods.items():
            identity = f"r{len(routes)}"
            method = _METHODS.get(verb, verb.upper())
            key = path if path == "$default" else f"{method} {path}"
            integrations[identity] = {
                "integrationId": identity,
                "integrationType": "AWS_PROXY",
                "integrationUri": operation["x-amazon-apigateway-integration"]["uri"],
                "payloadFormatVersion": "2.0",
            }
            routes[identity] = {
                "routeId": identity,
                "routeKey": key,
                "target": f"integrations/{identity}",
            }
    apigateway._routes[api], apigateway._integrations[api] = routes, integrations


def run_functions_on(python: str) -> None:
    """Runs Python functions on this interpreter."""
    script = lambda_runtime._PYTHON_WORKER_SCRIPT
    lambda_runtime._detect_runtime_binary = lambda _runtime: (python, script)


def main(port: str, tls_port: str, certificate: str) -> None:
    """Serves until the process is killed."""
    stub_codedeploy()
    accept_metric_math()
    resolve_parameters()
    read_concurrency_as_a_number()
    compare_what_is_created()
    refer_to_secrets_by_arn()
    import_routes()
    run_functions_on(os.environ["FUNCTIONS_PYTHON"])
    config = Config()
    config.insecure_bind = [f"127.0.0.1:{port}"]
    config.bind = [f"127.0.0.1:{tls_port}"]
    config.certfile = config.keyfile = certificate
    asyncio.run(serve(app.app, config))


if __name__ == "__main__":
    main(*sys.argv[1:])
