"""``doctor``: whether the deployment is as it should be."""

from collections.abc import Callable, Iterator
from functools import partial

import typer
from botocore.exceptions import BotoCoreError, ClientError

from infra.cli.deployment import ALIAS, Deployment
from infra.cli.errors import explain_aws
from infra.cli.output import Row
from infra.cli.session import Command, Session
from lib.clients import SecretUnreadable, error_code, read_secret
from lib.picture.gemini_key import UnusableKeyError, key_in
from lib.settings import DEFAULT_MODEL

__all__ = ["app"]

app = typer.Typer()


class _Problem(Exception):
    """A check that fails; the message says what is wrong and what to do."""


@app.command(
    "doctor",
    cls=Command,
    epilog="--json: checks: a list of {check, ok, text}; healthy: whether all are ok",
)
def doctor(session: Session) -> None:
    """Check the deployment, and say what to do about each problem.

    Checks the Gemini key with a request that costs nothing, and of a stack also the live versions,
    the alarms and their subscriptions, the last audit and the concurrency. Exits with 1 if there is
    a problem. Changes nothing.
    """
    problems = 0

    def rows() -> Iterator[Row]:
        nonlocal problems
        for name, check in _checks(session):
            row = _checked(name, check)
            problems += not row["ok"]
            yield row

    session.output.report("checks", rows(), _lines, more=lambda: {"healthy": problems == 0})
    if session.target.deployment is None:
        session.output.note("only a deployed stack has more to check: pass --stack-name")
    if problems:
        raise typer.Exit(1)


def _checks(session: Session) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "Gemini key", partial(_gemini_key, session)
    stack = session.target.deployment
    if stack is None:
        return
    for name, function in stack.resources("AWS::Lambda::Function").items():
        yield name, partial(_live_version, stack, function)
    for name, topic in stack.resources("AWS::SNS::Topic").items():
        yield name, partial(_subscriptions, stack, topic)
    yield "Alarms", partial(_alarms, stack)
    yield "Audit", partial(_audit, stack)
    yield "Concurrency", partial(_concurrency, stack)


def _checked(name: str, check: Callable[[], str]) -> Row:
    try:
        return {"check": name, "ok": True, "text": check()}
    except _Problem as problem:
        text = str(problem)
    except (ClientError, BotoCoreError) as fault:
        code = error_code(fault) if isinstance(fault, ClientError) else type(fault).__name__
        text = explain_aws(fault) or f"AWS did not answer ({code}); check your permissions"
    return {"check": name, "ok": False, "text": text}


def _lines(row: Row) -> Iterator[str]:
    yield f"{'ok' if row['ok'] else 'PROBLEM':8} {row['check']}: {row['text']}"


def _gemini_key(session: Session) -> str:
    secret = session.variables.get("GEMINI_API_KEY_SECRET", "")
    try:
        key = key_in(read_secret(session.secrets, secret))
    except SecretUnreadable as fault:
        raise _Problem(f"the secret {secret} cannot be read; put the key into it") from fault
    except UnusableKeyError as fault:
        raise _Problem(f"the secret {secret} holds no usable key; put the bare key in") from fault
    model = session.variables.get("GEMINI_MODEL") or DEFAULT_MODEL
    # It takes longer to load than most commands take to run.
    from infra.cli.google import refusal_of  # noqa: PLC0415

    refusal = refusal_of(key, model)
    if refusal is not None:
        raise _Problem(refusal)
    return f"Google accepts it, and has the model {model}"


def _live_version(stack: Deployment, function: str) -> str:
    found = stack.versions(function)
    if found.is_shifting:
        raise _Problem(f"traffic is shifting between versions; repeat this when {ALIAS} has moved")
    if found.live != found.newest:
        raise _Problem(
            f"{ALIAS} is version {found.live}, the newest is {found.newest}; deploy again, or "
            "finish the rollback with a deployment"
        )
    if not found.is_current:
        raise _Problem(f"version {found.live} has other settings than the stack; deploy again")
    return f"{ALIAS} is version {found.live}, the newest, with the stack's settings"


def _subscriptions(stack: Deployment, topic: str) -> str:
    protocols = stack.subscriptions(topic)
    if not protocols:
        raise _Problem(
            "no confirmed subscription: set its e-mail parameter and click the link in AWS's "
            f"mail, or subscribe your pager to {topic}"
        )
    return f"confirmed: {', '.join(sorted(protocols))}"


def _alarms(stack: Deployment) -> str:
    alarms = stack.resources("AWS::CloudWatch::Alarm")
    states = stack.alarm_states(list(alarms.values()))
    ringing = [name for name, physical in alarms.items() if states.get(physical) == "ALARM"]
    missing = alarms.keys() - {name for name, physical in alarms.items() if physical in states}
    if ringing:
        raise _Problem(f"{', '.join(ringing)} rings; look it up in the runbook")
    if missing:
        raise _Problem(f"{', '.join(sorted(missing))} does not exist any more; deploy again")
    return f"none of {len(alarms)} rings"


def _audit(stack: Deployment) -> str:
    alarms = {
        name: physical
        for name, physical in stack.resources("AWS::CloudWatch::Alarm").items()
        if name.startswith("Audit")
    }
    if not alarms:
        raise _Problem("the stack has no daily audit; upgrade it")
    states = stack.alarm_states(list(alarms.values()))
    for name, physical in alarms.items():
        state = states.get(physical)
        if state == "ALARM":
            raise _Problem(f"{name} rings; run `gemini-generate --stack-name {stack.name} audit`")
        if state != "OK":
            raise _Problem(f"{name} has no data yet: no daily audit has run; look again tomorrow")
    return "the last one found no drift"


def _concurrency(stack: Deployment) -> str:
    limit, unreserved = stack.concurrency()
    workers = int(stack.parameters.get("WorkerConcurrency") or 0)
    if unreserved <= workers:
        raise _Problem(
            f"{workers} workers can take all of the {unreserved} executions that are not reserved; "
            "raise Lambda's quota of concurrent executions, or lower WorkerConcurrency"
        )
    return f"{limit} executions at once; {unreserved - workers} are left beside {workers} workers"
