"""The other side of a benchmark, in a process of its own: DynamoDB Local, moto's S3, the stand-in.

    python -m infra.bench.servers

What the servers do must not count as ours. It writes one line of JSON, ``Reach``'s fields, and ends
when its standard input does. The model answers at once with the picture whose name the prompt is,
encoded before anything is measured; to other prompts it answers as the stand-in always does.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO

from infra.bench.png_encoders import pictures
from infra.bench.wire import Wire
from infra.local.aws import EmbeddedAws
from infra.local.gemini_stand_in import Answer, GeminiStandIn, Received
from infra.template import PROJECT_ROOT
from infra.verify.dynamodb_local import DynamoDbLocal
from lib.clients import dynamodb
from lib.deadline import Deadline
from lib.keys.key_ring import KeyRing
from lib.ledger.accounts import Accounts
from lib.ledger.ledger import Ledger
from lib.ledger.rows import Grant
from lib.ledger.table import Table

__all__ = [
    "CREDITS",
    "GEMINI_KEY",
    "PROMPT",
    "TABLE",
    "Reach",
    "ledger_at",
    "open_account",
    "running",
    "variables",
]

TABLE = "credits"
# An underscore makes the name no host's, so boto3 puts it into the path.
BUCKET = "images_of_the_benchmark"
GEMINI_KEY = "any-key-will-do"
PROMPT = "A log cabin by a frozen mountain lake at dusk, smoke rising from the chimney"
CREDITS = 10_000_000
REQUESTS_A_MINUTE = 1_000_000
SETUP_TAKES_S = 30.0
STOP_TAKES_S = 30.0


@dataclass(frozen=True)
class Reach:
    """How to reach the servers.

    ``environment`` holds the variables that lead a function to them, ``over_wires`` the same by way
    of the counting servers at ``wires``. At ``conflicting_url`` DynamoDB Local refuses transactions
    that meet, at ``dynamodb_url`` it makes them wait. ``api_key`` is that of an organisation with
    credits, ``poor_key`` that of one without.
    """

    environment: Mapping[str, str]
    over_wires: Mapping[str, str]
    wires: tuple[str, ...]
    dynamodb_url: str
    conflicting_url: str
    api_key: str
    poor_key: str


@contextmanager
def running() -> Iterator[Reach]:
    """The servers, until the block ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "infra.bench.servers"],
        cwd=PROJECT_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the servers have no pipes")
        try:
            reach = process.stdout.readline()
            if not reach:
                raise RuntimeError("the servers did not start; what they said is above")
            yield Reach(**json.loads(reach))
        finally:
            process.stdin.close()
            try:
                process.wait(STOP_TAKES_S)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def variables(environment: Mapping[str, str]) -> Iterator[None]:
    """``environment`` is added to that of this process until the block ends."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def ledger_at(reach: Reach, dynamodb_url: str) -> Ledger:
    """The ledger with the client that the service has, and its timeouts."""
    with variables({**reach.environment, "AWS_ENDPOINT_URL_DYNAMODB": dynamodb_url}):
        return Ledger(Table(dynamodb(), TABLE))


def accounts_at(reach: Reach, dynamodb_url: str) -> Accounts:
    """The operator's accounts, with the service's own client and timeouts."""
    with variables({**reach.environment, "AWS_ENDPOINT_URL_DYNAMODB": dynamodb_url}):
        return Accounts(Table(dynamodb(), TABLE))


def open_account(accounts: Accounts, organisation: str, granted: int = CREDITS) -> None:
    """An organisation whose rate limit nobody reaches."""
    deadline = Deadline(SETUP_TAKES_S)
    accounts.create(organisation, deadline, REQUESTS_A_MINUTE)
    if granted:
        accounts.grant(organisation, Grant("bench", granted, "bench", "bench", 0), deadline)


def main() -> None:
    """Serves until standard input ends."""
    answers = {name: _answer_with(picture) for name, picture in _jpegs()}

    def paint(request: Received) -> Answer | None:
        asked = json.dumps(request.body)
        return next((answer for name, answer in answers.items() if name in asked), None)

    with ExitStack() as started:
        database = started.enter_context(DynamoDbLocal())
        aws = started.enter_context(EmbeddedAws(dynamodb_url=database.url))
        gemini = started.enter_context(GeminiStandIn())
        gemini.answer_with(paint)
        wires = [started.enter_context(Wire(url)) for url in (database.url, aws.url, gemini.url)]
        conflicting = started.enter_context(Wire(database.url, conflicts=True))
        reach = _furnished(aws, gemini.url, wires, (database.url, conflicting.url))
        print(json.dumps(asdict(reach)), flush=True)
        sys.stdin.read()


def _furnished(
    aws: EmbeddedAws, gemini_url: str, wires: list[Wire], dynamodb_urls: tuple[str, str]
) -> Reach:
    """Puts everything there that the service expects."""
    settings = {
        "CREDITS_TABLE": TABLE,
        "IMAGE_BUCKET": BUCKET,
        "IMAGE_BASE_URL": "https://images.example",
        "ORG_SECRET_PREFIX": "bench/orgs/",
        "GEMINI_API_KEY_SECRET": "bench/gemini",
        "GOOGLE_GEMINI_BASE_URL": gemini_url,
    }
    aws.create_table(TABLE)
    aws.create_bucket(BUCKET)
    aws.create_secret(settings["GEMINI_API_KEY_SECRET"], GEMINI_KEY)
    accounts = Accounts(Table(aws.client("dynamodb"), TABLE))
    open_account(accounts, "bench")
    open_account(accounts, "poor", granted=0)
    keys = KeyRing(aws.client("secretsmanager"), settings["ORG_SECRET_PREFIX"])
    environment = {**aws.environment(), **settings}
    table, other, gemini = (wire.url for wire in wires)
    elsewhere = {
        "AWS_ENDPOINT_URL_DYNAMODB": table,
        "AWS_ENDPOINT_URL_S3": other,
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": other,
        "GOOGLE_GEMINI_BASE_URL": gemini,
    }
    return Reach(
        environment=environment,
        over_wires=environment | elsewhere,
        wires=(table, other, gemini),
        dynamodb_url=dynamodb_urls[0],
        conflicting_url=dynamodb_urls[1],
        api_key=keys.issue("bench").key,
        poor_key=keys.issue("poor").key,
    )


def _jpegs() -> Iterator[tuple[str, bytes]]:
    for name, picture, _ in pictures():
        written = BytesIO()
        picture.save(written, "JPEG", quality=90)
        yield name, written.getvalue()


def _answer_with(picture: bytes) -> Answer:
    inline = {"mimeType": "image/jpeg", "data": base64.b64encode(picture).decode()}
    content = {"role": "model", "parts": [{"inlineData": inline}]}
    candidate = {"content": content, "finishReason": "STOP", "index": 0}
    usage = {"promptTokenCount": 16, "candidatesTokenCount": 1120, "totalTokenCount": 1136}
    return Answer(200, json.dumps({"candidates": [candidate], "usageMetadata": usage}).encode())


if __name__ == "__main__":
    os.environ.setdefault("NO_PROXY", "127.0.0.1")
    main()
