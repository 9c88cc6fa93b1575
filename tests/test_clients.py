"""The client of the bucket as an operator configures it: S3, or R2 with its own credentials."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from infra.local.aws import EmbeddedAws
from lib.deadline import Deadline
from lib.errors import StorageFailed
from lib.picture.storage import Images, ObjectStore, StorageUnreachable
from lib.settings import Settings

BUCKET = "pictures"
SECRET = "r2-credentials"


@pytest.fixture(scope="module")
def aws() -> Iterator[EmbeddedAws]:
    with EmbeddedAws() as running:
        running.create_bucket(BUCKET)
        pair = {"accessKeyId": "r2-id", "secretAccessKey": "r2-secret"}
        running.create_secret(SECRET, json.dumps(pair))
        running.create_secret("nonsense", "{}")
        yield running


def store(aws: EmbeddedAws, secret: str) -> ObjectStore:
    settings = Settings(
        "credits",
        BUCKET,
        "https://images.example",
        "orgs/",
        "gemini-key",
        storage_endpoint_url=aws.url,
        storage_credentials_secret=secret,
    )
    return ObjectStore(settings, aws.client("secretsmanager"))


def test_r2_gets_its_own_credentials_the_region_auto_and_no_trailing_checksum(
    aws: EmbeddedAws,
) -> None:
    made = store(aws, SECRET)
    sent: list[Any] = []
    made().meta.events.register(
        "before-send.s3.PutObject", lambda request, **_: sent.append(dict(request.headers))
    )
    images = Images(made, BUCKET, "https://images.example")
    images.put("generated/one.png", b"bytes", "attempt-1", Deadline(10))
    found = images.read("generated/one.png")
    assert found is not None
    assert found.content == b"bytes"
    (headers,) = ({name.lower(): _text(value) for name, value in each.items()} for each in sent)
    assert "Credential=r2-id/" in headers["authorization"]
    assert "/auto/s3/aws4_request" in headers["authorization"]
    assert headers["if-none-match"] == "*"
    assert not [name for name in headers if "checksum" in name or "trailer" in name]
    assert "aws-chunked" not in headers.get("content-encoding", "")


@pytest.mark.parametrize("secret", ["nonsense", "no-such-secret"])
def test_unusable_credentials_make_the_store_unreachable(aws: EmbeddedAws, secret: str) -> None:
    images = Images(store(aws, secret), BUCKET, "https://images.example", sleep=lambda _s: None)
    with pytest.raises(StorageUnreachable):
        images.prepare()
    with pytest.raises(StorageFailed):
        images.put("generated/two.png", b"bytes", "attempt-1", Deadline(10))


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
