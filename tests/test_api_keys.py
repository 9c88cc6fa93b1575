"""API keys: their format, who may come in, and what an operator can do."""

from __future__ import annotations

import hashlib
import json
import logging
import string
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from moto import mock_aws

from lib.errors import ServiceUnavailable, Unauthorized
from lib.keys.format import is_organisation, new_key, parse_key
from lib.keys.key_ring import (
    EditLost,
    InvalidArgument,
    IssuedKey,
    KeyRing,
    SecretsManagerFailed,
    SecretUnusable,
    TooManyLiveKeys,
    UnknownKey,
    UnknownOrganisation,
)
from lib.keys.verification import MAX_CACHED_ORGANISATIONS, KeyVerifier

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
START = datetime(2026, 11, 22, 22, 10, tzinfo=UTC)
DAY = timedelta(days=1)
UPSTREAM_TEXT = "arn:aws:sts::123456789012:assumed-role/secret-words"
WELL_FORMED = "gg_acme_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG09fV6O"

SMALL = string.ascii_lowercase + string.digits
organisations = st.builds(str.__add__, st.sampled_from(SMALL), st.text(SMALL + "_-", max_size=62))
pure = settings(deadline=None, max_examples=150)


class Clock:
    """The wall's clock, moved by hand."""

    def __init__(self) -> None:
        self.now_s = START.timestamp()

    def __call__(self) -> float:
        return self.now_s

    def forward(self, seconds: float) -> None:
        self.now_s += seconds

    @property
    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.now_s, UTC)


class Watched:
    """Hands calls to a real client and counts them.

    ``before`` and ``after`` map a call's name to what happens around it: a fault that is raised
    each time, or a function that is called.
    """

    def __init__(self, client: SecretsManagerClient) -> None:
        self.client = client
        self.calls: Counter[str] = Counter()
        self.tokens: list[str] = []
        self.before: dict[str, Exception | Callable[[], object]] = {}
        self.after: dict[str, Exception | Callable[[], object]] = {}

    @property
    def look_ups(self) -> int:
        return self.calls["get_secret_value"]

    def get_secret_value(self, **arguments: Any) -> Any:
        return self._call("get_secret_value", arguments)

    def put_secret_value(self, **arguments: Any) -> Any:
        self.tokens.append(arguments["ClientRequestToken"])
        return self._call("put_secret_value", arguments)

    def create_secret(self, **arguments: Any) -> Any:
        return self._call("create_secret", arguments)

    def _call(self, name: str, arguments: dict[str, Any]) -> Any:
        self.calls[name] += 1
        self._happen(self.before.get(name))
        answer = getattr(self.client, name)(**arguments)
        self._happen(self.after.get(name))
        return answer

    @staticmethod
    def _happen(event: Exception | Callable[[], object] | None) -> None:
        if isinstance(event, Exception):
            raise event
        if event is not None:
            event()


class World:
    """One test's door, operator and secrets. Each has names of its own in one Secrets Manager."""

    def __init__(self, client: SecretsManagerClient, prefix: str) -> None:
        self.client = client
        self.prefix = prefix
        self.clock = Clock()
        self.pauses: list[float] = []
        self.door_calls = Watched(client)
        self.ring_calls = Watched(client)
        self.door = self.another_door()
        self.ring = self.operator(self.ring_calls)

    def another_door(self) -> KeyVerifier:
        watched = cast("SecretsManagerClient", self.door_calls)
        return KeyVerifier(watched, self.prefix, self.clock)

    def operator(self, calls: Watched) -> KeyRing:
        watched = cast("SecretsManagerClient", calls)
        return KeyRing(watched, self.prefix, self.clock, self.pauses.append)

    def opens(self, key: str) -> bool:
        """Whether a process that knows nothing yet lets ``key`` in."""
        return is_let_in(self.another_door(), key)

    def text(self, organisation: str = "acme") -> str:
        name = self.prefix + organisation
        answer = self.client.get_secret_value(SecretId=name, VersionStage="AWSCURRENT")
        return answer["SecretString"]

    def stored(self, organisation: str = "acme") -> list[Any]:
        keys = json.loads(self.text(organisation))["keys"]
        assert isinstance(keys, list)
        return keys

    def put(self, value: str, organisation: str = "acme") -> None:
        self.client.put_secret_value(SecretId=self.prefix + organisation, SecretString=value)

    def create(self, value: str, organisation: str = "acme") -> None:
        self.client.create_secret(Name=self.prefix + organisation, SecretString=value)

    def delete(self, organisation: str = "acme") -> None:
        self.client.delete_secret(SecretId=self.prefix + organisation)


@pytest.fixture(scope="module")
def secrets_manager() -> Iterator[SecretsManagerClient]:
    with pytest.MonkeyPatch.context() as environment, mock_aws():
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SECRETS_MANAGER"):
            environment.delenv(name, raising=False)
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        yield boto3.client("secretsmanager", region_name="us-east-1")


@pytest.fixture
def world(secrets_manager: SecretsManagerClient, request: pytest.FixtureRequest) -> World:
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    return World(secrets_manager, f"{name}/orgs/")


