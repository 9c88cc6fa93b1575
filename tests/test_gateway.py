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
from infra.local.http_server import HttpServer, Limits, Request, Response
from infra.template import Cors, Route

Event = dict[str, Any]
Handler = Callable[[Event, LambdaContext], object]

CORS = Cors(
    origins=("*",),
    methods=("GET", "POST"),
    headers=("authorization", "content-type"),
    expose=("x-request-id", "retry-after"),
    max_age_s=600,
)


def echo(event: Event, _context: LambdaContext) -> object:
    """Answers with the event that it got."""
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "application/json"},
        "body": json.dumps(event),
    }


@contextmanager
def gateway(
    handler: Handler = echo,
    *,
    timeout_s: float = 5,
    give_up_s: float = 30,
    cors: Cors | None = CORS,
    limits: Limits | None = None,
    log: Callable[[str], None] = lambda _line: None,
) -> Iterator[HttpServer]:
    function = LocalFunction("Echo", handler, timeout_s, memory_mb=512)
    routes = [
        (Route("GET", "/things/{id}"), function),
        (Route("GET", "/things/all"), function),
        (Route("POST", "/things"), function),
    ]
    api = Gateway(routes, cors, images=stored_images, log=log, give_up_s=give_up_s)
    with HttpServer(limits=limits) as server:
        server.start(api.respond)
        yield server


def stored_images(key: str) -> Response | None:
    if key != "generated/1.png":
        return None
    headers = (("content-type", "image/png"), ("cache-control", "public"), ("etag", '"abc"'))
    return Response(200, headers, b"\x89PNG")


