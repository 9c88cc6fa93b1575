"""A threaded HTTP/1.1 server on 127.0.0.1: werkzeug's, with keep-alive and limits on what it reads.

werkzeug closes each connection after one response, because a WSGI application may leave a part of
the request unread. Here the request is read whole before the application is called, so connections
can stay open, as they do at API Gateway and at AWS.
"""

import contextlib
import io
import json
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.wrappers import Response as WsgiResponse

from infra.lifetime import Stops
from infra.local.connections import ConnectionTracking

__all__ = ["HttpServer", "Limits", "Request", "Respond", "Response", "json_response"]

_BACKLOG = 512
_RECEIVE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """A request. Header names are lower-case; the body is whole and no longer chunked."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    source_ip: str

    def header(self, name: str) -> str | None:
        """The header's values joined with commas, or None."""
        values = [value for key, value in self.headers if key == name]
        return ",".join(values) if values else None


@dataclass(frozen=True, slots=True)
class Response:
    """A response. ``Content-Length`` is added from the body."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


Respond = Callable[[Request], Response]


@dataclass(frozen=True, slots=True)
class Limits:
    """Larger requests are refused with 413 and 431; slower clients are disconnected."""

    body_bytes: int = 10 * 1024 * 1024
    header_bytes: int = 10 * 1024
    idle_s: float = 60.0
    linger_s: float = 1.0


def json_response(status: int, message: str) -> Response:
    """``{"message": ...}``, the form of every error that API Gateway makes itself."""
    body = json.dumps({"message": message}, separators=(",", ":")).encode()
    return Response(status, (("content-type", "application/json"),), body)


class HttpServer(Stops):
    """Listens as soon as it is made; responds from ``start`` or ``serve`` until ``stop``."""

    def __init__(self, port: int = 0, limits: Limits | None = None) -> None:
        """Listens on ``port``, or on any free one if it is 0.

        Raises:
            OSError: the port is taken or not allowed.
        """
        # werkzeug exits the process when it can't bind, so it gets a socket that is bound already.
        with socket.create_server(("127.0.0.1", port), backlog=_BACKLOG) as listener:
            self.port: int = listener.getsockname()[1]
            self._server = _Server(listener.fileno(), self.port, limits or Limits())
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, respond: Respond) -> None:
        """Responds with ``respond``, which many threads call at once."""
        self.serve(_application(respond))

    def serve(self, application: WSGIApplication) -> None:
        """Responds with a WSGI application, which many threads call at once."""
        self._server.app = application
        self._server.start()

    def stop(self) -> None:
        """Closes the port and every connection; waits up to 1 s for their threads to end."""
        self._server.stop()


def _application(respond: Respond) -> WSGIApplication:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        response = respond(_request(environ))
        # WSGI carries the bytes of a header as Latin-1.
        headers = [(name, value.encode().decode("latin-1")) for name, value in response.headers]
        return WsgiResponse(response.body, response.status, headers)(environ, start_response)

    return application


def _request(environ: WSGIEnvironment) -> Request:
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") or name in {"CONTENT_TYPE", "CONTENT_LENGTH"}
    }
    return Request(
        method=environ["REQUEST_METHOD"],
        target=environ["RAW_URI"],
        headers=tuple(headers.items()),
        body=environ["wsgi.input"].read(),
        source_ip=environ["REMOTE_ADDR"],
    )


class _Server(ConnectionTracking, ThreadedWSGIServer):
    def __init__(self, listener: int, port: int, limits: Limits) -> None:
        super().__init__("127.0.0.1", port, _not_started, _Handler, fd=listener)
        self.limits = limits


def _not_started(_environ: WSGIEnvironment, _start: StartResponse) -> Iterable[bytes]:
    raise RuntimeError("the server is not started")


class _Refused(Exception):
    """The request is not read to its end: the client gets ``response``, and is disconnected."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class _Handler(WSGIRequestHandler):
    """Reads requests and writes responses, one after the other, until the client leaves."""

    server: _Server
    protocol_version = default_request_version = "HTTP/1.1"
    # Otherwise the kernel may delay a small response by 40 ms.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.limits.idle_s)

    def run_wsgi(self) -> None:
        """Called by werkzeug for each request whose header could be read."""
        try:
            environ = self._environ()
        except _Refused as refusal:
            self._refuse(refusal.response)
            return
        try:
            response = WsgiResponse.from_app(self.server.app, environ, buffered=True)
        except Exception:  # noqa: BLE001 - a fault in one response must not end the server
            traceback.print_exc(file=sys.stderr)
            error = json_response(500, "Internal Server Error")
            response = WsgiResponse(error.body, error.status, error.headers)
        if self.command == "HEAD":
            headers, body = response.headers, b""
        else:
            headers, body = response.get_wsgi_headers(environ), response.get_data()
        self._write(response.status_code, list(headers), body)

    def handle_expect_100(self) -> bool:
        """Nothing yet: ``_environ`` continues, or refuses the body before it is sent."""
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Called by ``http.server`` for a request that it can't read."""
        del message, explain
        self.command = getattr(self, "command", None) or ""
        self._refuse(json_response(code, HTTPStatus(code).phrase))

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        """Keeps requests out of the terminal: the gateway has its own log."""

    def _environ(self) -> WSGIEnvironment:
        limits = self.server.limits
        size = sum(len(name) + len(value) for name, value in self.headers.items())
        if len(self.path) + size > limits.header_bytes:
            raise _Refused(json_response(431, "Request Header Fields Too Large"))
        announced = ",".join(self.headers.get_all("Content-Length", ["0"]))
        is_number = announced.isascii() and announced.isdigit()
        if self.headers.defects or "Host" not in self.headers or not is_number:
            raise _Refused(json_response(400, "Bad Request"))
        if int(announced) > limits.body_bytes:
            raise _Refused(json_response(413, "Request Entity Too Large"))
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.environ = environ = self.make_environ()
        chunked = environ.get("wsgi.input_terminated", False)
        body = self._body(environ["wsgi.input"], None if chunked else int(announced))
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        return environ

    def _body(self, stream: io.BufferedIOBase, announced: int | None) -> bytes:
        most = self.server.limits.body_bytes
        try:
            body = stream.read(most + 1 if announced is None else announced)
        except (ConnectionError, TimeoutError):
            raise
        except OSError as fault:
            # werkzeug's error for a malformed chunk.
            raise _Refused(json_response(400, "Bad Request")) from fault
        if len(body) > most:
            raise _Refused(json_response(413, "Request Entity Too Large"))
        if announced is not None and len(body) < announced:
            raise ConnectionAbortedError("the client left before the end of its request")
        return body

    def _refuse(self, response: Response) -> None:
        headers = [*response.headers, ("content-length", str(len(response.body)))]
        self._write(response.status, [*headers, ("Connection", "close")], response.body)
        # Closing at once would reset a client that still sends, and it would not see the response.
        ends_at = time.monotonic() + self.server.limits.linger_s
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while (left_s := ends_at - time.monotonic()) > 0:
                self.connection.settimeout(left_s)
                if not self.connection.recv(_RECEIVE_BYTES):
                    return

    def _write(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            # In lower case throughout, as clients see them over HTTP/2.
            self.send_header(name.lower(), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
