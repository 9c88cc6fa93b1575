"""From a prompt to picture bytes or a service error, over real sockets and the real SDK."""

import base64
import gc
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.local.gemini_stand_in import FAILURES, Answer, GeminiStandIn, Received
from lib.deadline import Deadline
from lib.errors import (
    ContentRejected,
    GenerationFailed,
    ModelOverloaded,
    ModelTimedOut,
    ModelUnavailable,
    NoImageReturned,
)
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.gemini import Gemini
from lib.picture.transport import MAX_RESPONSE_BYTES

MODEL = "gemini-3.1-flash-lite-image"
KEY = "AIza-distinctive-key-of-the-operator"
PLENTY_S = 30.0
SHORT_S = 0.3
OVERSHOOT_S = 0.5  # measured: 0.01; the rest is for busy machines

# The failures of the stand-in by their outcome: a GenerationFailed, or bytes, which lib.picture.png
# checks; and by the number of requests.
BY_OUTCOME: dict[tuple[type[GenerationFailed] | type[bytes], int], str] = {
    (ContentRejected, 1): "blocked-prompt safety recitation blocklist prohibited-content spii"
    " image-safety image-prohibited image-recitation safety-with-image",
    (NoImageReturned, 1): "text-only no-image image-other other max-tokens unknown-finish"
    " numeric-finish thought-only empty-body empty-object empty-array not-json bad-base64 endless"
    " bad-request",
    (bytes, 1): "thought-first other-with-image png webp wrong-mime cut-base64 cut-image"
    " not-an-image wrong-shape bomb",
    (bytes, 2): "overloaded-once reset-once",
    (ModelUnavailable, 1): "bad-key unauthorized forbidden not-found no-billing redirect",
    (ModelOverloaded, 1): "quota quota-bare",
    (ModelOverloaded, 2): "quota-short internal bad-gateway overloaded reset",
    (ModelTimedOut, 1): "slow hang hang-after-headers drip drip-headers",
    (ModelTimedOut, 2): "deadline",
}
OUTCOMES = {name: outcome for outcome, names in BY_OUTCOME.items() for name in names.split()}
NEVER_IN_TIME = ("slow", "hang", "hang-after-headers", "drip", "drip-headers")

Make = Callable[..., Gemini]


@pytest.fixture(scope="module")
def google() -> Iterator[GeminiStandIn]:
    with GeminiStandIn(fixed_picture=True) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed_certificate(tmp_path_factory.mktemp("tls") / "certificate.pem")


