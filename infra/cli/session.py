"""One run of a command: the target's ledger, accounts and keys, and the output."""

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import typer
from botocore.exceptions import BotoCoreError
from typer.core import TyperCommand

from infra.cli.deployment import Deployment, client_of
from infra.cli.errors import CommandFailed, explain_client
from infra.cli.output import Output
from infra.cli.target import Target, target_of
from lib.clients import dynamodb, kms, secrets_manager
from lib.deadline import Deadline
from lib.keys.key_ring import KeyRing
from lib.ledger.accounts import Accounts
from lib.ledger.ledger import Ledger
from lib.ledger.rows import Account
from lib.ledger.table import Table
from lib.picture.storage import Images, ObjectStore
from lib.receipts.signer import Signer
from lib.settings import DEFAULT_SERVICE, MissingSettingError, Settings

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

__all__ = ["CALL_WITHIN_S", "SCAN_WITHIN_S", "Command", "OfflineCommand", "Session"]

CALL_WITHIN_S = 10.0
"""One call of the ledger, with its retries."""
SCAN_WITHIN_S = 3600.0
"""Reading a table of millions of rows; Ctrl-C ends it sooner."""


class Session(typer.Context):
    """A command's context, with access to its target; each client is built on first use."""

    output: Output
    target: Target

    @property
    def variables(self) -> Mapping[str, str]:
        """The environment variables of the service's functions at the target."""
        return self.target.variables

    @cached_property
    def actor(self) -> str:
        """Who runs the command: the ARN of AWS's caller, or the user of the local stack."""
        if self.target.is_local:
            return os.environ.get("USER") or f"uid {os.getuid()}"
        arn: str = client_of("sts", self.target.region).get_caller_identity()["Arn"]
        return arn

    @property
    def deployment(self) -> Deployment:
        """The stack.

        Raises:
            CommandFailed: the options name none.
        """
        if self.target.deployment is None:
            raise CommandFailed("this needs a deployed stack; pass --stack-name")
        return self.target.deployment

    @cached_property
    def ledger(self) -> Ledger:
        """The credits table, as requests see it."""
        return Ledger(self.table)

    @cached_property
    def accounts(self) -> Accounts:
        """The organisations' accounts, grants and audit."""
        return Accounts(self.table)

    @cached_property
    def keys(self) -> KeyRing:
        """The organisations' API keys."""
        return KeyRing(self.secrets, self.variables["ORG_SECRET_PREFIX"])

    @cached_property
    def secrets(self) -> "SecretsManagerClient":
        """Secrets Manager."""
        client: SecretsManagerClient = self._client(secrets_manager)
        return client

    @cached_property
    def settings(self) -> Settings:
        """The settings of the service's functions at the target."""
        try:
            return Settings.from_environment(self.variables)
        except MissingSettingError as fault:
            raise CommandFailed(f"{fault}; set it, or pass --stack-name or --local") from fault

    @cached_property
    def images(self) -> Images:
        """The images in the bucket."""
        settings = self.settings
        try:
            store = ObjectStore(settings, self.secrets)
        except (BotoCoreError, ValueError) as fault:
            raise CommandFailed(explain_client(fault)) from fault
        return Images(store, settings.image_bucket, settings.image_base_url)

    @cached_property
    def signer(self) -> Signer:
        """Signs as the deployed service does, with the operator's own permissions.

        Raises:
            CommandFailed: the target issues no receipts.
        """
        key_id = self.variables.get("RECEIPT_KEY")
        if not key_id:
            raise CommandFailed(
                "there is no key to sign with; set RECEIPT_KEY, or deploy with ReceiptKey A or B"
            )
        return Signer(self._client(kms), key_id, self.variables.get("RETIRED_RECEIPT_KEYS"))

    @property
    def issuer(self) -> str:
        """The issuer that receipts state."""
        return self.variables.get("POWERTOOLS_SERVICE_NAME") or DEFAULT_SERVICE

    def account(self, organisation: str) -> Account:
        """The organisation's account.

        Raises:
            CommandFailed: it has none.
            LedgerUnreachable
        """
        account = self.accounts.account(organisation, Deadline(CALL_WITHIN_S))
        if account is None:
            raise CommandFailed(f"there is no organisation {organisation}; create it first")
        return account

    @cached_property
    def table(self) -> Table:
        """The credits table, for what the ledger does not do."""
        return Table(self._client(dynamodb), self.variables["CREDITS_TABLE"])

    def _client(self, build: Callable[[str | None], Any]) -> Any:
        try:
            client = build(self.target.region)
        except (BotoCoreError, ValueError) as fault:
            raise CommandFailed(explain_client(fault)) from fault
        return self.with_resource(closing(client))


class Command(TyperCommand):
    """A command that accepts the root's options too: ``--json`` may precede or follow its name."""

    context_class = Session
    needs_target: ClassVar[bool] = True

    def get_params(self, ctx: Any) -> list[Any]:
        """Its own parameters, the root's, and ``--help``."""
        *own, help_option = super().get_params(ctx)
        return [*own, *ctx.find_root().command.params, help_option]

    def invoke(self, ctx: Any) -> None:
        """Resolves the target, then runs the command's function."""
        root = ctx.find_root()
        names = [option.name for option in root.command.params]
        given = {name: ctx.params.pop(name) or root.params[name] for name in names}
        given.pop("version")
        as_json = given.pop("as_json")
        if self.needs_target:
            ctx.target = ctx.with_resource(target_of(**given))
            ctx.output = Output(ctx.target.title, as_json=as_json)
        else:
            ctx.output = Output(None, as_json=as_json)
        super().invoke(ctx)


class OfflineCommand(Command):
    """A command that works on files alone; options that name a target do nothing."""

    needs_target = False
