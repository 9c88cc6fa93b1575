"""API keys: their format, the verification of a request, and the operator's key ring."""

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
    BudgetsDiffer,
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
from lib.keys.verification import MAX_CACHED_ORGANISATIONS, DeadKey, KeyVerifier, VerifiedKey
from tests.world import Clock

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


class CountingClient:
    """Passes calls on to a real client and counts them.

    ``before`` and ``after`` map a call's name to an event: an exception that is raised each time,
    or a function that is called.
    """

    def __init__(self, client: SecretsManagerClient) -> None:
        self.client = client
        self.calls: Counter[str] = Counter()
        self.tokens: list[str] = []
        self.before: dict[str, Exception | Callable[[], object]] = {}
        self.after: dict[str, Exception | Callable[[], object]] = {}

    @property
    def lookups(self) -> int:
        return self.calls["get_secret_value"]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            self.calls[name] += 1
            if name == "put_secret_value":
                self.tokens.append(arguments["ClientRequestToken"])
            self._trigger(self.before.get(name))
            answer = getattr(self.client, name)(**arguments)
            self._trigger(self.after.get(name))
            return answer

        return call

    @staticmethod
    def _trigger(event: Exception | Callable[[], object] | None) -> None:
        if isinstance(event, Exception):
            raise event
        if event is not None:
            event()


class KeyStore:
    """The verifier, the key ring and the secrets of one test, in one Secrets Manager."""

    def __init__(self, client: SecretsManagerClient, prefix: str) -> None:
        self.client = client
        self.prefix = prefix
        self.clock = Clock(START.timestamp())
        self.pauses: list[float] = []
        self.verifier_calls = CountingClient(client)
        self.ring_calls = CountingClient(client)
        self.verifier = self.new_verifier()
        self.ring = self.new_ring(self.ring_calls)

    def new_verifier(self) -> KeyVerifier:
        counting = cast("SecretsManagerClient", self.verifier_calls)
        return KeyVerifier(counting, self.prefix, self.clock)

    def new_ring(self, calls: CountingClient) -> KeyRing:
        counting = cast("SecretsManagerClient", calls)
        return KeyRing(counting, self.prefix, self.clock, self.pauses.append)

    def accepts(self, *issued: str | IssuedKey) -> list[bool]:
        """Whether a process with an empty cache accepts each of the keys."""
        keys = [each if isinstance(each, str) else each.key for each in issued]
        return [is_accepted(self.new_verifier(), key) for key in keys]

    def verified(self, issued: IssuedKey) -> VerifiedKey:
        """What a process with an empty cache knows of the key."""
        return self.new_verifier().verify(f"Bearer {issued.key}")

    def text(self) -> str:
        name = f"{self.prefix}acme"
        answer = self.client.get_secret_value(SecretId=name, VersionStage="AWSCURRENT")
        return answer["SecretString"]

    def stored(self) -> list[Any]:
        keys = json.loads(self.text())["keys"]
        assert isinstance(keys, list)
        return keys

    def put(self, value: str) -> None:
        self.client.put_secret_value(SecretId=f"{self.prefix}acme", SecretString=value)

    def create(self, value: str) -> None:
        self.client.create_secret(Name=f"{self.prefix}acme", SecretString=value)

    def delete(self) -> None:
        self.client.delete_secret(SecretId=f"{self.prefix}acme")


@pytest.fixture(scope="module")
def secrets_manager() -> Iterator[SecretsManagerClient]:
    with pytest.MonkeyPatch.context() as environment, mock_aws():
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SECRETS_MANAGER"):
            environment.delenv(name, raising=False)
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        yield boto3.client("secretsmanager", region_name="us-east-1")


@pytest.fixture
def store(secrets_manager: SecretsManagerClient, request: pytest.FixtureRequest) -> KeyStore:
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    return KeyStore(secrets_manager, f"{name}/orgs/")


def is_accepted(verifier: KeyVerifier, key: str) -> bool:
    try:
        verifier.verify(f"Bearer {key}")
    except Unauthorized:
        return False
    return True


def is_available(verifier: KeyVerifier, key: str) -> bool:
    try:
        verifier.verify(f"Bearer {key}")
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


def test_a_known_key_ends_in_the_checksum_that_gzip_computes() -> None:
    # 142878032 is the CRC-32 that gzip writes after these 51 characters: 9fV7A in base 62.
    assert parse_key(WELL_FORMED) == "acme"
    assert WELL_FORMED[-6:] == checksum_by_polynomial(WELL_FORMED[:-6])


