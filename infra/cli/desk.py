"""What a command works with: the ledger and the keys of one place, and the screen."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypeVar

from botocore.exceptions import BotoCoreError

from infra.cli.faults import NotDoneError, why_no_start
from infra.cli.places import Where, reached
from infra.cli.screen import Screen
from lib.clients import dynamodb, secrets_manager
from lib.deadline import Deadline
from lib.keys.key_ring import KeyRing
from lib.ledger.accounts import Accounts
from lib.ledger.ledger import Ledger
from lib.ledger.rows import Account
from lib.ledger.table import Table

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

__all__ = ["CALL_TAKES_S", "WHOLE_TABLE_TAKES_S", "Desk", "desk_at"]

CALL_TAKES_S = 10.0
"""One call of the ledger, with its retries."""
WHOLE_TABLE_TAKES_S = 3600.0
"""Reading a table of millions of rows; a person who won't wait has Ctrl-C."""


class _Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)


class Desk:
    """The rooms of one place, each opened when it is first used.

    ``variables`` are those that the service's functions have there.
    """

    def __init__(self, screen: Screen, variables: Mapping[str, str], clients: ExitStack) -> None:
        """``clients`` closes those that were made."""
        self.screen = screen
        self.variables = variables
        self._clients = clients
        self._region = variables.get("AWS_REGION") or None

    @cached_property
    def ledger(self) -> Ledger:
        """The credits table."""
        database = self.client(dynamodb)
        return Ledger(Table(database, self.variables["CREDITS_TABLE"]))

    @cached_property
    def accounts(self) -> Accounts:
        """The organisations' accounts."""
        return Accounts(Table(self.client(dynamodb), self.variables["CREDITS_TABLE"]))

    @cached_property
    def keys(self) -> KeyRing:
        """The organisations' keys."""
        return KeyRing(self.secrets, self.variables["ORG_SECRET_PREFIX"])

    @cached_property
    def secrets(self) -> "SecretsManagerClient":
        """Where the keys are, and what else is secret."""
        return self.client(secrets_manager)

    def client(self, make: Callable[[str | None], C]) -> C:
        """A client of AWS, until the desk is left.

        Raises:
            NotDoneError: the environment leads to none.
        """
        try:
            return self._clients.enter_context(closing(make(self._region)))
        except (BotoCoreError, ValueError) as fault:
            raise NotDoneError(why_no_start(fault)) from fault

    def account(self, organisation: str) -> Account:
        """The organisation's account.

        Raises:
            NotDoneError: it has none.
            LedgerUnreachable
        """
        account = self.ledger.account(organisation, Deadline(CALL_TAKES_S))
        if account is None:
            raise NotDoneError(f"there is no organisation {organisation}; create it first")
        return account


@contextmanager
def desk_at(where: Where, screen: Screen) -> Iterator[Desk]:
    """The desk at that place.

    Raises:
        NotDoneError: there is no such place, or it can't be reached.
    """
    with reached(where) as variables, ExitStack() as clients:
        yield Desk(screen, variables, clients)
