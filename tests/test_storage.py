"""What is stored, under which conditions, and what a lost answer does to it."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    ReadTimeoutError,
)

from lib.errors import StorageFailed
from lib.picture.storage import Images, KeyTaken, StorageUnreachable
from tests.world import Call, Fault, Network, NewWorld, World

KEY = "generated/gemini/acme/1700000000000.png"


def images(world: World, wire: Network | None = None) -> Images:
    return world.process(wire).images


@pytest.fixture
def world(new_world: NewWorld) -> World:
    made = new_world()
    engine = made.engine
    engine.s3.delete_object(Bucket=engine.bucket, Key=KEY)
    return made


def test_an_image_is_a_png_that_may_be_cached_for_ever(world: World) -> None:
    images(world).put(KEY, b"bytes", "attempt-1", world.deadline())
    stored = world.engine.s3.get_object(Bucket=world.engine.bucket, Key=KEY)
    assert stored["Body"].read() == b"bytes"
    assert stored["ContentType"] == "image/png"
    assert stored["CacheControl"] == "public, max-age=86400, immutable"
    assert images(world).url(KEY) == f"https://images.example/{KEY}"


def test_a_success_that_was_not_heard_is_recognised_on_the_second_try(world: World) -> None:
    wire = Network(0, Fault.RESPONSE_LOST)
    images(world, wire).put(KEY, b"bytes", "attempt-1", world.deadline())
    assert [call.operation for call in wire.calls] == ["put_object", "put_object", "head_object"]


def test_the_hash_is_that_of_what_is_stored_even_if_another_delivery_stored_it(
    world: World,
) -> None:
    first = hashlib.sha256(b"first").hexdigest()

    # The deliveries of a job share its attempt, and each draws its own picture.
    assert images(world).put(KEY, b"first", "attempt-1", world.deadline()) == first
    assert images(world).put(KEY, b"second", "attempt-1", world.deadline()) == first
    found = images(world).put_tombstone(KEY, "attempt-1", world.deadline())
    assert found is not None
    assert found.sha256 == first


def test_an_image_of_another_attempt_is_never_overwritten(world: World) -> None:
    images(world).put(KEY, b"first", "attempt-1", world.deadline())
    with pytest.raises(StorageFailed):
        images(world).put(KEY, b"second", "attempt-2", world.deadline())
    found = images(world).read(KEY)
    assert found is not None
    assert (found.content, found.attempt_id) == (b"first", "attempt-1")


def test_a_tombstone_leaves_an_image_that_is_there(world: World) -> None:
    images(world).put(KEY, b"bytes", "attempt-1", world.deadline())
    assert images(world).put_tombstone(KEY, "attempt-1", world.deadline())
    found = images(world).read(KEY)
    assert found is not None
    assert (found.content, found.is_tombstone) == (b"bytes", False)


def test_a_tombstone_keeps_the_image_out_and_is_not_cached(world: World) -> None:
    assert not images(world).put_tombstone(KEY, "attempt-1", world.deadline())
    with pytest.raises(KeyTaken):
        images(world).put(KEY, b"bytes", "attempt-1", world.deadline())
    stored = world.engine.s3.get_object(Bucket=world.engine.bucket, Key=KEY)
    assert (stored["Body"].read(), stored["CacheControl"]) == (b"", "no-store")


def test_a_store_that_throttles_once_is_asked_again(world: World) -> None:
    images(world, Network(0, Fault.THROTTLED)).put(KEY, b"bytes", "attempt-1", world.deadline())
    assert images(world).read(KEY) is not None


def test_a_store_that_is_down_is_a_failure_after_a_few_tries(world: World) -> None:
    wire = Network(0, Fault.OUTAGE)
    with pytest.raises(StorageFailed):
        images(world, wire).put(KEY, b"bytes", "attempt-1", world.deadline())
    assert wire.calls == [Call("s3", "put_object")] * 3


def test_without_time_for_another_try_the_refund_comes_first(world: World) -> None:
    wire = Network(0, Fault.OUTAGE)
    with pytest.raises(StorageFailed):
        images(world, wire).put(KEY, b"bytes", "attempt-1", world.deadline(3))
    assert len(wire.calls) == 1


def test_a_missing_image_is_nothing_and_deleting_it_is_harmless(world: World) -> None:
    images(world).delete(KEY)
    assert images(world).read(KEY) is None


def test_a_store_that_is_down_is_told_from_an_image_that_is_not_there(world: World) -> None:
    with pytest.raises(StorageUnreachable):
        images(world, Network(0, Fault.OUTAGE)).read(KEY)
    with pytest.raises(StorageUnreachable):
        images(world, Network(0, Fault.OUTAGE)).delete(KEY)


def test_half_an_image_is_no_image_and_no_answer(world: World) -> None:
    images(world).put(KEY, b"bytes", "attempt-1", world.deadline())
    with pytest.raises(StorageUnreachable):
        images(world, Network(0, Fault.BODY_CUT)).read(KEY)


def test_a_bucket_that_is_not_there_is_not_a_missing_image(world: World) -> None:
    elsewhere = Images(lambda: world.engine.s3, "no-such-bucket", "https://images.example")
    with pytest.raises(StorageUnreachable):
        elsewhere.read(KEY)


# Faults that pass


URL = "https://store.example"
Step = Exception | Callable[[Callable[[], Any]], Any]


class FaultyStore:
    """S3 whose calls meet ``steps`` in order, each a fault or what becomes of a call; then none."""

    def __init__(self, world: World, steps: Iterable[Step]) -> None:
        self._s3: Any = world.engine.s3
        self._steps = iter(steps)
        self.calls: list[str] = []

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def called(**arguments: object) -> Any:
            self.calls.append(operation)
            step = next(self._steps, None)
            if isinstance(step, Exception):
                raise step
            if step is None:
                return getattr(self._s3, operation)(**arguments)
            return step(lambda: getattr(self._s3, operation)(**arguments))

        return called

    def images(self, world: World) -> Images:
        client: Any = self
        return Images(lambda: client, world.engine.bucket, URL, world.clock.sleep)


def refused(status: int, code: str) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": "made up by a test"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "PutObject")


def response_lost(call: Callable[[], Any]) -> Any:
    call()
    raise ReadTimeoutError(endpoint_url=URL)


def performed(call: Callable[[], Any]) -> Any:
    return call()


TRANSIENT = [
    refused(400, "RequestTimeout"),
    refused(400, "RequestTimeoutException"),
    refused(400, "PriorRequestNotComplete"),
    refused(503, "SlowDown"),
    refused(400, "ThrottlingException"),
    refused(429, "TooManyRequests"),
    refused(500, "InternalError"),
    refused(502, ""),
    refused(503, "ServiceUnavailable"),
    refused(504, ""),
    refused(409, "ConditionalRequestConflict"),
    ReadTimeoutError(endpoint_url=URL),
    ConnectionClosedError(endpoint_url=URL),
    EndpointConnectionError(endpoint_url=URL),
]


@pytest.mark.parametrize("fault", TRANSIENT, ids=str)
@pytest.mark.parametrize("times", [1, 2])
def test_a_fault_of_a_put_that_passes_is_retried(
    world: World, fault: Exception, times: int
) -> None:
    store = FaultyStore(world, [fault] * times)

    store.images(world).put(KEY, b"bytes", "attempt-1", world.deadline())

    assert store.calls == ["put_object"] * (times + 1)
    assert images(world).read(KEY) is not None


@pytest.mark.parametrize("fault", TRANSIENT, ids=str)
@pytest.mark.parametrize("times", [1, 2])
def test_a_stored_image_survives_a_lost_put_and_as_many_failed_heads_as_puts(
    world: World, fault: Exception, times: int
) -> None:
    store = FaultyStore(world, [response_lost, performed, *[fault] * times])

    store.images(world).put(KEY, b"bytes", "attempt-1", world.deadline())

    assert store.calls == ["put_object"] * 2 + ["head_object"] * (times + 1)


def test_an_image_whose_head_keeps_failing_may_be_stored(world: World) -> None:
    outage: list[Step] = [refused(503, "SlowDown")] * 3
    store = FaultyStore(world, [response_lost, performed, *outage])

    with pytest.raises(StorageFailed) as failed:
        store.images(world).put(KEY, b"bytes", "attempt-1", world.deadline())

    assert failed.value.may_be_stored
    assert store.calls == ["put_object"] * 2 + ["head_object"] * 3


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDenied"),
        (404, "NoSuchBucket"),
        (400, "EntityTooLarge"),
        (400, "InvalidRequest"),
    ],
)
def test_a_refusal_that_stays_is_not_repeated_and_stores_nothing(
    world: World, status: int, code: str
) -> None:
    store = FaultyStore(world, [refused(status, code)])

    with pytest.raises(StorageFailed) as failed:
        store.images(world).put(KEY, b"bytes", "attempt-1", world.deadline())

    assert not failed.value.may_be_stored
    assert store.calls == ["put_object"]


IN_DOUBT = [
    ReadTimeoutError(endpoint_url=URL),
    ConnectionClosedError(endpoint_url=URL),
    refused(500, "InternalError"),
]
WITHOUT_EFFECT = [
    EndpointConnectionError(endpoint_url=URL),
    refused(400, "RequestTimeout"),
    refused(503, "SlowDown"),
]


@pytest.mark.parametrize("fault", [*IN_DOUBT, *WITHOUT_EFFECT], ids=str)
def test_a_put_that_gives_up_says_whether_the_image_may_be_stored(
    world: World, fault: Exception
) -> None:
    store = FaultyStore(world, [fault] * 3)

    with pytest.raises(StorageFailed) as failed:
        store.images(world).put(KEY, b"bytes", "attempt-1", world.deadline())

    assert failed.value.may_be_stored is (fault in IN_DOUBT)


def test_a_lost_put_of_a_tombstone_is_recognised_after_failed_heads_too(world: World) -> None:
    store = FaultyStore(world, [response_lost, performed, refused(503, "SlowDown")])

    assert not store.images(world).put_tombstone(KEY, "attempt-1", world.deadline())

    with pytest.raises(KeyTaken):
        images(world).put(KEY, b"bytes", "attempt-1", world.deadline())