@pure
@given(organisations)
def test_every_new_key_names_its_organisation(organisation: str) -> None:
    key = new_key(organisation)
    assert is_organisation(organisation)
    assert parse_key(key) == organisation
    assert key.startswith(f"gg_{organisation}_")
    assert len(key) == len(f"gg_{organisation}_") + 43 + 6
    assert key[-6:] == checksum_by_polynomial(key[:-6])


@pure
@given(organisations, st.data())
def test_one_changed_character_invalidates_a_key(organisation: str, data: st.DataObject) -> None:
    key = new_key(organisation)
    position = data.draw(st.integers(0, len(key) - 1))
    other = data.draw(st.sampled_from(BASE62 + "_-") | st.characters())
    assume(other != key[position])
    assert parse_key(key[:position] + other + key[position + 1 :]) is None


BODIES = [
    *("gg_Acme_" + "0" * 43, "gg__acme_" + "0" * 43, "gg__" + "0" * 43, "acme_" + "0" * 43),
    *("gg_" + "a" * 64 + "_" + "0" * 43, "gg_acme_" + "0" * 42, "gg_acme_" + "0" * 42 + "-"),
    "gg_acme_" + "0" * 42 + "\u0663",
]
MALFORMED_KEYS = [
    *(WELL_FORMED + "\n", " " + WELL_FORMED, "GG" + WELL_FORMED[2:], WELL_FORMED * 100_000),
    *(body + checksum_by_polynomial(body) for body in BODIES),
]


@pytest.mark.parametrize("text", MALFORMED_KEYS, ids=lambda text: ascii(text[:24]))
def test_a_malformed_key_is_refused_even_with_a_correct_checksum(text: str) -> None:
    assert parse_key(text) is None


@pytest.mark.parametrize("name", [*("", "A", "_a", "-a", "a" * 64, "a/b", "a.b", "a\n", "\u0661")])
def test_an_invalid_organisation_name_is_refused_without_a_call(name: str, store: KeyStore) -> None:
    assert not is_organisation(name)
    with pytest.raises(ValueError, match="organisation"):
        new_key(name)
    for ask in (store.ring.issue, store.ring.list):
        with pytest.raises(InvalidArgument, match="a-z, 0-9"):
            ask(name)
    assert not store.ring_calls.calls


def test_keys_are_unique() -> None:
    assert len({new_key("acme") for _ in range(500)}) == 500


# Verification


@pytest.mark.parametrize("organisation", ["acme", "a_b", "acme_eu_1", "a-b_", "0"])
@pytest.mark.parametrize("scheme", ["Bearer ", "BEARER  ", " bEaReR\t"])
def test_a_live_key_authenticates_its_organisation_whatever_the_case_of_the_scheme(
    store: KeyStore, organisation: str, scheme: str
) -> None:
    issued = store.ring.issue(organisation)
    assert store.verifier.verify(scheme + issued.key) == VerifiedKey(
        organisation, issued.id, meter=issued.id
    )


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
    "longer than any valid header": "Bearer " + " " * 250 + WELL_FORMED,
    "very long": "Bearer " + "a" * 1_000_000,
}


@pytest.mark.parametrize("header", MALFORMED_HEADERS.values(), ids=MALFORMED_HEADERS.keys())
def test_a_malformed_header_costs_no_lookup(store: KeyStore, header: str | None) -> None:
    with pytest.raises(Unauthorized):
        store.verifier.verify(header)
    assert store.verifier_calls.lookups == 0


def test_a_key_of_a_deleted_secret_is_refused(store: KeyStore) -> None:
    issued = store.ring.issue("acme")
    store.delete()
    assert store.accepts(issued) == [False]


def revoked_key(store: KeyStore) -> str:
    issued = store.ring.issue("acme")
    store.ring.revoke("acme", issued.id)
    return issued.key


@pytest.mark.parametrize(
    ("prepare", "seconds"),
    [
        (lambda store: store.ring.issue("acme").key, 60),
        (revoked_key, 60),
        # The same for both, or the time of a response would tell which organisations exist.
        (lambda _: new_key("unknown"), 5),
        (lambda store: new_key("acme") if store.ring.issue("acme") else "", 5),
    ],
    ids=["a live key", "a revoked key", "a guess for an unknown organisation", "a guess"],
)
def test_a_key_costs_at_most_one_lookup_in_so_many_seconds(
    store: KeyStore, prepare: Callable[[KeyStore], str], seconds: int
) -> None:
    key = prepare(store)
    for second in range(120):
        is_accepted(store.verifier, key)
        assert store.verifier_calls.lookups == 1 + second // seconds
        store.clock.sleep(1)


