"""Where the command acts: a deployed stack, the local stack, or what the environment names.

Each comes down to the same variables that the service's own functions have, as in
``lib.settings``.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.cli.faults import NotDoneError, why_no_start, why_refused

__all__ = ["Where", "reached"]

LOCAL_FILE = Path(".local", "environment.json")
MAX_FILE_BYTES = 64 * 1024
CONNECT_S = 2
READ_S = 5
# Whoever asks for the local stack may have an AWS account too: nothing of that gets in.
_FOREIGN = "AWS_"
_OUTPUTS = {
    "TableName": "CREDITS_TABLE",
    "OrgSecretPrefix": "ORG_SECRET_PREFIX",
    "ImageBase": "IMAGE_BASE_URL",
    "ImageBucketName": "IMAGE_BUCKET",
    "GeminiApiKeySecret": "GEMINI_API_KEY_SECRET",
}
# What a stack that keeps its images in R2 was told, and so has no output for.
_PARAMETERS = {
    "R2Bucket": "IMAGE_BUCKET",
    "StorageEndpointUrl": "STORAGE_ENDPOINT_URL",
    "StorageCredentialsSecret": "STORAGE_CREDENTIALS_SECRET",
}


@dataclass(frozen=True, slots=True)
class Where:
    """The place as the operator's words name it; without words it is the environment.

    ``as_json`` says in which form the answer goes out.
    """

    stack_name: str | None = None
    table: str | None = None
    prefix: str | None = None
    region: str | None = None
    local: bool = False
    as_json: bool = False

    def or_else(self, earlier: "Where") -> "Where":
        """The same place, with what ``earlier`` says where this one says nothing."""
        return Where(
            self.stack_name or earlier.stack_name,
            self.table or earlier.table,
            self.prefix or earlier.prefix,
            self.region or earlier.region,
            self.local or earlier.local,
            self.as_json or earlier.as_json,
        )


@contextmanager
def reached(where: Where) -> Iterator[Mapping[str, str]]:
    """The service's variables at that place; meanwhile AWS's SDK leads to it.

    Raises:
        NotDoneError: there is no such place, or it can't be reached.
    """
    if where.local:
        with _environment(_local_variables()):
            yield _named(dict(os.environ), where)
        return
    variables = dict(os.environ)
    if where.region:
        variables["AWS_REGION"] = where.region
    if where.stack_name:
        variables |= _stack_variables(where.stack_name, variables.get("AWS_REGION") or None)
    yield _named(variables, where)


def _named(variables: dict[str, str], where: Where) -> Mapping[str, str]:
    """The variables, with the table and the prefix that the operator's words name."""
    if where.table:
        variables["CREDITS_TABLE"] = where.table
    if where.prefix:
        variables["ORG_SECRET_PREFIX"] = where.prefix
    if not variables.get("CREDITS_TABLE") or not variables.get("ORG_SECRET_PREFIX"):
        raise NotDoneError(
            "set CREDITS_TABLE and ORG_SECRET_PREFIX, or give --table and --prefix, or give "
            "--stack-name or --local"
        )
    return variables


def _stack_variables(name: str, region: str | None) -> dict[str, str]:
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    try:
        client = boto3.client("cloudformation", region_name=region, config=config)
    except (BotoCoreError, ValueError) as fault:
        raise NotDoneError(why_no_start(fault)) from fault
    with closing(client):
        try:
            stack: Any = client.describe_stacks(StackName=name)["Stacks"][0]
        except (ClientError, BotoCoreError, LookupError) as fault:
            raise NotDoneError(_why_no_stack(name, client.meta.region_name, fault)) from fault
    given = {
        each["ParameterKey"]: each.get("ParameterValue", "") for each in stack.get("Parameters", ())
    }
    outputs = {each["OutputKey"]: each.get("OutputValue", "") for each in stack.get("Outputs", ())}
    # All of them, so that nothing of another deployment stays behind from the environment.
    variables = dict.fromkeys([*_OUTPUTS.values(), *_PARAMETERS.values()], "")
    for values, names in ((given, _PARAMETERS), (outputs, _OUTPUTS)):
        variables |= {names[key]: value for key, value in values.items() if key in names}
    if not variables["CREDITS_TABLE"] or not variables["ORG_SECRET_PREFIX"]:
        raise NotDoneError(
            f"the stack {name} has no outputs TableName and OrgSecretPrefix; name a stack that was "
            "deployed from template.yaml, after its deployment has ended"
        )
    return variables


def _why_no_stack(name: str, region: str, fault: Exception) -> str:
    code = fault.response["Error"]["Code"] if isinstance(fault, ClientError) else ""
    if code == "ValidationError" or isinstance(fault, LookupError):
        return (
            f"there is no stack {name} in {region}; list them with `aws cloudformation "
            "list-stacks`, or give --region"
        )
    return why_refused(fault) or (
        f"CloudFormation did not describe the stack {name} ({code or type(fault).__name__}); "
        "check its name, the region and your permissions"
    )


def _local_variables() -> dict[str, str]:
    try:
        with LOCAL_FILE.open("rb") as stream:
            content = json.loads(stream.read(MAX_FILE_BYTES))
        variables = {str(name): str(value) for name, value in content.items()}
    except FileNotFoundError as fault:
        raise NotDoneError(
            f"there is no {LOCAL_FILE} here; start the local stack with `make run`, or go to the "
            "directory where it was started"
        ) from fault
    except (OSError, ValueError, AttributeError) as fault:
        raise NotDoneError(f"{LOCAL_FILE} can't be read; end `make run` and start it again") from (
            fault
        )
    _check_alive(variables.get("AWS_ENDPOINT_URL_DYNAMODB", ""))
    return variables


def _check_alive(url: str) -> None:
    """A stack that was killed leaves its file behind, and nobody on its port."""
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=CONNECT_S).close()
    except (OSError, TypeError, ValueError) as fault:
        raise NotDoneError("the local stack has ended; start it again with `make run`") from fault


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Makes ``os.environ`` that of the local stack, and afterwards what it was before."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(_FOREIGN):
            del os.environ[name]
    os.environ.update(variables)
    os.environ.update(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
