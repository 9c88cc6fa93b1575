"""The local gateway: real sockets on one side, handlers with API Gateway's events on the other."""

import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from infra.local.functions import LambdaContext, LocalFunction, Schedule
from infra.local.gateway import Gateway
from infra.local.http_server import HttpServer, Limits, Response
from infra.template import Cors, Route
from tests.customer import fetch

Event = dict[str, Any]
Handler = Callable[[Event, LambdaContext], object]

CORS = Cors(
    origins=("*",),
    methods=("GET", "POST"),
    headers=("authorization", "content-type"),
    expose=("x-request-id", "retry-after"),
    max_age_s=600,
)
CRASH = (500, b'{"message":"Internal Server Error"}')
NOT_FOUND = (404, b'{"message":"Not Found"}')
PREFLIGHT = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}


def echo(event: Event, _context: LambdaContext) -> object:
    """Returns the event that it got."""
    headers = {"Content-Type": "application/json"}
    return {"statusCode": 200, "headers": headers, "body": json.dumps(event)}


@contextmanager
def gateway(
    handler: Handler = echo,
    *,
    timeout_s: float = 5,
    give_up_s: float = 30,
    limits: Limits | None = None,
    log: Callable[[str], None] = lambda _line: None,
) -> Iterator[HttpServer]:
    function = LocalFunction("Echo", handler, timeout_s, memory_mb=512)
    paths = ("GET /things/{id}", "GET /things/all", "POST /things")
    routes = [(Route(*path.split()), function) for path in paths]
    api = Gateway(routes, CORS, images=stored_images, log=log, give_up_s=give_up_s)
    with HttpServer(limits=limits) as server:
        server.start(api.respond)
        yield server


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A gateway whose handler returns its event."""
    with gateway() as server:
        yield server.url


def stored_images(key: str) -> Response | None:
    headers = (("content-type", "image/png"), ("cache-control", "public"), ("etag", '"abc"'))
    return Response(200, headers, b"\x89PNG") if key == "generated/1.png" else None


def send(server: HttpServer, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Sends raw bytes and reads until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(pause_s)
        return client.makefile("rb").read()


# The event


def test_a_request_becomes_the_event_of_payload_format_2(url: str) -> None:
    path = "/things/blue%20box?color=a&color=b&empty=&q=%C3%BC"
    headers = [("User-Agent", "tester"), ("Cookie", "a=1; b=2"), ("X-A", "1"), ("x-a", "2")]
    answer = fetch(url + path, headers=[*headers, ("Connection", "close")])
    event = answer.json()
    context = event["requestContext"]
    expected = {
        "version": "2.0",
        "routeKey": "GET /things/{id}",
        "rawPath": "/things/blue box",
        "rawQueryString": "color=a&color=b&empty=&q=%C3%BC",
        "queryStringParameters": {"color": "a,b", "empty": "", "q": "ü"},
        "pathParameters": {"id": "blue box"},
        "cookies": ["a=1", "b=2"],
        "isBase64Encoded": False,
    }

    assert expected.items() <= event.items()
    assert event.keys() - expected.keys() == {"headers", "requestContext"}
    assert event["headers"]["x-a"] == "1,2"
    assert event["headers"]["host"] == url.removeprefix("http://")
    assert event["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert not event["headers"].keys() & {"cookie", "connection"}
    assert context["http"] == {
        "method": "GET",
        "path": "/things/blue box",
        "protocol": "HTTP/1.1",
        "sourceIp": "127.0.0.1",
        "userAgent": "tester",
    }
    assert context["stage"] == "$default"
    assert context["requestId"] == answer.headers["apigw-requestid"]
    assert abs(context["timeEpoch"] / 1000 - time.time()) < 60
    assert time.strptime(context["time"], "%d/%b/%Y:%H:%M:%S +0000")


@pytest.mark.parametrize(
    ("content_type", "body", "as_text"),
    [
        ("application/json; charset=utf-8", '{"a": "ü"}'.encode(), True),
        ("application/problem+json", b"{}", True),
        ("text/plain", b"hello", True),
        ("application/json", b'{"a": "\xff"}', False),
        ("application/octet-stream", b"\x00\x01", False),
        ("application/x-www-form-urlencoded", b"a=b", False),
    ],
)
def test_a_body_that_is_declared_as_text_and_decodes_stays_text_and_any_other_is_base64(
    url: str, content_type: str, body: bytes, *, as_text: bool
) -> None:
    event = fetch(url + "/things", "POST", body, {"Content-Type": content_type}).json()

    assert event["isBase64Encoded"] is not as_text
    assert body == (event["body"].encode() if as_text else base64.b64decode(event["body"]))


def test_the_context_identifies_the_invocation_and_counts_its_time_down() -> None:
    def handler(_event: Event, context: LambdaContext) -> object:
        first = context.get_remaining_time_in_millis()
        time.sleep(0.05)
        known = {
            "function": (context.function_name, context.memory_limit_in_mb),
            "arn": context.invoked_function_arn,
            "request": context.aws_request_id,
            "left": [first, context.get_remaining_time_in_millis()],
        }
        return {"statusCode": 200, "body": json.dumps(known)}

    with gateway(handler, timeout_s=5) as server:
        one, two = (fetch(server.url + "/things/1").json() for _ in range(2))

    assert one["function"] == ["Echo", "512"]
    assert one["arn"].endswith(":function:Echo")
    assert one["request"] != two["request"]
    first, later = one["left"]
    assert 4000 < later <= first - 50 < 5000


# The response


def test_the_handlers_status_headers_cookies_and_bytes_come_back() -> None:
    result = {
        "statusCode": 201,
        "headers": {"X-One": "ä", "Content-Type": "image/png"},
        "cookies": ["a=1"],
        "body": base64.b64encode(b"\x00\xff").decode(),
        "isBase64Encoded": True,
    }
    with gateway(lambda _event, _context: result) as server:
        answer = fetch(server.url + "/things/1")

    assert (answer.status, answer.body) == (201, b"\x00\xff")
    assert answer.headers["x-one"].encode("latin-1").decode() == "ä"
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["set-cookie"] == "a=1"


def test_a_route_without_parameters_wins_over_one_with_them(url: str) -> None:
    assert fetch(url + "/things/all").json()["routeKey"] == "GET /things/all"


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /",
        "GET /things",
        "GET /things/",
        "GET /things/1/parts",
        "GET /things/a%2Fb",
        "DELETE /things/1",
        "GET /images/",
        "GET /images/generated/2.png",
    ],
)
def test_an_unknown_route_or_image_is_not_found(url: str, request_line: str) -> None:
    method, path = request_line.split()
    answer = fetch(url + path, method)

    assert (answer.status, answer.body) == NOT_FOUND


def test_head_has_no_route_and_no_body(url: str) -> None:
    answer = fetch(url + "/things/1", "HEAD")

    assert (answer.status, answer.body) == (404, b"")


def crash(_event: Event, _context: LambdaContext) -> object:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "result",
    [
        None,
        {"body": "no status"},
        {"statusCode": 200, "body": "not base64!", "isBase64Encoded": True},
        {"statusCode": 200, "headers": {"X-Injected": "a\r\nSet-Cookie: b"}},
        {"statusCode": 200, "body": object()},
    ],
)
@pytest.mark.usefixtures("capsys")
def test_a_malformed_result_is_an_internal_server_error(result: object) -> None:
    with gateway(lambda _event, _context: result) as server:
        answer = fetch(server.url + "/things/1")

    assert (answer.status, answer.body) == CRASH
    assert "x-injected" not in answer.headers


def test_a_crash_is_an_internal_server_error_with_its_traceback_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with gateway(crash) as server:
        answers = [fetch(server.url + "/things/1") for _ in range(2)]

    assert [(answer.status, answer.body) for answer in answers] == [CRASH, CRASH]
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("timeout_s", "give_up_s", "expected"),
    [(0.1, 30, CRASH), (5, 0.1, (503, b'{"message":"Service Unavailable"}'))],
    ids=["the function times out", "the gateway times out"],
)
def test_a_response_that_comes_too_late_is_an_error(
    timeout_s: float, give_up_s: float, expected: tuple[int, bytes]
) -> None:
    released = threading.Event()

    def handler(_event: Event, _context: LambdaContext) -> object:
        released.wait(5)
        return {"statusCode": 200}

    with gateway(handler, timeout_s=timeout_s, give_up_s=give_up_s) as server:
        answer = fetch(server.url + "/things/1")
        released.set()

    assert (answer.status, answer.body) == expected


def test_the_log_has_one_line_per_request_without_its_query() -> None:
    lines: list[str] = []
    with gateway(log=lines.append) as server:
        fetch(server.url + "/things/1?token=secret")
        fetch(server.url + "/nothing")

    shown = [line.rsplit(maxsplit=2)[::2] for line in lines]
    assert shown == [["GET /things/1 200", "ms"], ["GET /nothing 404", "ms"]]


# Other origins


def test_the_gateway_answers_a_preflight_from_its_configuration(url: str) -> None:
    asked = PREFLIGHT | {"Access-Control-Request-Headers": "Authorization, content-type"}
    answer = fetch(url + "/things", "OPTIONS", headers=asked)

    assert (answer.status, answer.body) == (204, b"")
    allowed = {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "GET,POST",
        "access-control-allow-headers": "authorization,content-type",
        "access-control-max-age": "600",
    }
    assert allowed.items() <= answer.headers.items()


@pytest.mark.parametrize(
    "asked",
    [
        {"Access-Control-Request-Method": "POST"},
        PREFLIGHT | {"Access-Control-Request-Method": "DELETE"},
        PREFLIGHT | {"Access-Control-Request-Headers": "x-other"},
    ],
)
def test_a_preflight_for_anything_else_gets_no_permission(url: str, asked: dict[str, str]) -> None:
    answer = fetch(url + "/things", "OPTIONS", headers=asked)

    assert answer.status == 204
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_responses_to_other_origins_carry_the_gateways_headers_not_the_handlers() -> None:
    result = {"statusCode": 200, "headers": {"Access-Control-Allow-Origin": "https://wrong"}}
    with gateway(lambda _event, _context: result) as server:
        other = fetch(server.url + "/things/1", headers={"Origin": "https://shop.example"})
        unknown = fetch(server.url + "/nothing", headers={"Origin": "https://shop.example"})
        same = fetch(server.url + "/things/1")

    assert other.headers["access-control-allow-origin"] == "*"
    assert other.headers["access-control-expose-headers"] == "x-request-id,retry-after"
    assert unknown.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in same.headers


def test_an_image_is_served_with_the_headers_of_the_object_and_can_only_be_read(url: str) -> None:
    got, head, put = (fetch(f"{url}/images/generated/1.png", of) for of in ("GET", "HEAD", "PUT"))

    assert (got.status, got.body) == (200, b"\x89PNG")
    wanted = {"content-type": "image/png", "cache-control": "public", "etag": '"abc"'}
    assert wanted.items() <= got.headers.items()
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "4")
    assert put.status == 405


# The protocol


def test_one_connection_carries_many_requests() -> None:
    with gateway() as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.connect()
        first_socket = connection.sock
        for number in range(5):
            connection.request("GET", f"/things/{number}")
            assert connection.getresponse().read()
        assert connection.sock is first_socket
        connection.close()


def test_64_requests_at_once_run_concurrently() -> None:
    all_here = threading.Barrier(64, timeout=10)

    def handler(_event: Event, _context: LambdaContext) -> object:
        all_here.wait()
        return {"statusCode": 200}

    with gateway(handler, timeout_s=15) as server, ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda n: fetch(f"{server.url}/things/{n}"), range(64)))

    assert [answer.status for answer in answers] == [200] * 64


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ("Transfer-Encoding: chunked", b"4\r\na fo\r\n1\r\nx\r\n0\r\n\r\n"),
        ("Content-Length: 5\r\nExpect: 100-continue", b"a fox"),
    ],
)
def test_a_body_arrives_whole_in_chunks_and_after_100_continue(framing: str, body: bytes) -> None:
    head = "POST /things HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    with (
        gateway() as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as client,
    ):
        client.sendall(f"{head}{framing}\r\n\r\n".encode())
        if "Expect" in framing:
            assert client.recv(1000).startswith(b"HTTP/1.1 100")
        client.sendall(body)
        event = json.loads(client.makefile("rb").read().partition(b"\r\n\r\n")[2])

    assert event["body"] == "a fox"
    assert not event["headers"].keys() & {"transfer-encoding", "expect"}


def test_a_body_over_ten_megabytes_is_refused_before_it_is_sent() -> None:
    size = 10 * 1024 * 1024 + 1
    head = f"POST /things HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {size}\r\n"

    with gateway() as server:
        answer = send(server, f"{head}\r\n".encode())

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b'{"message":"Request Entity Too Large"}')


def test_a_body_over_the_limit_is_refused_whole_and_in_chunks() -> None:
    head = b"POST /things HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with gateway(limits=Limits(body_bytes=50_000)) as server:
        chunks = [b"3e8\r\n" + b"x" * 1000 + b"\r\n"] * 100
        assert send(server, head, *chunks).startswith(b"HTTP/1.1 413 ")
        assert fetch(server.url + "/things", "POST", b"x" * 50_001).status == 413
        assert fetch(server.url + "/things", "POST", b"x" * 50_000).status == 200


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("nonsense\n\n", 400),
        ("GET /things/1 HTTP/1.1\n\n", 400),
        ("GET /things/1 HTTP/1.1\nHost: x\nBad Header: 1\n\n", 400),
        ("POST /things HTTP/1.1\nHost: x\nContent-Length: x\n\n", 400),
        ("POST /things HTTP/1.1\nHost: x\nContent-Length: -1\n\n", 400),
        ("POST /things HTTP/1.1\nHost: x\nContent-Length: 1\nContent-Length: 2\n\nab", 400),
        ("POST /things HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\nzz\n", 400),
        ("GET /things/1 HTTP/1.1\nHost: x\nX: " + "y" * 10_240 + "\n\n", 431),
        ("GET /things/1 HTTP/1.1\nHost: x\nX: " + "y" * 70_000 + "\n\n", 431),
        ("GET /" + "y" * 10_240 + " HTTP/1.1\nHost: x\n\n", 431),
    ],
)
def test_a_malformed_or_oversized_request_is_refused(request_text: str, status: int) -> None:
    with gateway() as server:
        answer = send(server, request_text.replace("\n", "\r\n").encode())

    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in answer.lower()


def test_an_idle_client_is_disconnected() -> None:
    started_at = time.monotonic()
    with gateway(limits=Limits(idle_s=0.3)) as server:
        assert send(server) == b""
        assert send(server, b"GET /things/1 HTTP/1.1\r\n") == b""
        assert send(server, b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n") == b""
    assert time.monotonic() - started_at < 5


def test_a_taken_port_is_an_error_at_once() -> None:
    with HttpServer() as server, pytest.raises(OSError, match="in use"):
        HttpServer(server.port)


def test_stopping_closes_the_port_and_idle_connections_at_once() -> None:
    with gateway() as server:
        idle = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        fetch(server.url + "/things/1")
        started_at = time.monotonic()
        server.stop()
        took_s = time.monotonic() - started_at

    assert took_s < 1
    assert idle.recv(1) == b""
    idle.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


# Schedules


@pytest.mark.usefixtures("capsys")
def test_a_schedule_invokes_its_function_periodically_even_after_a_crash() -> None:
    events: list[Event] = []
    enough = threading.Event()

    def handler(event: Event, context: LambdaContext) -> object:
        events.append(event)
        if len(events) == 3:
            enough.set()
        return crash(event, context)

    schedule = Schedule(LocalFunction("Tick", handler, timeout_s=5), period_s=0.02)
    schedule.start()
    assert enough.wait(5)
    schedule.stop()

    assert (events[0]["source"], events[0]["detail-type"]) == ("aws.events", "Scheduled Event")
    time.sleep(0.1)
    invoked = len(events)
    time.sleep(0.1)
    assert len(events) == invoked
