"""Storing, reading and deleting images while the store fails."""

import pytest

from lib.errors import StorageFailed
from lib.picture.storage import Images, StorageUnreachable
from tests.world import Call, Fault, Network, NewWorld, World

KEY = "generated/gemini/acme/1700000000000.png"


def images(world: World, network: Network | None = None) -> Images:
    return world.process(network).images


@pytest.fixture
def world(new_world: NewWorld) -> World:
    made = new_world()
    engine = made.engine
    engine.s3.delete_object(Bucket=engine.bucket, Key=KEY)
    return made


def test_an_image_is_a_png_that_may_be_cached_forever(world: World) -> None:
    images(world).put(KEY, b"bytes", "attempt-1", world.deadline())
    stored = world.engine.s3.get_object(Bucket=world.engine.bucket, Key=KEY)
    assert stored["Body"].read() == b"bytes"
    assert stored["ContentType"] == "image/png"
    assert stored["CacheControl"] == "public, max-age=31536000, immutable"
    assert images(world).url(KEY) == f"https://images.example/{KEY}"


def test_a_put_whose_response_was_lost_is_recognised_on_the_second_try(world: World) -> None:
    network = Network(0, Fault.RESPONSE_LOST)
    images(world, network).put(KEY, b"bytes", "attempt-1", world.deadline())
    assert [call.operation for call in network.calls] == ["put_object", "put_object", "head_object"]


def test_an_image_of_another_attempt_is_never_overwritten(world: World) -> None:
    images(world).put(KEY, b"first", "attempt-1", world.deadline())
    with pytest.raises(StorageFailed):
        images(world).put(KEY, b"second", "attempt-2", world.deadline())
    found = images(world).read(KEY)
    assert found is not None
    assert (found.content, found.attempt_id) == (b"first", "attempt-1")


def test_a_put_that_is_throttled_is_retried(world: World) -> None:
    images(world, Network(0, Fault.THROTTLED)).put(KEY, b"bytes", "attempt-1", world.deadline())
    assert images(world).read(KEY) is not None


@pytest.mark.parametrize(("seconds", "tries"), [(29, 3), (3, 1)])
def test_an_outage_fails_after_three_tries_or_one_if_the_refund_needs_the_time(
    world: World, seconds: int, tries: int
) -> None:
    network = Network(0, Fault.OUTAGE)
    with pytest.raises(StorageFailed):
        images(world, network).put(KEY, b"bytes", "attempt-1", world.deadline(seconds))
    assert network.calls == [Call("s3", "put_object")] * tries


def test_a_missing_image_reads_as_none_and_can_be_deleted(world: World) -> None:
    images(world).delete(KEY)
    assert images(world).read(KEY) is None


def test_a_failed_read_is_not_a_missing_image(world: World) -> None:
    images(world).put(KEY, b"bytes", "attempt-1", world.deadline())
    elsewhere = Images(lambda: world.engine.s3, "no-such-bucket", "https://images.example")
    half = images(world, Network(0, Fault.BODY_CUT))
    for unreachable in (images(world, Network(0, Fault.OUTAGE)), half, elsewhere):
        with pytest.raises(StorageUnreachable):
            unreachable.read(KEY)
    with pytest.raises(StorageUnreachable):
        images(world, Network(0, Fault.OUTAGE)).delete(KEY)
