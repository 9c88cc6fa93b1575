"""The operator's command: organisations, their API keys and credits, and the audit.

It acts on the AWS account that the environment leads to. What was asked for goes to standard
output, a key alone on its line; all else goes to standard error. The exit status is 0 when it is
done, 1 when it is not or when an audit finds something, 2 when the words can't be understood.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from lib.api_keys import KeyRecord, KeyRing, KeyRingError, is_organisation
from lib.clients import dynamodb, secrets_manager
from lib.deadline import Deadline
from lib.ledger import GrantRejectedError, Ledger, LedgerUnreachable
from lib.ledger_rows import DEFAULT_RATE_LIMIT, Account, Grant, account_key
from lib.table import Table

__all__ = ["main"]

CALL_TAKES_S = 10.0
AUDIT_TAKES_S = 120.0
MAX_NOTE_CHARACTERS = 500
Arguments = argparse.Namespace


class _NotDoneError(Exception):
    """Its message is one sentence for the operator."""


@dataclass(frozen=True)
class _Rooms:
    table: Table
    ledger: Ledger
    keys: KeyRing

    def account(self, organisation: str) -> Account:
        item = self.table.get(account_key(organisation), Deadline(CALL_TAKES_S))
        if item is None:
            raise _NotDoneError(f"there is no organisation {organisation}; create it first")
        return Account.from_item(item)


Run = Callable[[_Rooms, Arguments], bool]


def main(argv: Sequence[str] | None = None) -> int:
    """Does what ``argv`` says (without the program's name); the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        with _rooms(arguments.table, arguments.prefix) as rooms:
            return 0 if arguments.run(rooms, arguments) else 1
    except (_NotDoneError, KeyRingError, GrantRejectedError) as reason:
        _tell(f"error: {reason}")
    except LedgerUnreachable as fault:
        _tell(f"error: {_why(fault)}")
    return 1


def _create_organisation(rooms: _Rooms, arguments: Arguments) -> bool:
    name, wanted = arguments.organisation, arguments.rate_limit
    rooms.ledger.create_account(name, Deadline(CALL_TAKES_S), wanted or DEFAULT_RATE_LIMIT)
    account = rooms.account(name)
    if wanted not in {None, account.rate_limit}:
        raise _NotDoneError(f"{name} exists already, with {account.rate_limit} requests a minute")
    print(f"{name}: {account.credits} credits, {account.rate_limit} requests a minute")
    return True


def _limit_organisation(rooms: _Rooms, arguments: Arguments) -> bool:
    name, limit = arguments.organisation, arguments.rate_limit
    if not rooms.ledger.set_rate_limit(name, limit, Deadline(CALL_TAKES_S)):
        raise _NotDoneError(f"there is no organisation {name}; create it first")
    print(f"{name}: {limit} requests a minute")
    return True


def _issue_key(rooms: _Rooms, arguments: Arguments) -> bool:
    # A key for a misspelt organisation would look like a key that has no credits.
    rooms.account(arguments.organisation)
    issued = rooms.keys.issue(arguments.organisation)
    print(issued.key)
    _tell(f"{issued.id} of {arguments.organisation}: the key is not shown again")
    return True


def _list_keys(rooms: _Rooms, arguments: Arguments) -> bool:
    for record in rooms.keys.list(arguments.organisation):
        print(_line(record))
    return True


def _rotate_keys(rooms: _Rooms, arguments: Arguments) -> bool:
    grace = timedelta(hours=arguments.grace_hours)
    issued = rooms.keys.rotate(arguments.organisation, grace=grace)
    if issued is None:
        _tell("rotated already, and left so; if nobody saw the key, revoke it and rotate again")
        return True
    print(issued.key)
    _tell(f"{issued.id} of {arguments.organisation}: the key is not shown again")
    return True


def _revoke_key(rooms: _Rooms, arguments: Arguments) -> bool:
    print(_line(rooms.keys.revoke(arguments.organisation, arguments.key_id)))
    return True


def _grant_credits(rooms: _Rooms, arguments: Arguments) -> bool:
    name, actor = arguments.organisation, os.environ.get("USER") or f"uid {os.getuid()}"
    grant = Grant(arguments.id, arguments.amount, arguments.note, actor, int(time.time()))
    rooms.ledger.grant(name, grant, Deadline(CALL_TAKES_S))
    print(f"{name}: {rooms.account(name).credits} credits, with grant {grant.grant_id}")
    return True


def _show_balance(rooms: _Rooms, arguments: Arguments) -> bool:
    print(rooms.account(arguments.organisation).credits)
    return True


def _audit(rooms: _Rooms, arguments: Arguments) -> bool:
    if arguments.organisation is None:
        names = rooms.ledger.organisations(Deadline(AUDIT_TAKES_S))
        _tell(f"{len(names)} organisations")
    else:
        # Nothing is wrong with an organisation that does not exist, and yet it is no good news.
        rooms.account(arguments.organisation)
        names = [arguments.organisation]
    # All of them, also after one that is not.
    return False not in [_is_healthy(rooms.ledger, name) for name in names]


def _is_healthy(ledger: Ledger, organisation: str) -> bool:
    try:
        report = ledger.audit(organisation, Deadline(AUDIT_TAKES_S))
    except LedgerUnreachable as fault:
        # One account that is never at rest must not keep the others from being audited.
        print(f"{organisation}: NOT AUDITED: {_why(fault)}")
        return False
    print(
        f"{organisation}: {'healthy' if report.healthy else 'UNHEALTHY'}: "
        f"granted {report.granted}, balance {report.credits}, drift {report.drift}; generations: "
        f"{report.reserved} reserved, {report.settled} settled, {report.refunded} refunded"
    )
    for finding in report.findings:
        print(f"  {finding}")
    return report.healthy


@contextmanager
def _rooms(table: str | None, prefix: str | None) -> Iterator[_Rooms]:
    if not table or not prefix:
        raise _NotDoneError("set CREDITS_TABLE and ORG_SECRET_PREFIX, or give --table and --prefix")
    try:
        database, secrets = dynamodb(), secrets_manager()
    except (BotoCoreError, ValueError) as fault:
        raise _NotDoneError(
            f"the AWS SDK can't start ({type(fault).__name__}); "
            "check AWS_DEFAULT_REGION, AWS_PROFILE and the like"
        ) from fault
    with closing(database), closing(secrets):
        credits_table = Table(database, table)
        yield _Rooms(credits_table, Ledger(credits_table), KeyRing(secrets, prefix))


def _why(fault: LedgerUnreachable) -> str:
    if not fault.hopeless:
        return "DynamoDB came to no decision in time; do it again, which is harmless"
    cause = fault.__cause__
    kind = (
        cause.response["Error"]["Code"] if isinstance(cause, ClientError) else type(cause).__name__
    )
    return f"DynamoDB can't do it ({kind}); check the table, the region and your permissions"


def _line(record: KeyRecord) -> str:
    times = {"created": record.created_at, "ends": record.expires_at, "revoked": record.revoked_at}
    shown = [
        f"{name} {moment.astimezone(UTC):%Y-%m-%dT%H:%MZ}"
        for name, moment in times.items()
        if moment is not None
    ]
    live = "live" if record.is_live(datetime.now(UTC)) else "dead"
    return "  ".join([record.id, live, *shown])


def _tell(sentence: str) -> None:
    print(sentence + ".", file=sys.stderr)


def _checked(
    fits: Callable[[str], object], wanted: str, kind: type[int | str] = str
) -> Callable[[str], int | str]:
    def check(text: str) -> int | str:
        if not fits(text):
            raise argparse.ArgumentTypeError(f"must be {wanted}")
        return kind(text)

    return check


_NAME = _checked(is_organisation, "1 to 63 of a-z, 0-9, _ and -, a letter or a digit first")
_ID = _checked(re.compile("[A-Za-z0-9._:-]{1,128}").fullmatch, "1 to 128 of a-z, A-Z, 0-9 and ._:-")
_NOTE = _checked(
    lambda text: text.isprintable() and 0 < len(text) <= MAX_NOTE_CHARACTERS, "one short line"
)
_AMOUNT = _checked(re.compile("-?[1-9][0-9]{0,8}").fullmatch, "a whole number, not 0", int)
_LIMIT = _checked(re.compile("[0-9]{1,5}").fullmatch, "a whole number, 0 to 99999", int)
_COUNT = _checked(re.compile("[1-9][0-9]{0,4}").fullmatch, "a whole number, 1 to 99999", int)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.cli", description=__doc__)
    parser.add_argument("--table", default=os.environ.get("CREDITS_TABLE"), help="CREDITS_TABLE")
    prefix = os.environ.get("ORG_SECRET_PREFIX")
    parser.add_argument("--prefix", default=prefix, help="ORG_SECRET_PREFIX")
    nouns = parser.add_subparsers(required=True, metavar="COMMAND")
    org = nouns.add_parser("org").add_subparsers(required=True)
    create = _command(org, "create", _create_organisation)
    create.add_argument("--rate-limit", type=_COUNT, metavar="N", help="requests a minute")
    limit = _command(org, "limit", _limit_organisation)
    limit.add_argument("rate_limit", type=_LIMIT, metavar="N", help="requests a minute; 0 for none")
    keys = nouns.add_parser("keys").add_subparsers(required=True)
    _command(keys, "issue", _issue_key)
    _command(keys, "list", _list_keys)
    rotate = _command(keys, "rotate", _rotate_keys)
    rotate.add_argument("--grace-hours", type=_COUNT, metavar="N", required=True)
    _command(keys, "revoke", _revoke_key).add_argument("key_id", metavar="KEY_ID")
    credits_ = nouns.add_parser("credits").add_subparsers(required=True)
    grant = _command(credits_, "grant", _grant_credits)
    grant.add_argument("amount", type=_AMOUNT, metavar="AMOUNT", help="negative takes credits")
    grant.add_argument("--id", type=_ID, required=True, help="repeating an id is harmless")
    grant.add_argument("--note", type=_NOTE, required=True, help="what the grant is for")
    _command(credits_, "balance", _show_balance)
    _command(nouns, "audit", _audit, nargs="?")
    return parser


def _command(group: Any, name: str, run: Run, nargs: str | None = None) -> argparse.ArgumentParser:
    leaf: argparse.ArgumentParser = group.add_parser(name)
    leaf.add_argument("organisation", type=_NAME, metavar="ORG", nargs=nargs)
    leaf.set_defaults(run=run)
    return leaf


if __name__ == "__main__":
    sys.exit(main())
