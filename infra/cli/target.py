"""The target of a command: a deployed stack, the local stack, or what the environment names.

Each resolves to the environment variables of the service's own functions (``lib.settings``).
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import typer

from infra.cli.deployment import Deployment
from infra.cli.errors import CommandFailed
from infra.cli.local_stack import local_environment, local_variables

__all__ = ["Target", "target_of"]

_OUTPUTS = {
    "TableName": "CREDITS_TABLE",
    "OrgSecretPrefix": "ORG_SECRET_PREFIX",
    "ImageBase": "IMAGE_BASE_URL",
    "ImageBucketName": "IMAGE_BUCKET",
    "ImageDistributionId": "IMAGE_DISTRIBUTION_ID",
    "GeminiApiKeySecret": "GEMINI_API_KEY_SECRET",
    "ReceiptKeyId": "RECEIPT_KEY",
}
# What a stack has as parameters, not as outputs.
_PARAMETERS = {
    "R2Bucket": "IMAGE_BUCKET",
    "StorageEndpointUrl": "STORAGE_ENDPOINT_URL",
    "StorageCredentialsSecret": "STORAGE_CREDENTIALS_SECRET",
    "GeminiModel": "GEMINI_MODEL",
    "RetiredReceiptKeys": "RETIRED_RECEIPT_KEYS",
}


@dataclass(frozen=True, slots=True)
class Target:
    """What a command acts on; ``title`` names it in questions and answers.

    ``deployment`` is None unless a stack was named.
    """

    title: str
    variables: Mapping[str, str]
    deployment: Deployment | None = None
    is_local: bool = False

    @property
    def region(self) -> str | None:
        """The AWS region; None for the SDK's own choice."""
        return self.variables.get("AWS_REGION") or None


@contextmanager
def target_of(
    *,
    stack_name: str | None,
    local: bool,
    table: str | None,
    prefix: str | None,
    region: str | None,
) -> Iterator[Target]:
    """The target that the options name; until it exits, the SDK calls that AWS.

    Raises:
        typer.BadParameter: the options name two targets.
        CommandFailed: the target does not exist or does not respond.
    """
    if local and stack_name:
        raise typer.BadParameter("--local and --stack-name exclude each other")
    with local_environment(local_variables()) if local else nullcontext():
        variables = dict(os.environ)
        if region and not local:
            variables["AWS_REGION"] = region
        deployment = Deployment(stack_name, variables.get("AWS_REGION")) if stack_name else None
        if deployment is not None:
            variables |= _stack_variables(deployment)
        variables["CREDITS_TABLE"] = table or variables.get("CREDITS_TABLE", "")
        variables["ORG_SECRET_PREFIX"] = prefix or variables.get("ORG_SECRET_PREFIX", "")
        if not variables["CREDITS_TABLE"] or not variables["ORG_SECRET_PREFIX"]:
            raise CommandFailed(
                "set CREDITS_TABLE and ORG_SECRET_PREFIX, or pass --table and --prefix, "
                "--stack-name or --local"
            )
        title = f"table {variables['CREDITS_TABLE']}"
        if not table and (local or stack_name):
            title = "the local stack" if local else f"stack {stack_name}"
        yield Target(title, variables, deployment, is_local=local)


def _stack_variables(stack: Deployment) -> dict[str, str]:
    # Every variable is set, so that none of another deployment is left from the environment.
    variables = dict.fromkeys([*_OUTPUTS.values(), *_PARAMETERS.values()], "")
    for values, names in ((stack.parameters, _PARAMETERS), (stack.outputs, _OUTPUTS)):
        variables |= {names[key]: value for key, value in values.items() if key in names}
    # As template.yaml names the service; receipts state it as their issuer.
    variables["POWERTOOLS_SERVICE_NAME"] = stack.name
    if not variables["CREDITS_TABLE"] or not variables["ORG_SECRET_PREFIX"]:
        raise CommandFailed(
            f"the stack {stack.name} has no outputs TableName and OrgSecretPrefix; name a stack "
            "that was deployed from template.yaml and whose deployment has finished"
        )
    return variables