def test_a_revocation_takes_effect_within_60_s_or_in_a_new_process(
    store: KeyStore,
) -> None:
    issued = store.ring.issue("acme")
    assert is_accepted(store.verifier, issued.key)
    store.ring.revoke("acme", issued.id)
    store.clock.sleep(59.9)
    assert is_accepted(store.verifier, issued.key)
    assert store.accepts(issued) == [False]
    store.clock.sleep(0.1)
    assert not is_accepted(store.verifier, issued.key)


def test_the_60_s_start_when_the_lookup_is_sent(store: KeyStore) -> None:
    issued = store.ring.issue("acme")

    def revoke_while_the_response_travels() -> None:
        store.ring.revoke("acme", issued.id)
        store.clock.sleep(10)

    store.verifier_calls.after["get_secret_value"] = revoke_while_the_response_travels
    assert is_accepted(store.verifier, issued.key)
    store.verifier_calls.after.clear()

    store.clock.sleep(50)
    assert not is_accepted(store.verifier, issued.key)


def test_a_revocation_dated_in_the_future_takes_effect_at_once(store: KeyStore) -> None:
    key = new_key("acme")
    store.create(json.dumps({"keys": [record_of(key, revokedAt="2026-11-22T23:00:00Z")]}))
    assert store.accepts(key) == [False]


def test_an_expiry_takes_effect_at_its_second_although_the_key_is_cached(store: KeyStore) -> None:
    issued = store.ring.issue("acme", expires_at=START + timedelta(seconds=30))
    store.clock.sleep(29.9)
    assert is_accepted(store.verifier, issued.key)
    store.clock.sleep(0.1)
    assert not is_accepted(store.verifier, issued.key)
    assert store.verifier_calls.lookups == 1


@pytest.mark.parametrize("is_known", [True, False])
def test_a_new_key_works_within_5_s_although_its_organisation_is_cached(
    store: KeyStore, *, is_known: bool
) -> None:
    earlier = store.ring.issue("acme").key if is_known else new_key("acme")
    assert is_accepted(store.verifier, earlier) is is_known
    new = store.ring.issue("acme")
    store.clock.sleep(5)
    assert is_accepted(store.verifier, new.key)


def test_a_clock_that_is_set_back_does_not_extend_the_cache(store: KeyStore) -> None:
    issued = store.ring.issue("acme")
    assert is_accepted(store.verifier, issued.key)
    store.ring.revoke("acme", issued.id)
    store.clock.sleep(-3600)
    assert not is_accepted(store.verifier, issued.key)


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_a_key_that_has_ended_is_told_apart_from_a_guess_for_the_operator_only(
    store: KeyStore, end: str
) -> None:
    issued = store.ring.issue("acme", expires_at=START + timedelta(seconds=30))
    if end == "revoked":
        store.ring.revoke("acme", issued.id)
    store.clock.sleep(30)
    with pytest.raises(Unauthorized) as unknown:
        store.verifier.verify(f"Bearer {new_key('acme')}")
    with pytest.raises(DeadKey) as ended:
        store.verifier.verify(f"Bearer {issued.key}")
    assert (ended.value.organisation, ended.value.key_id) == ("acme", issued.id)
    assert not isinstance(unknown.value, DeadKey)
    for told in (ended.value, unknown.value):
        assert (told.status, told.body()) == (401, {"error": "Invalid or missing API key"})
        assert told.headers() == unknown.value.headers()


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
def test_a_fault_of_secrets_manager_is_a_500_and_is_not_cached(
    store: KeyStore, failure: Exception
) -> None:
    issued = store.ring.issue("acme")
    store.verifier_calls.before["get_secret_value"] = failure
    with pytest.raises(ServiceUnavailable) as unavailable:
        store.verifier.verify(f"Bearer {issued.key}")
    assert unavailable.value.__cause__ is failure
    assert UPSTREAM_TEXT not in f"{unavailable.value} {unavailable.value.body()}"
    store.verifier_calls.before.clear()
    assert is_accepted(store.verifier, issued.key)


def test_the_cache_bridges_an_outage_for_60_s(store: KeyStore) -> None:
    issued = store.ring.issue("acme")
    assert is_accepted(store.verifier, issued.key)
    store.verifier_calls.before["get_secret_value"] = refusal("InternalServiceError")
    store.clock.sleep(59)
    assert is_accepted(store.verifier, issued.key)
    store.clock.sleep(1)
    assert not is_available(store.verifier, issued.key)


UNREADABLE = (
    "gg_pasted-by-hand",
    " ",
    "null",
    "[]",
    '"keys"',
    "{}",
    '{"keys": null}',
    '{"keys": {}}',
)