class Answer:
    """A response, read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)


def call(
    server: HttpServer,
    method: str,
    path: str,
    body: bytes | Iterator[bytes] | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def send(server: HttpServer, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Sends raw bytes and reads until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(pause_s)
        received = bytearray()
        while piece := client.recv(65536):
            received += piece
    return bytes(received)


# The event


def test_a_request_becomes_the_event_of_payload_format_2() -> None:
    with gateway() as server:
        answer = call(
            server,
            "GET",
            "/things/blue%20box?color=a&color=b&empty=&q=%C3%BC",
            headers={"User-Agent": "tester", "X-Thing": "1", "Cookie": "a=1; b=2"},
        )
    event = answer.json()

    assert event["version"] == "2.0"
    assert event["routeKey"] == "GET /things/{id}"
    assert event["rawPath"] == "/things/blue box"
    assert event["rawQueryString"] == "color=a&color=b&empty=&q=%C3%BC"
    assert event["queryStringParameters"] == {"color": "a,b", "empty": "", "q": "ü"}
    assert event["pathParameters"] == {"id": "blue box"}
    assert event["cookies"] == ["a=1", "b=2"]
    assert event["isBase64Encoded"] is False
    assert "body" not in event
    assert event["headers"]["x-thing"] == "1"
    assert event["headers"]["host"] == f"127.0.0.1:{server.port}"
    assert event["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert "cookie" not in event["headers"]
    context = event["requestContext"]
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


def test_repeated_headers_are_joined_with_commas() -> None:
    with gateway() as server:
        raw = send(
            server,
            b"GET /things/1 HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nx-a: 2\r\nConnection: close\r\n\r\n",
        )
    event = json.loads(raw.partition(b"\r\n\r\n")[2])

    assert event["headers"]["x-a"] == "1,2"
    assert "connection" not in event["headers"]


@pytest.mark.parametrize(
    ("content_type", "body", "as_text"),
    [
        ("application/json", '{"a": "ü"}'.encode(), True),
        ("application/json; charset=utf-8", b"{}", True),
        ("application/problem+json", b"{}", True),
        ("text/plain", b"hello", True),
        ("application/json", b'{"a": "\xff"}', False),
        ("application/octet-stream", b"\x00\x01", False),
        ("application/x-www-form-urlencoded", b"a=b", False),
    ],
)
def test_a_body_is_text_when_it_says_so_and_is_and_else_base64(
    content_type: str, body: bytes, *, as_text: bool
) -> None:
    with gateway() as server:
        event = call(server, "POST", "/things", body, {"Content-Type": content_type}).json()

    assert event["isBase64Encoded"] is not as_text
    received = event["body"].encode() if as_text else base64.b64decode(event["body"])
    assert received == body


def test_the_context_knows_the_function_and_counts_its_time_down() -> None:
    def handler(_event: Event, context: LambdaContext) -> object:
        first = context.get_remaining_time_in_millis()
        time.sleep(0.05)
        known = {
            "name": context.function_name,
            "memory": context.memory_limit_in_mb,
            "arn": context.invoked_function_arn,
            "request": context.aws_request_id,
            "left": [first, context.get_remaining_time_in_millis()],
        }
        return {"statusCode": 200, "body": json.dumps(known)}

    with gateway(handler, timeout_s=5) as server:
        one, two = (call(server, "GET", "/things/1").json() for _ in range(2))

    assert (one["name"], one["memory"]) == ("Echo", "512")
    assert one["arn"].endswith(":function:Echo")
    assert one["request"] != two["request"]
    first, later = one["left"]
    assert 4000 < later <= first - 50 < 5000


# The answer


def test_the_handlers_status_headers_cookies_and_bytes_come_back() -> None:
    def handler(_event: Event, _context: LambdaContext) -> object:
        return {
            "statusCode": 201,
            "headers": {"X-One": "ä", "Content-Type": "image/png"},
            "cookies": ["a=1"],
            "body": base64.b64encode(b"\x00\xff").decode(),
            "isBase64Encoded": True,
        }

    with gateway(handler) as server:
        answer = call(server, "GET", "/things/1")

    assert answer.status == 201
    assert answer.headers["x-one"].encode("latin-1").decode() == "ä"
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["set-cookie"] == "a=1"
    assert answer.body == b"\x00\xff"


def test_a_route_without_parameters_wins_over_one_with_them() -> None:
    with gateway() as server:
        assert call(server, "GET", "/things/all").json()["routeKey"] == "GET /things/all"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/things"),
        ("GET", "/things/"),
        ("GET", "/things/1/parts"),
        ("GET", "/things/a%2Fb"),
        ("DELETE", "/things/1"),
    ],
)
def test_an_unknown_route_is_not_found(method: str, path: str) -> None:
    with gateway() as server:
        answer = call(server, method, path)

    assert (answer.status, answer.json()) == (404, {"message": "Not Found"})


def test_head_has_no_route_of_its_own_and_no_body() -> None:
    with gateway() as server:
        answer = call(server, "HEAD", "/things/1")

    assert (answer.status, answer.body) == (404, b"")


@pytest.mark.parametrize(
    "broken",
    [
        None,
        {"body": "no status"},
        {"statusCode": 200, "body": "not base64!", "isBase64Encoded": True},
        {"statusCode": 200, "headers": {"X-Injected": "a\r\nSet-Cookie: b"}},
        {"statusCode": 200, "body": object()},
    ],
)
def test_an_answer_that_is_no_response_is_an_internal_server_error(
    broken: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with gateway(lambda _event, _context: broken) as server:
        answer = call(server, "GET", "/things/1")

    assert (answer.status, answer.json()) == (500, {"message": "Internal Server Error"})
    assert "injected" not in answer.headers
    capsys.readouterr()


def test_a_crash_is_an_internal_server_error_with_its_traceback_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def handler(_event: Event, _context: LambdaContext) -> object:
        raise ZeroDivisionError

    with gateway(handler) as server:
        first = call(server, "GET", "/things/1")
        second = call(server, "GET", "/things/1")

    assert (first.status, first.json()) == (500, {"message": "Internal Server Error"})
    assert second.status == 500
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_function_that_outlives_its_timeout_is_an_internal_server_error() -> None:
    released = threading.Event()

    def handler(_event: Event, _context: LambdaContext) -> object:
        released.wait(5)
        return {"statusCode": 200}

    with gateway(handler, timeout_s=0.1) as server:
        answer = call(server, "GET", "/things/1")
        released.set()

    assert (answer.status, answer.json()) == (500, {"message": "Internal Server Error"})


def test_the_gateway_gives_up_before_a_function_that_takes_longer() -> None:
    released = threading.Event()

    def handler(_event: Event, _context: LambdaContext) -> object:
        released.wait(5)
        return {"statusCode": 200}

    with gateway(handler, timeout_s=5, give_up_s=0.1) as server:
        answer = call(server, "GET", "/things/1")
        released.set()

    assert (answer.status, answer.json()) == (503, {"message": "Service Unavailable"})


def test_every_request_is_one_line_in_the_log_without_its_query() -> None:
    lines: list[str] = []

    with gateway(log=lines.append) as server:
        call(server, "GET", "/things/1?token=secret")
        call(server, "GET", "/nothing")

    assert [line.split()[:3] for line in lines] == [
        ["GET", "/things/1", "200"],
        ["GET", "/nothing", "404"],
    ]
    assert all(line.endswith(" ms") for line in lines)


# Other origins


def test_a_preflight_is_answered_by_the_gateway_from_its_configuration() -> None:
    with gateway() as server:
        answer = call(
            server,
            "OPTIONS",
            "/things",
            headers={
                "Origin": "https://shop.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "Authorization, content-type",
            },
        )

    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-methods"] == "GET,POST"
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert answer.headers["access-control-max-age"] == "600"


@pytest.mark.parametrize(
    "asked",
    [
        {"Access-Control-Request-Method": "POST"},
        {"Origin": "https://shop.example", "Access-Control-Request-Method": "DELETE"},
        {
            "Origin": "https://shop.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-other",
        },
    ],
)
def test_a_preflight_for_something_else_gets_no_permission(asked: dict[str, str]) -> None:
    with gateway() as server:
        answer = call(server, "OPTIONS", "/things", headers=asked)

    assert answer.status == 204
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_answers_to_other_origins_carry_the_gateways_headers_not_the_handlers() -> None:
    def handler(_event: Event, _context: LambdaContext) -> object:
        return {"statusCode": 200, "headers": {"Access-Control-Allow-Origin": "https://wrong"}}

    with gateway(handler) as server:
        other = call(server, "GET", "/things/1", headers={"Origin": "https://shop.example"})
        unknown = call(server, "GET", "/nothing", headers={"Origin": "https://shop.example"})
        same = call(server, "GET", "/things/1")

    assert other.headers["access-control-allow-origin"] == "*"
    assert other.headers["access-control-expose-headers"] == "x-request-id,retry-after"
    assert unknown.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in same.headers


# Images


def test_an_image_is_served_with_the_headers_of_the_object() -> None:
    with gateway() as server:
        got = call(server, "GET", "/images/generated/1.png")
        head = call(server, "HEAD", "/images/generated/1.png")

    assert (got.status, got.body) == (200, b"\x89PNG")
    assert got.headers["content-type"] == "image/png"
    assert got.headers["cache-control"] == "public"
    assert got.headers["etag"] == '"abc"'
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "4")


def test_an_image_that_is_not_there_is_not_found_and_none_can_be_put() -> None:
    with gateway() as server:
        assert call(server, "GET", "/images/generated/2.png").status == 404
        assert call(server, "GET", "/images/").status == 404
        assert call(server, "PUT", "/images/generated/1.png", b"x").status == 405


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


def test_64_requests_at_once_are_worked_on_at_once() -> None:
    everyone_is_here = threading.Barrier(64, timeout=10)

    def handler(_event: Event, _context: LambdaContext) -> object:
        everyone_is_here.wait()
        return {"statusCode": 200}

    with gateway(handler, timeout_s=15) as server, ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda n: call(server, "GET", f"/things/{n}"), range(64)))

    assert [answer.status for answer in answers] == [200] * 64


def test_a_chunked_body_arrives_whole() -> None:
    with gateway() as server:
        parts = iter([b'{"prompt": ', b'"a fox"}'])
        event = call(server, "POST", "/things", parts, {"Content-Type": "application/json"}).json()

    assert event["body"] == '{"prompt": "a fox"}'
    assert "transfer-encoding" not in event["headers"]


def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    head = (
        b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    with (
        gateway() as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as client,
    ):
        client.sendall(head)
        assert client.recv(1000).startswith(b"HTTP/1.1 100")
        client.sendall(b"hello")
        assert b'"body": "hello"' in client.makefile("rb").read()


def test_a_body_over_ten_megabytes_is_refused_before_it_is_sent() -> None:
    size = 10 * 1024 * 1024 + 1
    head = f"POST /things HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()

    with gateway() as server:
        answer = send(server, head)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b'{"message":"Request Entity Too Large"}')


def test_a_body_that_grows_over_the_limit_is_refused_while_it_is_sent() -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    with gateway(limits=Limits(body_bytes=50_000)) as server:
        assert call(server, "POST", "/things", endless()).status == 413
        assert call(server, "POST", "/things", b"x" * 50_001).status == 413
        assert call(server, "POST", "/things", b"x" * 50_000).status == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /things/1 HTTP/1.1\r\n\r\n", 400),
        (b"GET /things/1 HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n", 400),
        (b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (
            b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            400,
        ),
        (b"POST /things HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /things/1 HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 10_240 + b"\r\n\r\n", 431),
        (b"GET /things/1 HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 10_240 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    ],
)
def test_a_malformed_or_oversized_request_is_told_so(request_bytes: bytes, status: int) -> None:
    with gateway() as server:
        answer = send(server, request_bytes)

    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in answer.lower()


def test_a_client_that_never_finishes_is_cut_off() -> None:
    limits = Limits(idle_s=0.3, request_s=0.3)

    with gateway(limits=limits) as server:
        started_at = time.monotonic()
        assert send(server) == b""
        assert send(server, b"GET /things/1 HTTP/1.1\r\n") == b""
        assert time.monotonic() - started_at < 3
        drip = [b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n", *[b"x"] * 20]
        with pytest.raises(ConnectionError):
            send(server, *drip, pause_s=0.1)


def test_a_taken_port_is_an_error_at_once() -> None:
    with HttpServer() as server, pytest.raises(OSError, match="in use"):
        HttpServer(server.port)


def test_stopping_closes_the_port_and_idle_connections_at_once() -> None:
    with gateway() as server:
        idle = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        call(server, "GET", "/things/1")
        started_at = time.monotonic()
        server.stop()
        took_s = time.monotonic() - started_at

    assert took_s < 1
    assert idle.recv(1) == b""
    idle.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_a_fault_in_an_answer_does_not_end_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    def respond(request: Request) -> Response:
        if request.target == "/bad":
            raise LookupError
        return Response(200)

    with HttpServer() as server:
        server.start(respond)
        assert call(server, "GET", "/bad").status == 500
        assert call(server, "GET", "/good").status == 200
    assert "LookupError" in capsys.readouterr().err


# Schedules


def test_a_schedule_calls_its_function_again_and_again_even_after_a_crash(
    capsys: pytest.CaptureFixture[str],
) -> None:
    events: list[Event] = []
    enough = threading.Event()

    def handler(event: Event, _context: LambdaContext) -> object:
        events.append(event)
        if len(events) == 3:
            enough.set()
        raise ZeroDivisionError

    schedule = Schedule(LocalFunction("Tick", handler, timeout_s=5), period_s=0.02)
    schedule.start()
    assert enough.wait(5)
    schedule.stop()

    assert events[0]["source"] == "aws.events"
    assert events[0]["detail-type"] == "Scheduled Event"
    time.sleep(0.1)
    called = len(events)
    time.sleep(0.1)
    assert len(events) == called
    capsys.readouterr()
