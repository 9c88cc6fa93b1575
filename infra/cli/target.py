"""The target of a command: a deployed stack, the local stack, or what the environment names.

Each resolves to the environment variables of the service's own functions (``lib.settings``).
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import typer
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.cli.errors import CommandFailed, explain_aws, explain_client
from lib.clients import error_code

__all__ = ["variables_of"]

LOCAL_FILE = Path(".local", "environment.json")
MAX_FILE_BYTES = 64 * 1024
CONNECT_S = 2
READ_S = 5
_OUTPUTS = {
    "TableName": "CREDITS_TABLE",
    "OrgSecretPrefix": "ORG_SECRET_PREFIX",
    "ImageBase": "IMAGE_BASE_URL",
    "ImageBucketName": "IMAGE_BUCKET",
    "GeminiApiKeySecret": "GEMINI_API_KEY_SECRET",
}
# A stack that keeps its images in R2 has these as parameters, not as outputs.
_PARAMETERS = {
    "R2Bucket": "IMAGE_BUCKET",
    "StorageEndpointUrl": "STORAGE_ENDPOINT_URL",
    "StorageCredentialsSecret": "STORAGE_CREDENTIALS_SECRET",
}


@contextmanager
def variables_of(
    *,
    stack_name: str | None,
    local: bool,
    table: str | None,
    prefix: str | None,
    region: str | None,
) -> Iterator[Mapping[str, str]]:
    """The functions' environment variables at the target; until it exits, the SDK calls that AWS.

    Raises:
        typer.BadParameter: the options name two targets.
        CommandFailed: the target does not exist or does not respond.
    """
    if local and stack_name:
        raise typer.BadParameter("--local and --stack-name exclude each other")
    with _environment(_local_variables()) if local else nullcontext():
        variables = dict(os.environ)
        if region and not local:
            variables["AWS_REGION"] = region
        if stack_name:
            variables |= _stack_variables(stack_name, variables.get("AWS_REGION") or None)
        variables["CREDITS_TABLE"] = table or variables.get("CREDITS_TABLE", "")
        variables["ORG_SECRET_PREFIX"] = prefix or variables.get("ORG_SECRET_PREFIX", "")
        if not variables["CREDITS_TABLE"] or not variables["ORG_SECRET_PREFIX"]:
            raise CommandFailed(
                "set CREDITS_TABLE and ORG_SECRET_PREFIX, or pass --table and --prefix, "
                "--stack-name or --local"
            )
        yield variables


def _stack_variables(name: str, region: str | None) -> dict[str, str]:
    stack = _described(name, region)
    parameters = {
        each["ParameterKey"]: each.get("ParameterValue", "") for each in stack.get("Parameters", ())
    }
    outputs = {each["OutputKey"]: each.get("OutputValue", "") for each in stack.get("Outputs", ())}
    # Every variable is set, so that none of another deployment is left from the environment.
    variables = dict.fromkeys([*_OUTPUTS.values(), *_PARAMETERS.values()], "")
    for values, names in ((parameters, _PARAMETERS), (outputs, _OUTPUTS)):
        variables |= {names[key]: value for key, value in values.items() if key in names}
    if not variables["CREDITS_TABLE"] or not variables["ORG_SECRET_PREFIX"]:
        raise CommandFailed(
            f"the stack {name} has no outputs TableName and OrgSecretPrefix; name a stack that was "
            "deployed from template.yaml and whose deployment has finished"
        )
    return variables


def _described(name: str, region: str | None) -> Any:
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    try:
        client = boto3.client("cloudformation", region_name=region, config=config)
    except (BotoCoreError, ValueError) as fault:
        raise CommandFailed(explain_client(fault)) from fault
    with closing(client):
        try:
            return client.describe_stacks(StackName=name)["Stacks"][0]
        except (ClientError, BotoCoreError, LookupError) as fault:
            reason = _why_not_described(name, client.meta.region_name, fault)
            raise CommandFailed(reason) from fault


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


def _local_variables() -> dict[str, str]:
    try:
        with LOCAL_FILE.open("rb") as stream:
            content = json.loads(stream.read(MAX_FILE_BYTES))
        variables = {str(name): str(value) for name, value in content.items()}
    except FileNotFoundError as fault:
        raise CommandFailed(
            f"there is no {LOCAL_FILE} here; start the local stack with `make run`, or change to "
            "the directory where it was started"
        ) from fault
    except (OSError, ValueError, AttributeError) as fault:
        raise CommandFailed(f"{LOCAL_FILE} is unreadable; restart `make run`") from fault
    _check_alive(variables.get("AWS_ENDPOINT_URL_DYNAMODB", ""))
    return variables


def _check_alive(url: str) -> None:
    """A local stack that was killed leaves its file behind, but does not listen on its port."""
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=CONNECT_S).close()
    except (OSError, TypeError, ValueError) as fault:
        raise CommandFailed("the local stack has ended; start it again with `make run`") from fault


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Replaces the operator's own AWS account in ``os.environ``, and restores it at the end."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("AWS_"):
            del os.environ[name]
    os.environ.update(variables)
    os.environ.update(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