@pytest.fixture
def make(google: GeminiStandIn, authority: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes clients of the stand-in, and closes them."""
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", google.url)
    # One certificate to trust instead of the system's hundred, which take longer than a test.
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    made: list[Gemini] = []

    def build(
        api_key: Callable[[], str] = lambda: KEY,
        model: str = MODEL,
        sleep: Callable[[float], None] = lambda _: None,
    ) -> Gemini:
        made.append(Gemini(api_key, model, sleep))
        return made[-1]

    yield build
    google.answer_with(None)
    for gemini in made:
        gemini.close()


def draw(gemini: Gemini, prompt: str = "A red fox", seconds: float = PLENTY_S) -> bytes:
    return gemini.generate(prompt, AspectRatio.LANDSCAPE_16_9, Deadline(seconds))


def prompts(google: GeminiStandIn) -> list[str]:
    """The text of every request that arrived, oldest first."""
    bodies = [request.body for request in google.requests if isinstance(request.body, dict)]
    return [body["contents"][0]["parts"][0]["text"] for body in bodies]


def refusal(code: int, body: object) -> Answer:
    return Answer(code, json.dumps(body).encode())


def answer_of(*parts: object, finish_reason: str = "STOP") -> Answer:
    candidate = {"content": {"parts": list(parts)}, "finishReason": finish_reason}
    return refusal(200, {"candidates": [candidate]})


def picture_part(data: bytes, **more: object) -> dict[str, object]:
    encoded = base64.b64encode(data).decode()
    return {"inlineData": {"mimeType": "image/jpeg", "data": encoded}} | more


def test_every_failure_of_the_stand_in_has_an_outcome() -> None:
    assert set(OUTCOMES) == set(FAILURES)


@pytest.mark.parametrize("name", [name for name in OUTCOMES if name not in NEVER_IN_TIME])
def test_a_failure_ends_as_its_error_after_its_number_of_requests(
    make: Make, google: GeminiStandIn, name: str
) -> None:
    kind, requests = OUTCOMES[name]
    prompt = f"Outcome of [fail:{name}]"
    if issubclass(kind, GenerationFailed):
        with pytest.raises(GenerationFailed) as failed:
            draw(make(), prompt)
        assert type(failed.value) is kind
    else:
        assert draw(make(), prompt)
    assert prompts(google).count(prompt) == requests
    assert google.requests_elsewhere == []


def test_the_last_non_thought_image_part_is_returned_byte_for_byte(
    make: Make, google: GeminiStandIn
) -> None:
    parts = (
        picture_part(b"first thought", thought=True),
        {"text": "Here it is."},
        picture_part(b"first"),
        picture_part(b"\x89PNG: the last", thought=False, thoughtSignature="A"),
        picture_part(b"afterthought", thought=True),
        {"inlineData": {"mimeType": "image/png", "data": ""}},
    )
    google.answer_with(lambda _: answer_of(*parts))
    assert draw(make()) == b"\x89PNG: the last"


@pytest.mark.parametrize("ratio", list(AspectRatio))
def test_the_request_on_the_wire(make: Make, google: GeminiStandIn, ratio: AspectRatio) -> None:
    gemini = make()
    picture = answer_of(picture_part(b"a picture")).body
    google.answer_with(lambda _: Answer(200, picture, {"Set-Cookie": "a=b; Path=/"}))

    # Google refuses a timeout under 10 s.
    for seconds, told in ((21.5, "22"), (3.0, "10")):
        gemini.generate("A red fox: ünïcode 🦊", ratio, Deadline(seconds))

        received = google.requests[-1]
        assert received.path == f"/v1beta/models/{MODEL}:generateContent"
        assert received.body == {
            "contents": [{"parts": [{"text": "A red fox: ünïcode 🦊"}], "role": "user"}],
            "generationConfig": {
                "responseModalities": ["IMAGE"],
                "imageConfig": {"aspectRatio": ratio.value},
            },
        }
        headers = received.headers
        assert headers["x-goog-api-key"] == KEY
        assert headers["content-type"] == "application/json"
        assert headers["x-server-timeout"] == told
        assert headers["accept-encoding"] == "identity"
        assert not {"cookie", "authorization"} & set(headers)


def test_an_old_model_gets_the_ratio_in_the_prompt_and_an_unknown_one_an_image_config(
    make: Make, google: GeminiStandIn
) -> None:
    assert draw(make(model="gemini-2.0-flash-preview-image-generation"), "A red fox")
    assert prompts(google)[-1].startswith("A red fox\n\n")
    assert "16:9" in prompts(google)[-1]
    assert draw(make(model="gemini-9-image"), "A red fox")
    assert '"imageConfig": {"aspectRatio": "16:9"}' in json.dumps(google.requests[-1].body)


@pytest.mark.parametrize("model", ["", "models/x", "../x", "a?b", "a b", "a" * 200])
def test_an_invalid_model_id_is_refused_before_any_call(make: Make, model: str) -> None:
    with pytest.raises(ValueError, match="model's id"):
        make(model=model)


@pytest.mark.parametrize("name", NEVER_IN_TIME)
def test_a_deadline_holds_and_leaves_no_thread_and_no_connection(
    make: Make, google: GeminiStandIn, name: str
) -> None:
    gemini = make()
    draw(gemini)
    gc.collect()
    before = threading.active_count()

    kind, requests = OUTCOMES[name]
    assert issubclass(kind, GenerationFailed)
    prompt = f"Too late [fail:{name}]"

    began = time.monotonic()
    with pytest.raises(kind):
        draw(gemini, prompt, SHORT_S)

    assert SHORT_S <= time.monotonic() - began < SHORT_S + OVERSHOOT_S
    assert prompts(google).count(prompt) == requests
    assert eventually(lambda: threading.active_count() <= before)
    assert eventually(lambda: google.open_connections == 0)


def eventually(condition: Callable[[], bool]) -> bool:
    ends_at = time.monotonic() + 2
    while not condition() and time.monotonic() < ends_at:
        time.sleep(0.01)
    return condition()


def test_after_the_deadline_no_request_is_sent(make: Make, google: GeminiStandIn) -> None:
    with pytest.raises(ModelTimedOut):
        draw(make(), "Passed already", 0)
    assert "Passed already" not in prompts(google)


def test_the_deadline_holds_against_a_handshake_that_hangs(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", f"https://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(ModelTimedOut):
            draw(make(), seconds=SHORT_S)
    assert time.monotonic() - began < SHORT_S + OVERSHOOT_S


def test_nothing_is_retried_with_less_than_ten_seconds_left(
    make: Make, google: GeminiStandIn
) -> None:
    waited: list[float] = []
    with pytest.raises(ModelOverloaded):
        draw(make(sleep=waited.append), "No time for two [fail:overloaded]", 10.1)
    assert prompts(google).count("No time for two [fail:overloaded]") == 1
    assert waited == []


@pytest.mark.parametrize(
    ("name", "least_s", "most_s"), [("overloaded", 0.2, 1.0), ("quota-short", 1.2, 2.0)]
)
def test_the_pause_before_a_retry_is_short_or_what_google_asks_for(
    make: Make, name: str, least_s: float, most_s: float
) -> None:
    waited: list[float] = []
    with pytest.raises(ModelOverloaded):
        draw(make(sleep=waited.append), f"[fail:{name}]")
    assert len(waited) == 1
    assert least_s <= waited[0] <= most_s


@pytest.mark.parametrize(("delay", "waits"), [("59s", 1), ("61s", 0)])
def test_a_retry_waits_for_a_quota_of_at_most_a_minute(
    make: Make, google: GeminiStandIn, delay: str, waits: int
) -> None:
    google.answer_with(lambda _: refusal(429, {"error": {"details": [{"retryDelay": delay}]}}))
    waited: list[float] = []
    with pytest.raises(ModelOverloaded):
        draw(make(sleep=waited.append), seconds=300)
    assert len(waited) == waits


@pytest.mark.parametrize(
    ("details", "retry_after_s"),
    [
        ([{"retryDelay": "34.28s"}], 35),
        ([{"reason": "RATE_LIMIT"}, {"retryDelay": "0s"}], 1),
        ([{"retryDelay": "999999s"}], 3600),
        ([{"retryDelay": "-5s"}], 60),
        ([{"retryDelay": "soon"}], 60),
        ([{"retryDelay": 34}], 60),
        ("34s", 60),
        ([], 60),
    ],
)
def test_a_quota_sets_retry_after(
    make: Make, google: GeminiStandIn, details: object, retry_after_s: int
) -> None:
    body = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": details}}
    google.answer_with(lambda _: refusal(429, body))
    with pytest.raises(ModelOverloaded) as failed:
        draw(make(), seconds=9)
    assert failed.value.headers()["Retry-After"] == str(retry_after_s)


UNUSUAL: dict[type[GenerationFailed], list[tuple[int, bytes]]] = {
    NoImageReturned: [
        *((204, b""), (206, b"{}"), (400, b'{"error": "a sentence"}'), (400, b"[1, 2]")),
        *((400, b"null"), (413, b"too large"), (418, b"{}"), (200, b"[" * 100_000)),
        *((200, b'{"candidates": null}'), (200, b'{"candidates": [{}]}')),
        (200, b'{"candidates": [{"content": {"parts": null}}]}'),
        (200, b'{"candidates": [{"content": {"parts": [7]}}]}'),
        (200, b"\x1f\x8b compressed although it was not requested"),
        (200, b'{"candidates": [{"finishReason": "CONTINUATION"}]}'),
    ],
    ModelUnavailable: [
        (301, b""),
        (400, b'[{"error": {"details": [{"reason": "API_KEY_INVALID"}]}}]'),
        (400, b'{"error": {"details": [{"reason": "API_KEY_EXPIRED"}]}}'),
    ],
    ModelTimedOut: [(408, b"{}")],
    ModelOverloaded: [
        *((500, b"\xff\xfe"), (500, b"[" * 100_000), (500, b"9" * 10_000), (599, b"{}")),
    ],
    ContentRejected: [
        (200, b'{"promptFeedback": {"blockReason": "OTHER"}}'),
        (200, b'{"promptFeedback": {"blockReason": "NEW"}, "candidates": []}'),
        (200, b'{"candidates": [{"finishReason": "IMAGE_JAILBREAK"}]}'),
        (200, b'{"candidates": [{"finishReason": "MODEL_ARMOR"}]}'),
    ],
}


@pytest.mark.parametrize(
    ("kind", "code", "body"),
    [(kind, *answer) for kind, answers in UNUSUAL.items() for answer in answers],
)
def test_an_unusual_answer_is_a_service_error(
    make: Make, google: GeminiStandIn, kind: type[GenerationFailed], code: int, body: bytes
) -> None:
    google.answer_with(lambda _: Answer(code, body))
    with pytest.raises(GenerationFailed) as failed:
        draw(make(), seconds=9)
    assert type(failed.value) is kind


@pytest.mark.parametrize(("bytes_over", "kind"), [(0, bytes), (1, NoImageReturned)])
def test_the_size_of_an_answer_is_limited(
    make: Make, google: GeminiStandIn, bytes_over: int, kind: type[GenerationFailed] | type[bytes]
) -> None:
    answer = answer_of(picture_part(b"a picture")).body
    google.answer_with(lambda _: Answer(200, answer.ljust(MAX_RESPONSE_BYTES + bytes_over)))
    if issubclass(kind, GenerationFailed):
        with pytest.raises(kind):
            draw(make())
    else:
        assert draw(make()) == b"a picture"


def test_a_connection_that_google_closed_costs_no_retry(make: Make, google: GeminiStandIn) -> None:
    gemini = make(sleep=pytest.fail)
    draw(gemini, "Before")
    google.close_idle_connections()
    assert draw(gemini, "After")
    assert prompts(google).count("After") == 1


def test_consecutive_calls_share_a_connection(make: Make, google: GeminiStandIn) -> None:
    gemini = make()
    before = google.connections_made
    for _ in range(5):
        draw(gemini)
    assert google.connections_made == before + 1


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://127.0.0.1:1", ModelOverloaded),
        ("ftp://127.0.0.1", ModelUnavailable),
        ("127.0.0.1", ModelUnavailable),
        ("http://127.0.0.1:notaport", ModelUnavailable),
    ],
)
def test_an_unreachable_or_invalid_base_url_is_a_service_error(
    make: Make, monkeypatch: pytest.MonkeyPatch, url: str, kind: type[GenerationFailed]
) -> None:
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
    with pytest.raises(GenerationFailed) as failed:
        draw(make())
    assert type(failed.value) is kind


def test_an_address_that_does_not_answer_is_skipped(
    make: Make, google: GeminiStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where this name also has an IPv6 address, that one comes first, and nothing listens there.
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", google.url.replace("127.0.0.1", "localhost"))
    assert draw(make(sleep=pytest.fail))


def test_concurrent_first_calls_read_the_key_once_and_not_before(
    make: Make, google: GeminiStandIn
) -> None:
    asked: list[str] = []
    before = google.connections_made

    def api_key() -> str:
        time.sleep(0.05)
        asked.append(KEY)
        return f"{KEY}\n"

    gemini = make(api_key)
    assert (google.connections_made, asked) == (before, [])
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: draw(gemini, f"Fox {number}"), range(8)))

    assert len(asked) == 1


@pytest.mark.parametrize("name", ["bad-key", "unauthorized", "forbidden"])
def test_a_key_that_google_refuses_is_read_again_at_the_next_request(
    make: Make, google: GeminiStandIn, name: str
) -> None:
    keys = iter(["the-old-key", "the-new-key"])
    gemini = make(lambda: next(keys))
    with pytest.raises(ModelUnavailable):
        draw(gemini, f"[fail:{name}]")
    assert draw(gemini, "Rotated")
    assert draw(gemini, "Rotated")
    used = [request.headers["x-goog-api-key"] for request in google.requests[-3:]]
    assert used == ["the-old-key", "the-new-key", "the-new-key"]


@pytest.mark.parametrize("name", ["not-found", "quota", "overloaded", "bad-request", "redirect"])
def test_a_key_that_is_not_at_fault_is_kept(make: Make, name: str) -> None:
    keys = iter([KEY])
    gemini = make(lambda: next(keys))
    with pytest.raises(GenerationFailed):
        draw(gemini, f"[fail:{name}]")
    assert draw(gemini)


class SecretUnreadableError(Exception):
    pass


def test_an_error_of_the_key_provider_propagates_and_is_not_cached(make: Make) -> None:
    answers: list[str] = []

    def api_key() -> str:
        if not answers:
            answers.append(KEY)
            raise SecretUnreadableError
        return answers[0]

    gemini = make(api_key)
    with pytest.raises(SecretUnreadableError):
        draw(gemini)

    assert draw(gemini)


@pytest.mark.parametrize("key", ["", " \n", "two words", "ключ", "a\r\nX-Evil: 1", "auth_tokens/x"])
def test_an_impossible_key_is_never_sent(
    make: Make, google: GeminiStandIn, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "key-from-the-environment")
    before = len(google.requests)
    with pytest.raises(ModelUnavailable):
        draw(make(lambda: key))
    assert len(google.requests) == before


def test_other_environment_variables_change_nothing(
    make: Make, google: GeminiStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "GOOGLE_API_KEY": "key-from-the-environment",
        "GEMINI_API_KEY": "another-key-from-the-environment",
        "GOOGLE_GENAI_USE_VERTEXAI": "true",
        "GOOGLE_GENAI_USE_ENTERPRISE": "true",
        "GOOGLE_CLOUD_PROJECT": "another-project",
        "GOOGLE_GENAI_API_VERSION": "v1",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "ALL_PROXY": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)

    assert draw(make(), "Undisturbed")
    assert google.requests[-1].path.startswith("/v1beta/models/")
    assert google.requests[-1].headers["x-goog-api-key"] == KEY


def test_each_of_32_threads_gets_its_own_picture(make: Make, google: GeminiStandIn) -> None:
    def echo(request: Received) -> Answer:
        time.sleep(0.02)
        assert isinstance(request.body, dict)
        prompt = request.body["contents"][0]["parts"][0]["text"]
        return answer_of(picture_part(prompt.encode() * 1000))

    google.answer_with(echo)
    gemini = make()
    with ThreadPoolExecutor(32) as threads:
        pictures = list(threads.map(lambda number: draw(gemini, f"<{number}>"), range(128)))

    assert pictures == [f"<{number}>".encode() * 1000 for number in range(128)]


def test_only_a_trusted_server_receives_the_key(
    make: Make, authority: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stranger = self_signed_certificate(tmp_path / "stranger.pem")
    picture = answer_of(picture_part(b"a picture")).body
    sent_to_stranger: list[bytes] = []
    sent_to_google: list[bytes] = []

    with serving_tls(stranger, picture, sent_to_stranger) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        with pytest.raises(ModelOverloaded):
            draw(make())
    with serving_tls(authority, picture, sent_to_google) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        assert draw(make()) == b"a picture"

    assert sent_to_stranger == []
    assert KEY.encode() in b"".join(sent_to_google)


def self_signed_certificate(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.now(UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1))
    builder = builder.not_valid_after(now + timedelta(days=1)).add_extension(host, critical=False)
    text = serialization.Encoding.PEM
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    signed = builder.sign(key, hashes.SHA256()).public_bytes(text)
    path.write_bytes(key.private_bytes(text, pkcs8, plain) + signed)
    return path


def whole_request(connection: ssl.SSLSocket) -> bytes:
    """Head and body: closing before all is read would reset the connection of the client."""
    request = b""
    while True:
        head, _, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if length is not None and len(body) >= int(length[1]):
            return request
        more = connection.recv(65536)
        if not more:
            return request
        request += more


@contextmanager
def serving_tls(certificate: Path, body: bytes, received: list[bytes]) -> Iterator[str]:
    """Answers one request a connection with ``body``, until the block ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(ssl.SSLError):
                    encrypted = context.wrap_socket(connection, server_side=True)
                    with encrypted:
                        received.append(whole_request(encrypted))
                        encrypted.sendall(head.encode() + body)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