@pytest.mark.parametrize(
    "value",
    [*UNREADABLE, '{"keys": ' + "[" * 20_000, '{"keys": [' + "9" * 10_000 + "]}"],
    ids=lambda value: value[:20],
)
def test_an_unreadable_secret_is_a_500_and_its_content_is_not_logged(
    store: KeyStore, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.create(value)
    with pytest.raises(ServiceUnavailable) as unavailable:
        store.verifier.verify(f"Bearer {new_key('acme')}")
    assert caplog.messages == ["the secret with the keys of acme is malformed"]
    assert "pasted" not in f"{unavailable.value!r} {unavailable.value.__cause__!r} {caplog.text}"


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
def test_a_bad_record_authenticates_no_request_and_leaves_other_keys_alone(
    store: KeyStore, bad_record: Callable[[str], object], caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = new_key("acme"), new_key("acme")
    stored = [record_of(good), bad_record(bad)]
    store.create(json.dumps({"keys": stored}))
    assert store.accepts(good, bad) == [True, False]
    assert set(caplog.messages) == {"record 2 of the keys of acme is invalid"}
    store.ring.issue("acme")
    assert store.stored()[:2] == stored
    assert store.ring.list("acme")[0].id == "key_000000000000"


def test_an_expiry_may_have_any_utc_offset(store: KeyStore) -> None:
    early, late = new_key("acme"), new_key("acme")
    keys = [
        record_of(early, expiresAt="2026-11-22T23:09:59+01:00"),
        record_of(late, expiresAt="2026-11-22T23:10:01.5+01:00"),
    ]
    store.create(json.dumps({"keys": keys}))
    assert store.accepts(early, late) == [False, True]


class EmptySecretsManager:
    """A Secrets Manager without secrets that counts how often each is asked for."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def get_secret_value(self, **arguments: str) -> object:
        self.asked[arguments["SecretId"]] += 1
        raise refusal("ResourceNotFoundException")


def test_the_cache_is_bounded_and_evicts_the_oldest_lookup() -> None:
    nothing, clock = EmptySecretsManager(), Clock()
    verifier = KeyVerifier(cast("SecretsManagerClient", nothing), "", clock)
    keys = [new_key(f"org{n}") for n in range(MAX_CACHED_ORGANISATIONS + 1)]

    def ask(key: str) -> None:
        assert not is_accepted(verifier, key)

    ask(keys[0])
    clock.sleep(5)
    for key in (*keys[1:-1], keys[0], keys[-1]):
        ask(key)
    for key in (keys[-1], keys[0], keys[1]):
        ask(key)

    assert [nothing.asked[name] for name in ("org10000", "org0", "org1")] == [1, 2, 2]


def test_concurrent_requests_with_an_empty_cache_share_one_lookup(store: KeyStore) -> None:
    issued = store.ring.issue("acme")
    store.verifier_calls.before["get_secret_value"] = lambda: time.sleep(0.05)
    together = threading.Barrier(32)

    def ask(_: int) -> str:
        together.wait(10)
        return store.verifier.verify(f"Bearer {issued.key}").organisation

    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(ask, range(32)))

    assert answers == ["acme"] * 32
    assert store.verifier_calls.lookups == 1


def test_concurrent_requests_that_share_a_failed_lookup_all_fail_at_once(store: KeyStore) -> None:
    issued = store.ring.issue("acme")
    together = threading.Barrier(8)

    def fail_slowly() -> None:
        time.sleep(0.05)
        raise refusal("InternalServiceError")

    def ask(_: int) -> bool:
        together.wait(10)
        return is_available(store.verifier, issued.key)

    store.verifier_calls.before["get_secret_value"] = fail_slowly
    began_at = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(8)))
    assert answers == [False] * 8
    assert time.monotonic() - began_at < 5

    store.verifier_calls.before.clear()
    assert is_accepted(store.verifier, issued.key)


# The key ring


def test_issuing_stores_the_hash_and_not_the_key(store: KeyStore) -> None:
    issued = store.ring.issue("acme", name="ci", expires_at=START + DAY, monthly_budget=500)

    assert json.loads(store.text()) == {
        "keys": [
            {
                "id": issued.id,
                "sha256": hashlib.sha256(issued.key.encode()).hexdigest(),
                "createdAt": "2026-11-22T22:10:00Z",
                "expiresAt": "2026-11-23T22:10:00Z",
                "revokedAt": None,
                "name": "ci",
                "monthlyBudget": 500,
            }
        ]
    }
    assert issued.key[-49:] not in store.text()
    assert issued.id.startswith("key_")
    assert len(issued.id) == 16


def test_a_key_appears_in_no_repr_log_or_error(
    store: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    # The service raises it for its own process.
    caplog.set_level(logging.DEBUG, "botocore")
    caplog.set_level(logging.DEBUG)
    # A test before this one may have silenced it, as the service does.
    caplog.set_level(logging.DEBUG, logger="botocore")
    issued = [store.ring.issue("acme") for _ in range(4)]
    rotated = store.ring.rotate("acme", grace=DAY)
    assert rotated is not None
    issued.append(rotated)
    seen: list[object] = [*issued, *store.ring.list("acme"), store.ring, store.verifier]
    for one in issued:
        store.verifier.verify(f"Bearer {one.key}")
        seen.append(store.ring.revoke("acme", one.id))
        with pytest.raises(Unauthorized) as refused:
            store.new_verifier().verify(f"Bearer {one.key}")
        seen.append(refused.value)

    everything = "\n".join([caplog.text, store.text(), *map(repr, seen), *map(str, seen)])
    assert "secretsmanager" in caplog.text
    for one in issued:
        assert one.key not in everything
        assert one.key[-49:] not in everything


def test_an_organisation_has_at_most_20_live_keys(store: KeyStore) -> None:
    issued = [store.ring.issue("acme", expires_at=START + DAY)]
    issued += [store.ring.issue("acme") for _ in range(19)]

    with pytest.raises(TooManyLiveKeys, match=r"20 live keys .* revoke one"):
        store.ring.issue("acme")
    assert [stored["id"] for stored in store.stored()] == [one.id for one in issued]

    store.ring.revoke("acme", issued[1].id)
    store.ring.issue("acme")
    store.clock.sleep(DAY.total_seconds())
    store.ring.issue("acme")
    with pytest.raises(TooManyLiveKeys):
        store.ring.issue("acme")


@pytest.mark.parametrize(
    "expires_at", [START, START - DAY, START.replace(tzinfo=None) + DAY], ids=str
)
def test_a_past_or_ambiguous_expiry_is_refused(store: KeyStore, expires_at: datetime) -> None:
    with pytest.raises(InvalidArgument, match="expiry"):
        store.ring.issue("acme", expires_at=expires_at)
    assert not store.ring_calls.calls


def test_unknown_fields_survive_every_change(store: KeyStore) -> None:
    issued = store.ring.issue("acme")
    [stored] = store.stored()
    extra = {"note": "for the web shop", "tags": ["a"]}
    store.put(json.dumps({"owner": "ops", "keys": [stored | extra]}))
    store.ring.issue("acme")
    store.ring.rotate("acme", grace=DAY)
    store.ring.revoke("acme", issued.id)
    assert json.loads(store.text())["owner"] == "ops"
    assert store.stored()[0].items() >= extra.items()
    assert store.stored()[0]["revokedAt"] == "2026-11-22T22:10:00Z"


def test_keys_are_listed_oldest_first(store: KeyStore) -> None:
    first = store.ring.issue("acme")
    store.clock.sleep(1)
    second = store.ring.issue("acme", expires_at=START + DAY)
    store.put(json.dumps({"keys": store.stored()[::-1]}))
    listed = store.ring.list("acme")
    assert [record.id for record in listed] == [first.id, second.id]
    assert listed[0].created_at == START
    assert listed[1].expires_at == START + DAY
    assert all(record.is_live(START + timedelta(seconds=1)) for record in listed)


def test_an_unknown_organisation_is_an_error_and_creates_no_secret(store: KeyStore) -> None:
    asks: list[Callable[[], object]] = [
        lambda: store.ring.list("amce"),
        lambda: store.ring.rotate("amce", grace=DAY),
        lambda: store.ring.revoke("amce", "key_000000000000"),
    ]
    for ask in asks:
        with pytest.raises(UnknownOrganisation, match="check the name, or issue its first key"):
            ask()
    assert store.ring_calls.calls["create_secret"] == 0


def test_revoking_a_key_leaves_the_others_alone_and_is_idempotent(store: KeyStore) -> None:
    one, other = store.ring.issue("acme"), store.ring.issue("acme")
    first = store.ring.revoke("acme", one.id)
    store.clock.sleep(3600)
    assert store.ring.revoke("acme", one.id) == first
    with pytest.raises(UnknownKey, match="list its keys"):
        store.ring.revoke("acme", "key_000000000000")
    assert first.revoked_at == START
    assert store.ring_calls.calls["put_secret_value"] == 2
    assert store.accepts(one, other) == [False, True]


def rotate(store: KeyStore) -> IssuedKey:
    issued = store.ring.rotate("acme", grace=DAY)
    assert issued is not None
    return issued


def test_old_keys_work_until_the_grace_period_of_a_rotation_ends(store: KeyStore) -> None:
    old = [store.ring.issue("acme"), store.ring.issue("acme")]
    new = rotate(store)
    assert store.accepts(*old, new) == [True, True, True]
    store.clock.sleep(DAY.total_seconds() - 1)
    assert store.accepts(*old, new) == [True, True, True]
    store.clock.sleep(1)
    assert store.accepts(*old, new) == [False, False, True]
    second = rotate(store)
    store.clock.sleep(DAY.total_seconds())
    assert store.accepts(new, second) == [False, True]


def test_a_rotation_neither_extends_a_key_nor_revives_a_revoked_one(store: KeyStore) -> None:
    soon = store.ring.issue("acme", expires_at=START + timedelta(hours=1))
    store.ring.revoke("acme", store.ring.issue("acme").id)
    store.clock.sleep(60)
    rotate(store)
    expected = ["2026-11-22T23:10:00Z", None, None]
    assert [stored["expiresAt"] for stored in store.stored()] == expected
    store.clock.sleep(3600)
    assert store.accepts(soon) == [False]


def test_a_second_rotation_within_the_grace_period_changes_nothing(store: KeyStore) -> None:
    store.ring.issue("acme")
    store.clock.sleep(30 * DAY.total_seconds())
    new = rotate(store)
    before = store.text()
    for _ in range(10):
        store.clock.sleep(3600)
        assert store.ring.rotate("acme", grace=DAY) is None
    assert store.text() == before
    store.clock.sleep(30 * DAY.total_seconds())
    assert store.accepts(new) == [True]


def test_a_rotation_can_be_repeated_after_its_lost_key_is_revoked(store: KeyStore) -> None:
    old = store.ring.issue("acme")
    lost = rotate(store)
    store.clock.sleep(600)
    assert store.ring.rotate("acme", grace=DAY) is None
    store.ring.revoke("acme", lost.id)
    new = rotate(store)
    assert store.accepts(old) == [True]
    store.clock.sleep(DAY.total_seconds() - 600)
    assert store.accepts(old, lost, new) == [False, False, True]


@pytest.mark.parametrize(
    "expiries_h",
    [(None, 2), (30 * 24, None), (1, 1)],
    ids=["a newer key expires soon", "an older key expires soon", "every key expires soon"],
)
def test_a_rotation_expires_every_old_key_and_makes_one_that_lasts(
    store: KeyStore, expiries_h: tuple[int | None, ...]
) -> None:
    issued = []
    for hours in expiries_h:
        expires_at = None if hours is None else START + timedelta(hours=hours)
        issued.append(store.ring.issue("acme", expires_at=expires_at))
        store.clock.sleep(3599)
    if expiries_h[0] == 30 * 24:
        store.clock.sleep(29.5 * DAY.total_seconds())
    new = rotate(store)
    store.clock.sleep(DAY.total_seconds())
    assert store.accepts(*issued, new) == [False, False, True]


def test_a_rotation_with_20_live_keys_is_refused_and_says_why(store: KeyStore) -> None:
    issued = [store.ring.issue("acme") for _ in range(20)]
    with pytest.raises(TooManyLiveKeys, match="revoke one"):
        store.ring.rotate("acme", grace=DAY)
    store.ring.revoke("acme", issued[0].id)
    rotate(store)
    assert sum(record.is_live(START) for record in store.ring.list("acme")) == 20


def test_a_rotated_key_spends_from_the_budget_of_the_key_that_it_replaces(store: KeyStore) -> None:
    old = store.ring.issue("acme", name="ci", monthly_budget=500)
    other = store.ring.issue("acme", name="web")

    new = store.ring.rotate("acme", grace=DAY, key_id=old.id)
    assert new is not None
    assert store.ring.rotate("acme", grace=DAY, key_id=old.id) is None
    assert store.ring.rotate("acme", grace=DAY, key_id=new.id) is None
    records = {record.id: record for record in store.ring.list("acme")}
    assert (records[new.id].name, records[other.id].expires_at) == ("ci", None)
    for key in (old, new):
        assert store.verified(key) == VerifiedKey("acme", key.id, old.id, 500)
    assert store.verified(other) == VerifiedKey("acme", other.id, other.id, None)

    # Its budget ends neither with a grace period nor with a key that was lost.
    store.clock.sleep(DAY.total_seconds())
    store.ring.revoke("acme", new.id)
    again = store.ring.rotate("acme", grace=DAY, key_id=new.id, name="ci-2")
    assert again is not None
    assert store.verified(again) == VerifiedKey("acme", again.id, old.id, 500)
    assert store.ring.list("acme")[-1].name == "ci-2"


def test_a_rotation_of_all_keys_continues_one_budget_or_is_refused(store: KeyStore) -> None:
    first = store.ring.issue("acme", name="ci", monthly_budget=5)
    second = store.ring.issue("acme")
    with pytest.raises(BudgetsDiffer, match="rotate them one by one"):
        store.ring.rotate("acme", grace=DAY)
    assert [stored["expiresAt"] for stored in store.stored()] == [None, None]

    for key in (second, first):
        store.ring.revoke("acme", key.id)
    # The newest key is a dead one without a budget.
    assert store.verified(rotate(store)).monthly_budget is None


def test_a_changed_budget_counts_within_a_minute_for_all_keys_that_share_it(
    store: KeyStore,
) -> None:
    old = store.ring.issue("acme", monthly_budget=5)
    other = store.ring.issue("acme", monthly_budget=7)
    new = store.ring.rotate("acme", grace=DAY, key_id=old.id)
    assert new is not None
    assert store.verifier.verify(f"Bearer {new.key}").monthly_budget == 5

    for budget in (800, 0, None):
        changed = store.ring.set_budget("acme", old.id, budget)
        assert (changed.id, changed.monthly_budget) == (old.id, budget)
        assert store.verified(old).monthly_budget == budget
        assert store.verified(other).monthly_budget == 7
        store.clock.sleep(60)
        assert store.verifier.verify(f"Bearer {new.key}").monthly_budget == budget
    with pytest.raises(UnknownKey, match="list its keys"):
        store.ring.set_budget("acme", "key_000000000000", 5)
    for nonsense in (-1, 10**9):
        with pytest.raises(InvalidArgument, match="budget"):
            store.ring.set_budget("acme", old.id, nonsense)
        with pytest.raises(InvalidArgument, match="budget"):
            store.ring.issue("acme", monthly_budget=nonsense)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("monthlyBudget", each) for each in ("500", 500.0, -1, True, 10**9)],
        *[("meter", each) for each in (None, "", 7, "a b", "x" * 257)],
    ],
)
def test_a_record_without_a_usable_budget_does_not_authenticate(
    store: KeyStore, field: str, value: object
) -> None:
    issued = store.ring.issue("acme", monthly_budget=500)
    [stored] = store.stored()
    store.put(json.dumps({"keys": [stored | {field: value}]}))
    assert store.accepts(issued) == [False]
    with pytest.raises(UnknownKey):
        store.ring.set_budget("acme", issued.id, None)


@pytest.mark.parametrize(
    "grace", [-DAY, timedelta(0), timedelta(seconds=59), timedelta(days=91), timedelta.max], ids=str
)
def test_a_grace_period_is_between_a_minute_and_90_days(store: KeyStore, grace: timedelta) -> None:
    store.ring.issue("acme")
    with pytest.raises(InvalidArgument, match="between one minute and 90 days"):
        store.ring.rotate("acme", grace=grace)
    assert store.stored()[0]["expiresAt"] is None


def test_issuing_removes_records_that_ended_over_90_days_ago(store: KeyStore) -> None:
    revoked, expired, live = (store.ring.issue("acme") for _ in range(3))
    store.ring.revoke("acme", revoked.id)
    store.clock.sleep(DAY.total_seconds())
    rotated = store.ring.rotate("acme", grace=DAY)
    store.clock.sleep(90 * DAY.total_seconds())
    assert rotated is not None

    store.ring.issue("acme")

    ids = [stored["id"] for stored in store.stored()]
    assert revoked.id not in ids
    assert {expired.id, live.id, rotated.id} <= set(ids)
    store.clock.sleep(DAY.total_seconds() + 1)
    store.ring.issue("acme")
    ids = [stored["id"] for stored in store.stored()]
    assert expired.id not in ids
    assert rotated.id in ids


def test_issuing_keeps_at_most_100_records(store: KeyStore) -> None:
    live = new_key("acme")
    dead = [
        record_of(new_key("acme"), id=f"key_{n:012}", revokedAt=f"2026-11-22T2{n % 2}:00:00Z")
        for n in range(200)
    ]
    store.create(json.dumps({"keys": [*dead, record_of(live)]}))

    store.ring.issue("acme")

    stored = store.stored()
    assert len(stored) == 100
    assert {one["revokedAt"] for one in stored} == {None, "2026-11-22T21:00:00Z"}
    assert len(store.text().encode()) < 32 * 1024
    assert store.accepts(live) == [True]


# Concurrent operators, and faults of Secrets Manager


def test_two_operators_can_issue_the_first_key_concurrently(store: KeyStore) -> None:
    other = store.new_ring(CountingClient(store.client))
    theirs: list[IssuedKey] = []
    store.ring_calls.before["create_secret"] = lambda: theirs.append(other.issue("acme"))
    ours = store.ring.issue("acme")
    assert [stored["id"] for stored in store.stored()] == [theirs[0].id, ours.id]
    assert store.accepts(ours, theirs[0]) == [True, True]


def test_a_change_that_another_operator_overwrote_is_repeated(store: KeyStore) -> None:
    leaked = store.ring.issue("acme")
    before = json.loads(store.text())["keys"]
    added = record_of(new_key("acme"))

    def overwritten() -> None:
        store.ring_calls.after.clear()
        store.put(json.dumps({"keys": [*before, added]}))

    store.ring_calls.after["put_secret_value"] = overwritten
    store.ring.revoke("acme", leaked.id)

    assert store.accepts(leaked) == [False]
    assert store.stored()[1] == added


def test_two_concurrent_rotations_make_one_key(store: KeyStore) -> None:
    old = store.ring.issue("acme")
    other = store.new_ring(CountingClient(store.client))
    before = store.text()
    theirs: list[IssuedKey | None] = []

    def overtaken() -> None:
        store.ring_calls.after.clear()
        store.put(before)
        theirs.append(other.rotate("acme", grace=DAY))

    store.ring_calls.after["put_secret_value"] = overtaken
    assert store.ring.rotate("acme", grace=DAY) is None

    assert theirs[0] is not None
    assert [stored["id"] for stored in store.stored()] == [old.id, theirs[0].id]


def test_a_change_that_is_overwritten_every_time_fails_with_advice(store: KeyStore) -> None:
    issued = store.ring.issue("acme")
    before = store.text()
    store.ring_calls.after["put_secret_value"] = lambda: store.put(before)
    with pytest.raises(EditLost, match="changing them"):
        store.ring.revoke("acme", issued.id)
    assert store.ring_calls.calls["put_secret_value"] == 4
    assert 0 < sum(store.pauses) < 5


def test_a_write_whose_response_was_lost_is_not_repeated(store: KeyStore) -> None:
    store.ring.issue("acme")
    store.ring_calls.after["put_secret_value"] = FAILURES["too slow"]
    issued = store.ring.issue("acme")
    assert store.ring_calls.calls["put_secret_value"] == 1
    assert [stored["id"] for stored in store.stored()][1:] == [issued.id]
    assert store.accepts(issued) == [True]


def test_a_write_that_never_arrived_is_retried_with_the_same_token(store: KeyStore) -> None:
    store.ring.issue("acme")

    def once() -> None:
        store.ring_calls.before.clear()
        raise FAILURES["not there"]

    store.ring_calls.before["put_secret_value"] = once
    issued = store.ring.issue("acme")

    assert store.accepts(issued) == [True]
    assert len(store.ring_calls.tokens) == 2
    assert len(set(store.ring_calls.tokens)) == 1


@pytest.mark.parametrize(
    ("call", "failure", "advice"),
    [
        ("get_secret_value", "not allowed", "AccessDeniedException"),
        ("put_secret_value", "not allowed", "AccessDeniedException"),
        ("get_secret_value", "too slow", "ReadTimeoutError"),
        ("put_secret_value", "not there", "list the keys before you try again"),
    ],
)
def test_a_fault_of_secrets_manager_names_its_code_and_omits_its_text(
    store: KeyStore, call: str, failure: str, advice: str
) -> None:
    store.ring.issue("acme")
    store.ring_calls.before[call] = FAILURES[failure]
    with pytest.raises(SecretsManagerFailed, match=advice) as failed:
        store.ring.issue("acme")
    assert failed.value.__cause__ is FAILURES[failure]
    assert UPSTREAM_TEXT not in str(failed.value)
    assert len(store.stored()) == 1


def test_a_secret_with_other_content_is_never_overwritten(store: KeyStore) -> None:
    store.create("the-key-of-the-model")
    for ask in (store.ring.issue, store.ring.list):
        with pytest.raises(SecretUnusable, match="left as it is") as unusable:
            ask("acme")
        assert "the-key-of-the-model" not in str(unusable.value)
    assert store.text() == "the-key-of-the-model"


def marked_for_deletion(store: KeyStore) -> None:
    store.ring.issue("acme")
    store.delete()


@pytest.mark.parametrize(
    ("prepare", "error", "advice"),
    [
        (marked_for_deletion, SecretUnusable, "restore it"),
        (lambda s: s.client.create_secret(Name=f"{s.prefix}acme"), EditLost, "without a value"),
        (
            lambda s: s.client.create_secret(Name=f"{s.prefix}acme", SecretBinary=b"\xff"),
            SecretUnusable,
            "left as it is",
        ),
    ],
    ids=["marked for deletion", "without a value", "binary"],
)
def test_an_unusable_secret_fails_with_advice(
    store: KeyStore, prepare: Callable[[KeyStore], object], error: type[Exception], advice: str
) -> None:
    prepare(store)
    with pytest.raises(error, match=advice):
        store.ring.issue("acme")
