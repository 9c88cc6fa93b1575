"""The other side of a benchmark, in a process of its own: DynamoDB Local, moto's S3, the stand-in.

    python -m infra.bench.servers

What the servers do must not count as ours. It writes one line of JSON, ``Reach``'s fields, and ends
when its standard input does. The model answers with the picture whose name the prompt is, encoded
before anything is measured.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO

from infra.bench.png_encoders import pictures
from infra.local.aws import EmbeddedAws
from infra.local.gemini_stand_in import Answer, GeminiStandIn, Received
from infra.template import PROJECT_ROOT
from infra.verify.dynamodb_local import DynamoDbLocal
from lib.api_keys import KeyRing
from lib.deadline import Deadline
from lib.ledger import Ledger
from lib.ledger_rows import Grant
from lib.table import Table

__all__ = ["Reach", "running"]

TABLE = "credits"
BUCKET = "images_of_the_benchmark"
ORGANISATION = "bench"
CREDITS = 10_000_000
REQUESTS_A_MINUTE = 1_000_000
SETUP_TAKES_S = 30.0


@dataclass(frozen=True)
class Reach:
    """The variables that lead a process to the servers, and a key of an organisation there."""

    environment: Mapping[str, str]
    api_key: str


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
            yield Reach(**json.loads(process.stdout.readline()))
        finally:
            process.stdin.close()


def main() -> None:
    """Serves until standard input ends."""
    answers = {name: _answer_with(picture) for name, picture in _jpegs()}

    def paint(request: Received) -> Answer | None:
        asked = json.dumps(request.body)
        return next((answer for name, answer in answers.items() if name in asked), None)

    with (
        DynamoDbLocal() as dynamodb,
        EmbeddedAws(dynamodb_url=dynamodb.url) as aws,
        GeminiStandIn() as gemini,
    ):
        gemini.answer_with(paint)
        settings = {
            "CREDITS_TABLE": TABLE,
            "IMAGE_BUCKET": BUCKET,
            "IMAGE_BASE_URL": "https://images.example",
            "ORG_SECRET_PREFIX": "bench/orgs/",
            "GEMINI_API_KEY_SECRET": "bench/gemini",
            "GOOGLE_GEMINI_BASE_URL": gemini.url,
        }
        aws.create_table(TABLE)
        aws.create_bucket(BUCKET)
        aws.create_secret(settings["GEMINI_API_KEY_SECRET"], "any-key-will-do")
        ledger, deadline = Ledger(Table(aws.client("dynamodb"), TABLE)), Deadline(SETUP_TAKES_S)
        ledger.create_account(ORGANISATION, deadline, REQUESTS_A_MINUTE)
        ledger.grant(ORGANISATION, Grant("bench", CREDITS, "bench", "bench", 0), deadline)
        keys = KeyRing(aws.client("secretsmanager"), settings["ORG_SECRET_PREFIX"])
        reach = Reach({**aws.environment(), **settings}, keys.issue(ORGANISATION).key)
        print(json.dumps(asdict(reach)), flush=True)
        sys.stdin.read()


def _jpegs() -> Iterator[tuple[str, bytes]]:
    for name, picture, _ in pictures():
        written = BytesIO()
        picture.save(written, "JPEG", quality=90)
        yield name, written.getvalue()


def _answer_with(picture: bytes) -> Answer:
    inline = {"mimeType": "image/jpeg", "data": base64.b64encode(picture).decode()}
    content = {"role": "model", "parts": [{"inlineData": inline}]}
    candidate = {"content": content, "finishReason": "STOP", "index": 0}
    return Answer(200, json.dumps({"candidates": [candidate]}).encode())


if __name__ == "__main__":
    os.environ.setdefault("NO_PROXY", "127.0.0.1")
    main()