def bearer(key: str) -> str:
    return f"Bearer {key}"


def is_let_in(door: KeyVerifier, key: str) -> bool:
    try:
        door.organisation_of(bearer(key))
    except Unauthorized:
        return False
    return True


def is_available(door: KeyVerifier, key: str) -> bool:
    try:
        door.organisation_of(bearer(key))
    except ServiceUnavailable:
        return False
    return True


def refusal(code: str, operation: str = "GetSecretValue") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": UPSTREAM_TEXT}}, operation)


def record_of(key: str, **changes: object) -> dict[str, object]:
    return {
        "id": "key_000000000000",
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "createdAt": "2026-01-01T00:00:00Z",
        "expiresAt": None,
        "revokedAt": None,
    } | changes


def checksum_by_polynomial(text: str) -> str:
    """CRC-32 (reflected, polynomial 0xEDB88320) bit by bit, in base 62."""
    register = 0xFFFFFFFF
    for byte in text.encode():
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0xEDB88320 if register & 1 else 0)
    number = register ^ 0xFFFFFFFF
    return "".join(BASE62[number // 62**place % 62] for place in range(5, -1, -1))


# The format


def test_a_known_key_has_the_checksum_that_gzip_computes_for_it() -> None:
    # 142878032 is the CRC-32 that gzip writes after these 51 characters: 9fV7A in base 62.
    assert parse_key(WELL_FORMED) == "acme"
    assert WELL_FORMED[-6:] == checksum_by_polynomial(WELL_FORMED[:-6])


@pure
@given(organisations)
def test_every_new_key_is_read_back_as_its_organisations(organisation: str) -> None:
    key = new_key(organisation)

    assert parse_key(key) == organisation
    assert key.startswith(f"gg_{organisation}_")
    assert len(key) == len(f"gg_{organisation}_") + 43 + 6
    assert key[-6:] == checksum_by_polynomial(key[:-6])


@pure
@given(organisations, st.data())
def test_one_changed_character_is_always_noticed(organisation: str, data: st.DataObject) -> None:
    key = new_key(organisation)
    position = data.draw(st.integers(0, len(key) - 1))
    other = data.draw(st.sampled_from(BASE62 + "_-") | st.characters())
    assume(other != key[position])

    assert parse_key(key[:position] + other + key[position + 1 :]) is None


@pure
@given(organisations, st.text(BASE62, min_size=49, max_size=49))
def test_a_string_of_the_right_shape_needs_the_right_checksum(
    organisation: str, digits: str
) -> None:
    text = f"gg_{organisation}_{digits}"

    is_right = digits[-6:] == checksum_by_polynomial(text[:-6])
    assert (parse_key(text) == organisation) is is_right


@pure
@given(st.text(max_size=200))
def test_no_other_text_is_a_key(text: str) -> None:
    assert parse_key(text) is None


@pytest.mark.parametrize(
    "text",
    [
        WELL_FORMED + "\n",
        " " + WELL_FORMED,
        WELL_FORMED.replace("gg_", "GG_", 1),
        WELL_FORMED * 100_000,
        *[
            body + checksum_by_polynomial(body)
            for body in (
                "gg_Acme_" + "0" * 43,
                "gg__acme_" + "0" * 43,
                "gg__" + "0" * 43,
                "gg_" + "a" * 64 + "_" + "0" * 43,
                "gg_acme_" + "0" * 42,
                "gg_acme_" + "0" * 42 + "-",
                "gg_acme_" + "0" * 42 + "\u0663",
                "acme_" + "0" * 43,
            )
        ],
    ],
    ids=lambda text: ascii(text[:24]),
)
def test_a_misshapen_key_is_refused_even_if_its_checksum_is_right(text: str) -> None:
    assert parse_key(text) is None


@pytest.mark.parametrize("name", ["a", "0", "acme", "a_b-c", "a__", "a" * 63])
def test_a_name_of_small_letters_digits_underscores_and_hyphens_is_an_organisations(
    name: str,
) -> None:
    assert is_organisation(name)
    assert parse_key(new_key(name)) == name


@pytest.mark.parametrize(
    "name", ["", "A", "_a", "-a", "a" * 64, "a/b", "a.b", "a b", "a\n", "\u00e4", "\u0661"]
)
def test_any_other_name_is_refused(name: str, world: World) -> None:
    assert not is_organisation(name)
    with pytest.raises(ValueError, match="organisation"):
        new_key(name)
    for ask in (world.ring.issue, world.ring.list):
        with pytest.raises(InvalidArgument, match="a-z, 0-9"):
            ask(name)
    assert not world.ring_calls.calls


def test_no_two_keys_are_the_same() -> None:
    assert len({new_key("acme") for _ in range(500)}) == 500


# Who may come in


@pytest.mark.parametrize("organisation", ["acme", "a_b", "acme_eu_1", "a-b_", "0"])
def test_a_live_key_opens_for_its_organisation(world: World, organisation: str) -> None:
    issued = world.ring.issue(organisation)

    assert world.door.organisation_of(bearer(issued.key)) == organisation


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  ", " bEaReR\t"])
def test_the_scheme_is_read_in_any_case(world: World, scheme: str) -> None:
    issued = world.ring.issue("acme")

    assert world.door.organisation_of(scheme + issued.key) == "acme"


MALFORMED_HEADERS = {
    "missing": None,
    "empty": "",
    "another scheme": f"Basic {WELL_FORMED}",
    "no scheme": WELL_FORMED,
    "no key": "Bearer ",
    "two keys": f"Bearer {WELL_FORMED} {WELL_FORMED}",
    "two headers in one": f"Bearer {WELL_FORMED}, Bearer {WELL_FORMED}",
    "a wrong checksum": f"Bearer {WELL_FORMED[:-1]}B",
    "cut short": f"Bearer {WELL_FORMED[:-1]}",
    "not ASCII": f"Bearer {WELL_FORMED}\u00e9",
    "a wide space": f"Bearer\u2003{WELL_FORMED}",
    "longer than any header of ours": "Bearer " + " " * 250 + WELL_FORMED,
    "very long": "Bearer " + "a" * 1_000_000,
}


@pytest.mark.parametrize("header", MALFORMED_HEADERS.values(), ids=MALFORMED_HEADERS.keys())
def test_a_malformed_key_is_refused_without_a_look_up(world: World, header: str | None) -> None:
    with pytest.raises(Unauthorized):
        world.door.organisation_of(header)

    assert world.door_calls.look_ups == 0


def test_every_refusal_is_in_the_same_words(world: World) -> None:
    revoked = world.ring.issue("acme")
    world.ring.revoke("acme", revoked.id)
    expired = world.ring.issue("acme", expires_at=START + timedelta(seconds=1))
    deleted = world.ring.issue("gone")
    world.delete("gone")
    world.clock.forward(1)
    headers = [
        *MALFORMED_HEADERS.values(),
        *map(bearer, (new_key("nobody"), new_key("acme"), revoked.key, expired.key, deleted.key)),
    ]

    answers = []
    for header in headers:
        with pytest.raises(Unauthorized) as refused:
            world.door.organisation_of(header)
        error = refused.value
        answers.append((error.status, error.body(), error.headers(), str(error), error.__cause__))

    assert answers == [answers[0]] * len(headers)
    assert answers[0][:2] == (401, {"error": "Invalid or missing API key"})


def test_a_key_is_looked_up_once_in_60_s(world: World) -> None:
    issued = world.ring.issue("acme")

    for _ in range(60):
        assert is_let_in(world.door, issued.key)
        world.clock.forward(1)
    assert world.door_calls.look_ups == 1

    assert is_let_in(world.door, issued.key)
    assert world.door_calls.look_ups == 2


def test_a_revocation_bites_within_60_s_and_at_once_in_a_new_process(world: World) -> None:
    issued = world.ring.issue("acme")
    assert is_let_in(world.door, issued.key)
    world.ring.revoke("acme", issued.id)

    world.clock.forward(59.9)
    assert is_let_in(world.door, issued.key)
    assert not world.opens(issued.key)
    world.clock.forward(0.1)
    assert not is_let_in(world.door, issued.key)


def test_the_60_s_begin_when_the_look_up_is_asked_for(world: World) -> None:
    issued = world.ring.issue("acme")

    def revoked_while_the_answer_travels() -> None:
        world.ring.revoke("acme", issued.id)
        world.clock.forward(10)

    world.door_calls.after["get_secret_value"] = revoked_while_the_answer_travels
    assert is_let_in(world.door, issued.key)
    world.door_calls.after.clear()

    world.clock.forward(50)
    assert not is_let_in(world.door, issued.key)


def test_a_revocation_dated_ahead_by_a_fast_clock_bites_all_the_same(world: World) -> None:
    key = new_key("acme")
    world.create(json.dumps({"keys": [record_of(key, revokedAt="2026-11-22T23:00:00Z")]}))

    assert not world.opens(key)


def test_an_expiry_bites_at_its_second_though_the_key_is_remembered(world: World) -> None:
    issued = world.ring.issue("acme", expires_at=START + timedelta(seconds=30))

    world.clock.forward(29.9)
    assert is_let_in(world.door, issued.key)
    world.clock.forward(0.1)
    assert not is_let_in(world.door, issued.key)
    assert world.door_calls.look_ups == 1


def test_an_unknown_organisation_costs_one_look_up_a_minute(world: World) -> None:
    for second in range(120):
        assert not is_let_in(world.door, new_key("nobody"))
        assert world.door_calls.look_ups == 1 + second // 60
        world.clock.forward(1)


def test_the_first_key_of_an_organisation_that_was_asked_for_works_within_60_s(
    world: World,
) -> None:
    assert not is_let_in(world.door, new_key("acme"))
    issued = world.ring.issue("acme")

    world.clock.forward(60)
    assert is_let_in(world.door, issued.key)


def test_a_new_key_of_a_known_organisation_works_within_5_s(world: World) -> None:
    old = world.ring.issue("acme")
    assert is_let_in(world.door, old.key)
    new = world.ring.issue("acme")

    world.clock.forward(5)
    assert is_let_in(world.door, new.key)


def test_guessing_at_a_known_organisation_costs_one_look_up_in_5_s(world: World) -> None:
    world.ring.issue("acme")

    for second in range(60):
        assert not is_let_in(world.door, new_key("acme"))
        assert world.door_calls.look_ups == 1 + second // 5
        world.clock.forward(1)


def test_a_revoked_key_costs_one_look_up_a_minute(world: World) -> None:
    issued = world.ring.issue("acme")
    world.ring.revoke("acme", issued.id)

    for _ in range(60):
        assert not is_let_in(world.door, issued.key)
        world.clock.forward(1)
    assert world.door_calls.look_ups == 1


def test_a_clock_that_is_set_back_does_not_prolong_what_is_remembered(world: World) -> None:
    issued = world.ring.issue("acme")
    assert is_let_in(world.door, issued.key)
    world.ring.revoke("acme", issued.id)

    world.clock.forward(-3600)
    assert not is_let_in(world.door, issued.key)


FAILURES = {
    "throttled": refusal("ThrottlingException"),
    "not allowed": refusal("AccessDeniedException"),
    "a fault of theirs": refusal("InternalServiceError"),
    "no decryption": refusal("DecryptionFailure"),
    "an error without a code": ClientError({}, "GetSecretValue"),
    "too slow": ReadTimeoutError(endpoint_url="https://example.invalid"),
    "not there": EndpointConnectionError(endpoint_url="https://example.invalid"),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_a_failure_of_secrets_manager_is_answered_as_ours_and_not_remembered(
    world: World, failure: Exception
) -> None:
    issued = world.ring.issue("acme")
    world.door_calls.before["get_secret_value"] = failure

    with pytest.raises(ServiceUnavailable) as unavailable:
        world.door.organisation_of(bearer(issued.key))
    assert unavailable.value.__cause__ is failure
    assert UPSTREAM_TEXT not in f"{unavailable.value} {unavailable.value.body()}"

    world.door_calls.before.clear()
    assert is_let_in(world.door, issued.key)


def test_an_outage_is_bridged_for_60_s_and_not_longer(world: World) -> None:
    issued = world.ring.issue("acme")
    assert is_let_in(world.door, issued.key)
    world.door_calls.before["get_secret_value"] = refusal("InternalServiceError")

    world.clock.forward(59)
    assert is_let_in(world.door, issued.key)
    world.clock.forward(1)
    assert not is_available(world.door, issued.key)


@pytest.mark.parametrize(
    "value",
    [
        "gg_pasted-by-hand",
        "",
        "null",
        "[]",
        '"keys"',
        "{}",
        '{"keys": null}',
        '{"keys": {}}',
        '{"keys": ' + "[" * 20_000,
        '{"keys": [' + "9" * 10_000 + "]}",
    ],
    ids=lambda value: value[:20],
)
def test_an_unreadable_secret_is_an_operators_fault_and_its_content_stays_inside(
    world: World, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.create(value or " ")

    with pytest.raises(ServiceUnavailable) as unavailable:
        world.door.organisation_of(bearer(new_key("acme")))

    assert caplog.messages == ["the secret with the keys of acme is malformed"]
    assert "pasted" not in f"{unavailable.value!r} {unavailable.value.__cause__!r} {caplog.text}"


def test_a_binary_secret_is_an_operators_fault(world: World) -> None:
    world.client.create_secret(Name=world.prefix + "acme", SecretBinary=b"\xff\x00")

    assert not is_available(world.door, new_key("acme"))
    with pytest.raises(SecretUnusable):
        world.ring.issue("acme")


BAD_RECORDS = {
    "no object": lambda _key: "a key was here",
    "null": lambda _key: None,
    "no id": lambda key: {"sha256": record_of(key)["sha256"]},
    "no revokedAt": lambda key: {k: v for k, v in record_of(key).items() if k != "revokedAt"},
    "an expiry without an offset": lambda key: record_of(key, expiresAt="2030-01-01T00:00:00"),
    "an expiry in numbers": lambda key: record_of(key, expiresAt=1_900_000_000),
    "a revocation in words": lambda key: record_of(key, revokedAt="yesterday"),
    "false for no revocation": lambda key: record_of(key, revokedAt=False),
    "a hash in capitals": lambda key: record_of(key, sha256=str(record_of(key)["sha256"]).upper()),
    "the key for its hash": lambda key: record_of(key, sha256=key),
}


@pytest.mark.parametrize("bad_record", BAD_RECORDS.values(), ids=BAD_RECORDS.keys())
def test_a_bad_record_opens_nothing_and_leaves_its_neighbours_alone(
    world: World, bad_record: Callable[[str], object], caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = new_key("acme"), new_key("acme")
    stored = [record_of(good), bad_record(bad)]
    world.create(json.dumps({"keys": stored}))

    assert world.opens(good)
    assert not world.opens(bad)
    assert set(caplog.messages) == {"record 2 of the keys of acme is invalid"}

    world.ring.issue("acme")
    assert world.stored()[:2] == stored
    assert world.ring.list("acme")[0].id == "key_000000000000"


def test_times_of_any_offset_are_understood(world: World) -> None:
    early, late = new_key("acme"), new_key("acme")
    keys = [
        record_of(early, expiresAt="2026-11-22T23:09:59+01:00"),
        record_of(late, expiresAt="2026-11-22T23:10:01.5+01:00"),
    ]
    world.create(json.dumps({"keys": keys}))

    assert (world.opens(early), world.opens(late)) == (False, True)


class Nothing:
    """A Secrets Manager without secrets that counts how often each is asked for."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def get_secret_value(self, **arguments: str) -> object:
        self.asked[arguments["SecretId"]] += 1
        raise refusal("ResourceNotFoundException")


def test_memory_is_bounded_however_many_organisations_are_made_up() -> None:
    nothing, clock = Nothing(), Clock()
    door = KeyVerifier(cast("SecretsManagerClient", nothing), "", clock)
    keys = [new_key(f"org{n}") for n in range(MAX_CACHED_ORGANISATIONS + 1)]

    def ask(key: str) -> None:
        assert not is_let_in(door, key)

    ask(keys[0])
    clock.forward(60)
    for key in (*keys[1:-1], keys[0], keys[-1]):
        ask(key)
    for key in (keys[-1], keys[0], keys[1]):
        ask(key)

    # The second organisation had not been looked up for the longest time and made room.
    assert [nothing.asked[name] for name in ("org10000", "org0", "org1")] == [1, 2, 2]


def test_many_threads_with_one_key_and_nothing_remembered_share_one_look_up(world: World) -> None:
    issued = world.ring.issue("acme")
    world.door_calls.before["get_secret_value"] = lambda: time.sleep(0.05)
    together = threading.Barrier(32)

    def ask(_: int) -> str:
        together.wait(10)
        return world.door.organisation_of(bearer(issued.key))

    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(ask, range(32)))

    assert answers == ["acme"] * 32
    assert world.door_calls.look_ups == 1


def test_threads_that_share_a_failed_look_up_are_all_told_and_none_waits_on(world: World) -> None:
    issued = world.ring.issue("acme")
    together = threading.Barrier(8)

    def fail_slowly() -> None:
        time.sleep(0.05)
        raise refusal("InternalServiceError")

    def ask(_: int) -> bool:
        together.wait(10)
        return is_available(world.door, issued.key)

    world.door_calls.before["get_secret_value"] = fail_slowly
    began_at = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(8)))
    assert answers == [False] * 8
    assert time.monotonic() - began_at < 5

    world.door_calls.before.clear()
    assert is_let_in(world.door, issued.key)


# What an operator can do


def test_issuing_stores_the_hash_and_nothing_else_of_the_key(world: World) -> None:
    issued = world.ring.issue("acme", expires_at=START + DAY)

    assert json.loads(world.text()) == {
        "keys": [
            {
                "id": issued.id,
                "sha256": hashlib.sha256(issued.key.encode()).hexdigest(),
                "createdAt": "2026-11-22T22:10:00Z",
                "expiresAt": "2026-11-23T22:10:00Z",
                "revokedAt": None,
            }
        ]
    }
    assert issued.key[-49:] not in world.text()
    assert issued.id.startswith("key_")
    assert len(issued.id) == 16


def test_a_key_appears_in_no_repr_no_log_and_no_error(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    issued = [world.ring.issue("acme") for _ in range(4)]
    rotated = world.ring.rotate("acme", grace=DAY)
    assert rotated is not None
    issued.append(rotated)
    seen: list[object] = [*issued, *world.ring.list("acme"), world.ring, world.door]
    for one in issued:
        world.door.organisation_of(bearer(one.key))
        seen.append(world.ring.revoke("acme", one.id))
        with pytest.raises(Unauthorized) as refused:
            world.another_door().organisation_of(bearer(one.key))
        seen.append(refused.value)

    everything = "\n".join([caplog.text, world.text(), *map(repr, seen), *map(str, seen)])
    assert "secretsmanager" in caplog.text
    for one in issued:
        assert one.key not in everything
        assert one.key[-49:] not in everything


def test_an_organisation_has_at_most_five_live_keys(world: World) -> None:
    issued = [world.ring.issue("acme", expires_at=START + DAY)]
    issued += [world.ring.issue("acme") for _ in range(4)]

    with pytest.raises(TooManyLiveKeys, match=r"5 live keys .* revoke one"):
        world.ring.issue("acme")
    assert [stored["id"] for stored in world.stored()] == [one.id for one in issued]

    world.ring.revoke("acme", issued[1].id)
    world.ring.issue("acme")
    world.clock.forward(DAY.total_seconds())
    world.ring.issue("acme")
    with pytest.raises(TooManyLiveKeys):
        world.ring.issue("acme")


@pytest.mark.parametrize(
    "expires_at", [START, START - DAY, START.replace(tzinfo=None) + DAY], ids=str
)
def test_a_key_can_not_be_issued_with_an_expiry_that_is_past_or_ambiguous(
    world: World, expires_at: datetime
) -> None:
    with pytest.raises(InvalidArgument, match="expiry"):
        world.ring.issue("acme", expires_at=expires_at)

    assert not world.ring_calls.calls


def test_fields_that_others_added_survive_every_change(world: World) -> None:
    issued = world.ring.issue("acme")
    [stored] = world.stored()
    extra = {"note": "for the web shop", "tags": ["a"]}
    world.put(json.dumps({"owner": "ops", "keys": [stored | extra]}))

    world.ring.issue("acme")
    world.ring.rotate("acme", grace=DAY)
    world.ring.revoke("acme", issued.id)

    assert json.loads(world.text())["owner"] == "ops"
    assert world.stored()[0].items() >= extra.items()
    assert world.stored()[0]["revokedAt"] == "2026-11-22T22:10:00Z"


def test_keys_are_listed_oldest_first_with_their_times(world: World) -> None:
    first = world.ring.issue("acme")
    world.clock.forward(1)
    second = world.ring.issue("acme", expires_at=START + DAY)
    world.put(json.dumps({"keys": world.stored()[::-1]}))

    listed = world.ring.list("acme")

    assert [record.id for record in listed] == [first.id, second.id]
    assert listed[0].created_at == START
    assert listed[1].expires_at == START + DAY
    assert all(record.is_live(world.clock.moment) for record in listed)


def test_a_mistyped_organisation_is_told_and_no_secret_is_made_for_it(world: World) -> None:
    asks: list[Callable[[], object]] = [
        lambda: world.ring.list("amce"),
        lambda: world.ring.rotate("amce", grace=DAY),
        lambda: world.ring.revoke("amce", "key_000000000000"),
    ]
    for ask in asks:
        with pytest.raises(UnknownOrganisation, match="check the name, or issue its first key"):
            ask()

    assert world.ring_calls.calls["create_secret"] == 0


def test_revoking_twice_keeps_the_first_time(world: World) -> None:
    issued = world.ring.issue("acme")
    first = world.ring.revoke("acme", issued.id)
    world.clock.forward(3600)

    second = world.ring.revoke("acme", issued.id)

    assert first == second
    assert first.revoked_at == START
    assert world.ring_calls.calls["put_secret_value"] == 1


def test_revoking_one_key_leaves_the_others_alone(world: World) -> None:
    one, other = world.ring.issue("acme"), world.ring.issue("acme")

    world.ring.revoke("acme", one.id)

    assert (world.opens(one.key), world.opens(other.key)) == (False, True)


def test_revoking_an_unknown_key_is_told(world: World) -> None:
    issued = world.ring.issue("acme")

    with pytest.raises(UnknownKey, match="list its keys"):
        world.ring.revoke("acme", "key_000000000000")
    assert world.opens(issued.key)


def rotate(world: World, grace: timedelta = DAY) -> IssuedKey:
    issued = world.ring.rotate("acme", grace=grace)
    assert issued is not None
    return issued


def test_after_a_rotation_old_and_new_work_until_the_grace_period_ends(world: World) -> None:
    old = [world.ring.issue("acme"), world.ring.issue("acme")]

    new = rotate(world)

    assert all(world.opens(one.key) for one in (*old, new))
    world.clock.forward(DAY.total_seconds() - 1)
    assert all(world.opens(one.key) for one in (*old, new))
    world.clock.forward(1)
    assert [world.opens(one.key) for one in (*old, new)] == [False, False, True]


def test_a_rotation_never_prolongs_a_key_nor_wakes_a_dead_one(world: World) -> None:
    soon = world.ring.issue("acme", expires_at=START + timedelta(hours=1))
    revoked = world.ring.issue("acme")
    world.ring.revoke("acme", revoked.id)
    world.clock.forward(60)

    rotate(world)

    assert [stored["expiresAt"] for stored in world.stored()] == [
        "2026-11-22T23:10:00Z",
        None,
        None,
    ]
    world.clock.forward(3600)
    assert not world.opens(soon.key)


def test_a_second_rotation_within_the_grace_period_changes_nothing(world: World) -> None:
    world.ring.issue("acme")
    world.clock.forward(30 * DAY.total_seconds())
    new = rotate(world)
    before = world.text()

    for _ in range(10):
        world.clock.forward(3600)
        assert world.ring.rotate("acme", grace=DAY) is None

    assert world.text() == before
    world.clock.forward(30 * DAY.total_seconds())
    assert world.opens(new.key)


def test_a_rotation_whose_key_nobody_saw_is_made_again_after_revoking_that_key(
    world: World,
) -> None:
    old = world.ring.issue("acme")
    unseen = rotate(world)
    world.clock.forward(600)
    assert world.ring.rotate("acme", grace=DAY) is None

    world.ring.revoke("acme", unseen.id)
    seen = rotate(world)

    assert world.opens(old.key)
    world.clock.forward(DAY.total_seconds() - 600)
    assert [world.opens(one.key) for one in (old, unseen, seen)] == [False, False, True]


def test_after_the_grace_period_a_rotation_is_a_new_one(world: World) -> None:
    world.ring.issue("acme")
    first = rotate(world)
    world.clock.forward(DAY.total_seconds())

    second = rotate(world)

    world.clock.forward(DAY.total_seconds())
    assert (world.opens(first.key), world.opens(second.key)) == (False, True)


def test_the_first_key_can_be_rotated_at_once(world: World) -> None:
    leaked = world.ring.issue("acme")

    new = rotate(world, timedelta(minutes=1))

    world.clock.forward(60)
    assert (world.opens(leaked.key), world.opens(new.key)) == (False, True)


def test_an_old_lasting_key_is_rotated_though_its_neighbours_end_soon(world: World) -> None:
    lasting = world.ring.issue("acme")
    world.clock.forward(3600)
    world.ring.issue("acme", expires_at=world.clock.moment + timedelta(hours=1))

    new = rotate(world)

    world.clock.forward(DAY.total_seconds())
    assert (world.opens(lasting.key), world.opens(new.key)) == (False, True)


def test_an_old_lasting_key_is_rotated_though_an_older_one_ends_soon(world: World) -> None:
    world.ring.issue("acme", expires_at=START + 30 * DAY)
    world.clock.forward(1)
    lasting = world.ring.issue("acme")
    world.clock.forward(29.5 * DAY.total_seconds())

    new = rotate(world)

    world.clock.forward(DAY.total_seconds())
    assert (world.opens(lasting.key), world.opens(new.key)) == (False, True)


def test_a_rotation_makes_a_lasting_key_where_all_keys_end_soon(world: World) -> None:
    for _ in range(2):
        world.ring.issue("acme", expires_at=START + timedelta(hours=1))
        world.clock.forward(1)

    new = rotate(world)

    world.clock.forward(DAY.total_seconds())
    assert world.opens(new.key)


def test_a_rotation_needs_room_for_the_new_key_and_says_so(world: World) -> None:
    issued = [world.ring.issue("acme") for _ in range(5)]
    before = world.text()

    with pytest.raises(TooManyLiveKeys, match="revoke one"):
        world.ring.rotate("acme", grace=DAY)
    assert world.text() == before

    world.ring.revoke("acme", issued[0].id)
    rotate(world)
    assert sum(record.is_live(START) for record in world.ring.list("acme")) == 5


@pytest.mark.parametrize(
    "grace", [-DAY, timedelta(0), timedelta(seconds=59), timedelta(days=91), timedelta.max], ids=str
)
def test_a_grace_period_is_a_minute_to_90_days(world: World, grace: timedelta) -> None:
    world.ring.issue("acme")

    with pytest.raises(InvalidArgument, match="between one minute and 90 days"):
        world.ring.rotate("acme", grace=grace)
    assert world.stored()[0]["expiresAt"] is None


def test_records_dead_for_over_90_days_go_when_a_key_is_issued(world: World) -> None:
    revoked, expired, live = (world.ring.issue("acme") for _ in range(3))
    world.ring.revoke("acme", revoked.id)
    world.clock.forward(DAY.total_seconds())
    rotated = world.ring.rotate("acme", grace=DAY)
    world.clock.forward(90 * DAY.total_seconds())
    assert rotated is not None

    world.ring.issue("acme")

    ids = [stored["id"] for stored in world.stored()]
    assert revoked.id not in ids
    assert {expired.id, live.id, rotated.id} <= set(ids)
    world.clock.forward(DAY.total_seconds() + 1)
    world.ring.issue("acme")
    ids = [stored["id"] for stored in world.stored()]
    assert expired.id not in ids
    assert rotated.id in ids


def test_a_secret_stays_small_however_many_keys_were_revoked_lately(world: World) -> None:
    live = new_key("acme")
    dead = [
        record_of(new_key("acme"), id=f"key_{n:012}", revokedAt=f"2026-11-22T2{n % 2}:00:00Z")
        for n in range(200)
    ]
    world.create(json.dumps({"keys": [*dead, record_of(live)]}))

    world.ring.issue("acme")

    stored = world.stored()
    assert len(stored) == 100
    assert {one["revokedAt"] for one in stored} == {None, "2026-11-22T21:00:00Z"}
    assert len(world.text().encode()) < 32 * 1024
    assert world.opens(live)


# When Secrets Manager or another operator comes between


def test_two_operators_who_issue_the_first_key_at_once_both_succeed(world: World) -> None:
    other = world.operator(Watched(world.client))
    theirs: list[IssuedKey] = []
    world.ring_calls.before["create_secret"] = lambda: theirs.append(other.issue("acme"))

    ours = world.ring.issue("acme")

    assert [stored["id"] for stored in world.stored()] == [theirs[0].id, ours.id]
    assert world.opens(ours.key)
    assert world.opens(theirs[0].key)


def test_a_change_that_another_operator_overwrote_is_made_again(world: World) -> None:
    leaked = world.ring.issue("acme")
    before = json.loads(world.text())["keys"]
    added = record_of(new_key("acme"))

    def overwritten() -> None:
        world.ring_calls.after.clear()
        world.put(json.dumps({"keys": [*before, added]}))

    world.ring_calls.after["put_secret_value"] = overwritten
    world.ring.revoke("acme", leaked.id)

    assert not world.opens(leaked.key)
    assert world.stored()[1] == added


def test_two_rotations_at_once_make_one_key(world: World) -> None:
    old = world.ring.issue("acme")
    other = world.operator(Watched(world.client))
    before = world.text()
    theirs: list[IssuedKey | None] = []

    def overtaken() -> None:
        world.ring_calls.after.clear()
        world.put(before)
        theirs.append(other.rotate("acme", grace=DAY))

    world.ring_calls.after["put_secret_value"] = overtaken
    assert world.ring.rotate("acme", grace=DAY) is None

    assert theirs[0] is not None
    assert [stored["id"] for stored in world.stored()] == [old.id, theirs[0].id]


def test_a_change_that_is_overwritten_every_time_is_given_up_with_advice(world: World) -> None:
    issued = world.ring.issue("acme")
    before = world.text()
    world.ring_calls.after["put_secret_value"] = lambda: world.put(before)

    with pytest.raises(EditLost, match="another operator is changing them"):
        world.ring.revoke("acme", issued.id)
    assert world.ring_calls.calls["put_secret_value"] == 4
    assert 0 < sum(world.pauses) < 5


def test_the_last_cause_is_the_one_that_is_told(world: World) -> None:
    issued = world.ring.issue("acme")
    before = world.text()

    def once() -> None:
        world.ring_calls.before.clear()
        raise FAILURES["not there"]

    world.ring_calls.before["put_secret_value"] = once
    world.ring_calls.after["put_secret_value"] = lambda: world.put(before)

    with pytest.raises(EditLost):
        world.ring.revoke("acme", issued.id)


def test_a_write_whose_answer_is_lost_is_not_made_twice(world: World) -> None:
    world.ring.issue("acme")
    world.ring_calls.after["put_secret_value"] = FAILURES["too slow"]

    issued = world.ring.issue("acme")

    assert world.ring_calls.calls["put_secret_value"] == 1
    assert [stored["id"] for stored in world.stored()][1:] == [issued.id]
    assert world.opens(issued.key)


def test_a_write_that_never_arrived_is_made_again_under_the_same_token(world: World) -> None:
    world.ring.issue("acme")

    def once() -> None:
        world.ring_calls.before.clear()
        raise FAILURES["not there"]

    world.ring_calls.before["put_secret_value"] = once
    issued = world.ring.issue("acme")

    assert world.opens(issued.key)
    assert len(world.ring_calls.tokens) == 2
    assert len(set(world.ring_calls.tokens)) == 1


def test_writes_that_never_arrive_are_given_up_with_advice(world: World) -> None:
    world.ring.issue("acme")
    world.ring_calls.before["put_secret_value"] = FAILURES["not there"]

    with pytest.raises(SecretsManagerFailed, match="list the keys before you try again") as failed:
        world.ring.issue("acme")

    assert failed.value.__cause__ is FAILURES["not there"]
    assert len(world.stored()) == 1


@pytest.mark.parametrize("call", ["get_secret_value", "put_secret_value"])
def test_a_refusal_is_told_by_its_code_and_without_its_text(world: World, call: str) -> None:
    world.ring.issue("acme")
    world.ring_calls.before[call] = refusal("AccessDeniedException")

    with pytest.raises(SecretsManagerFailed, match="AccessDeniedException") as failed:
        world.ring.issue("acme")

    assert UPSTREAM_TEXT not in str(failed.value)
    assert len(world.stored()) == 1


def test_an_unanswered_reading_is_told(world: World) -> None:
    world.ring_calls.before["get_secret_value"] = FAILURES["too slow"]

    with pytest.raises(SecretsManagerFailed, match="ReadTimeoutError"):
        world.ring.list("acme")


def test_a_secret_that_holds_something_else_is_never_overwritten(world: World) -> None:
    world.create("the-key-of-the-model", "acme")

    for ask in (world.ring.issue, world.ring.list):
        with pytest.raises(SecretUnusable, match="left as it is") as unusable:
            ask("acme")
        assert "the-key-of-the-model" not in str(unusable.value)
    assert world.text() == "the-key-of-the-model"


def test_a_secret_marked_for_deletion_is_to_be_restored_first(world: World) -> None:
    world.ring.issue("acme")
    world.delete()

    with pytest.raises(SecretUnusable, match="restore it"):
        world.ring.issue("acme")


def test_a_secret_without_a_value_is_told(world: World) -> None:
    world.client.create_secret(Name=world.prefix + "acme")

    assert not world.opens(new_key("acme"))
    with pytest.raises(EditLost, match="created without a value"):
        world.ring.issue("acme")
