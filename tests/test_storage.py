"""What is stored, under which conditions, and what a lost answer does to it."""

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


def test_an_image_is_a_png_that_may_be_cached_for_ever(world: World) -> None:
    images(world).put(KEY, b"bytes", "attempt-1", world.deadline())
    stored = world.engine.s3.get_object(Bucket=world.engine.bucket, Key=KEY)
    assert stored["Body"].read() == b"bytes"
    assert stored["ContentType"] == "image/png"
    assert stored["CacheControl"] == "public, max-age=31536000, immutable"
    assert images(world).url(KEY) == f"https://images.example/{KEY}"


def test_a_success_that_was_not_heard_is_recognised_on_the_second_try(world: World) -> None:
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


def test_a_store_that_throttles_once_is_asked_again(world: World) -> None:
    images(world, Network(0, Fault.THROTTLED)).put(KEY, b"bytes", "attempt-1", world.deadline())
    assert images(world).read(KEY) is not None


def test_a_store_that_is_down_is_a_failure_after_a_few_tries(world: World) -> None:
    network = Network(0, Fault.OUTAGE)
    with pytest.raises(StorageFailed):
        images(world, network).put(KEY, b"bytes", "attempt-1", world.deadline())
    assert network.calls == [Call("s3", "put_object")] * 3


def test_without_time_for_another_try_the_refund_comes_first(world: World) -> None:
    network = Network(0, Fault.OUTAGE)
    with pytest.raises(StorageFailed):
        images(world, network).put(KEY, b"bytes", "attempt-1", world.deadline(3))
    assert len(network.calls) == 1


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
