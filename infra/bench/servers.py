"""The servers of a benchmark in a process of their own: DynamoDB Local, moto's S3, a stand-in.

    python -m infra.bench.servers

A separate process keeps the servers' CPU out of the figures. It writes one line of JSON, the
fields of ``Servers``, and ends when its standard input closes. The stand-in for Gemini answers at
once with the picture named in the prompt, encoded beforehand, or else as it always does.
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
from unittest.mock import patch

from PIL import Image

from infra.bench.png_encoders import pictures
from infra.local.aws import EmbeddedAws
from infra.local.gemini_stand_in import GeminiStandIn, ModelRequest, ModelResponse
from infra.template import PROJECT_ROOT
from infra.verify.conflicts import conflict_proxy
from infra.verify.dynamodb_local import DynamoDbLocal
from lib.clients import dynamodb
from lib.deadline import Deadline
from lib.keys.key_ring import KeyRing
from lib.ledger.accounts import Accounts
from lib.ledger.rows import Grant
from lib.ledger.table import Table

TABLE = "credits"
# boto3 puts a bucket whose name has an underscore into the path, not into the host name.
BUCKET = "images_of_the_benchmark"
GEMINI_KEY = "any-key-will-do"
PROMPT = "A log cabin by a frozen mountain lake at dusk, smoke rising from the chimney"
CREDITS = 10_000_000
RATE_LIMIT_PER_MINUTE = 1_000_000
SETUP_TAKES_S = 30.0


@dataclass(frozen=True)
class Servers:
    """Where the servers are.

    ``environment`` configures a function to use them. Conflicting transactions wait at
    ``dynamodb_url`` and are refused at ``conflicting_url``. ``api_key`` belongs to an organisation
    with credits, ``empty_key`` to one without.
    """

    environment: Mapping[str, str]
    dynamodb_url: str
    conflicting_url: str
    api_key: str
    empty_key: str


@contextmanager
def running() -> Iterator[Servers]:
    """Runs the servers until the block ends; raises RuntimeError if they don't start."""
    command = [sys.executable, "-m", "infra.bench.servers"]
    pipe = subprocess.PIPE
    # At the end of the block its standard input closes, and it is waited for.
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdin=pipe, stdout=pipe, text=True) as process:  # noqa: S603 - our own
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise RuntimeError("the servers did not start; their error is above")
        yield Servers(**json.loads(line))


def credits_table(servers: Servers, dynamodb_url: str) -> Table:
    """The credits table through the service's own client, with its timeouts."""
    at = {**servers.environment, "AWS_ENDPOINT_URL_DYNAMODB": dynamodb_url}
    with patch.dict(os.environ, at):
        return Table(dynamodb(), TABLE)


def open_account(accounts: Accounts, organisation: str, granted: int = CREDITS) -> None:
    """Creates an organisation with a rate limit that is out of reach."""
    deadline = Deadline(SETUP_TAKES_S)
    accounts.create(organisation, deadline, RATE_LIMIT_PER_MINUTE)
    if granted:
        accounts.grant(organisation, Grant("bench", granted, "bench", "bench", 0), deadline)


def main() -> None:
    """Serves until standard input closes."""
    answers = {name: _answer_with(picture) for name, picture, _ in pictures()}

    def script(request: ModelRequest) -> ModelResponse | None:
        asked = json.dumps(request.body)
        return next((answer for name, answer in answers.items() if name in asked), None)

    with ExitStack() as started:
        database = started.enter_context(DynamoDbLocal(long_run=True))
        aws = started.enter_context(EmbeddedAws(dynamodb_url=database.url))
        gemini = started.enter_context(GeminiStandIn())
        gemini.answer_with(script)
        conflicting_url = started.enter_context(conflict_proxy(database.url))
        servers = _prepared(aws, gemini.url, database.url, conflicting_url)
        print(json.dumps(asdict(servers)), flush=True)
        sys.stdin.read()


def _prepared(aws: EmbeddedAws, gemini_url: str, table_url: str, conflicting_url: str) -> Servers:
    """Creates the table, the bucket, the secrets and two accounts."""
    environment = {
        **aws.environment(),
        "CREDITS_TABLE": TABLE,
        "IMAGE_BUCKET": BUCKET,
        "IMAGE_BASE_URL": "https://images.example",
        "ORG_SECRET_PREFIX": "bench/orgs/",
        "GEMINI_API_KEY_SECRET": "bench/gemini",
        "RECEIPT_KEY": aws.create_signing_key(),
        "GOOGLE_GEMINI_BASE_URL": gemini_url,
    }
    aws.create_table(TABLE)
    aws.create_bucket(BUCKET)
    aws.create_secret(environment["GEMINI_API_KEY_SECRET"], GEMINI_KEY)
    accounts = Accounts(Table(aws.client("dynamodb"), TABLE))
    open_account(accounts, "bench")
    open_account(accounts, "empty", granted=0)
    ring = KeyRing(aws.client("secretsmanager"), environment["ORG_SECRET_PREFIX"])
    keys = ring.issue("bench").key, ring.issue("empty").key
    return Servers(environment, table_url, conflicting_url, *keys)


def _answer_with(picture: Image.Image) -> ModelResponse:
    jpeg = BytesIO()
    picture.save(jpeg, "JPEG", quality=90)
    inline = {"mimeType": "image/jpeg", "data": base64.b64encode(jpeg.getvalue()).decode()}
    content = {"role": "model", "parts": [{"inlineData": inline}]}
    candidate = {"content": content, "finishReason": "STOP", "index": 0}
    usage = {"promptTokenCount": 16, "candidatesTokenCount": 1120, "totalTokenCount": 1136}
    return ModelResponse(
        200, json.dumps({"candidates": [candidate], "usageMetadata": usage}).encode()
    )


if __name__ == "__main__":
    os.environ.setdefault("NO_PROXY", "127.0.0.1")
    main()
