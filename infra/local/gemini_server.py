"""The HTTP server of the Gemini stand-in, which can also misbehave as a bad connection does.

It hangs, drips bytes, resets connections and cuts bodies short, which no well-kept server offers.
"""

import json
import os
import select
import socket
import socketserver
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from infra.local.connections import ConnectionTracking

__all__ = ["LONGEST_S", "ModelConnection", "ModelRequest", "ModelResponse", "ModelServer"]

LONGEST_S = 60.0
_MAX_REQUEST_BYTES = 1024 * 1024
_REMEMBERED = 1_000
_TOO_LARGE = b"""{"error": {"code": 400, "status": "INVALID_ARGUMENT",
    "message": "Request payload size exceeds the limit."}}"""
_DRIP_S = 0.2
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request as received: header names in lower case, the body parsed (None if not JSON)."""

    path: str
    headers: Mapping[str, str]
    body: object


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """A complete HTTP response."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(
        default_factory=lambda: {"Content-Type": "application/json; charset=UTF-8"}
    )


class ModelServer(ConnectionTracking, socketserver.TCPServer):
    """HTTP/1.1 on 127.0.0.1. ``received`` holds the last requests, oldest first."""

    allow_reuse_address = True
    request_queue_size = 256

    def __init__(
        self, port: int, respond: Callable[[ModelRequest, "ModelConnection"], ModelResponse | None]
    ) -> None:
        """``respond`` returns the response, or uses the connection itself and returns None."""
        super().__init__(("127.0.0.1", port), ModelConnection)
        self.respond = respond
        self.received: deque[ModelRequest] = deque(maxlen=_REMEMBERED)

    @property
    def url(self) -> str:
        """The server's address, without a slash at the end."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Reports a fault of the server; a client that disconnects is none."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _ClientGoneError(Exception):
    """The client disconnected, or the server is stopping."""


class ModelConnection(BaseHTTPRequestHandler):
    """One connection: reads requests, asks the server for responses and sends them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 2 * LONGEST_S
    server: ModelServer

    def do_POST(self) -> None:
        """Called by ``http.server`` for a request of any method."""
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > _MAX_REQUEST_BYTES:
            self.close_connection = True
            self._send(ModelResponse(400, _TOO_LARGE))
            return
        request = _parsed(self.path, dict(self.headers.items()), self.rfile.read(int(length)))
        self.server.received.append(request)
        try:
            response = self.server.respond(request, self)
        except _ClientGoneError:
            response = None
        if response is None:
            self.close_connection = True
        else:
            self._send(response)

    do_GET = do_PUT = do_DELETE = do_PATCH = do_POST  # noqa: N815 - http.server's names

    def wait(self, seconds: float) -> None:
        """Waits, at most ``LONGEST_S``; gives the request up when the client disconnects."""
        ends_at = time.monotonic() + min(seconds, LONGEST_S)
        while (left_s := ends_at - time.monotonic()) > 0:
            if self.server.stopping.wait(min(left_s, _POLL_S)) or self._is_disconnected():
                raise _ClientGoneError

    def reset(self) -> None:
        """Ends the connection with RST: closed with no time to linger, and no FIN before."""
        now = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        os.close(self.connection.detach())

    def send_head(self, response: ModelResponse) -> None:
        """Sends the status line and the headers, as if the body were to follow."""
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()

    def drip(self, data: bytes) -> None:
        """Sends a byte every ``_DRIP_S``, for at most ``LONGEST_S``."""
        for byte in data[: round(LONGEST_S / _DRIP_S)]:
            self.wfile.write(bytes([byte]))
            self.wait(_DRIP_S)

    def send_chunks(self, chunk: bytes, total: int) -> None:
        """Sends a 200 that repeats ``chunk``, until ``total`` bytes or the client disconnects."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(total // len(chunk)):
            if self.server.stopping.is_set():
                return
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Logs nothing: prompts stay out of the terminal."""

    def _send(self, response: ModelResponse) -> None:
        self.send_head(response)
        self.wfile.write(response.body)

    def _is_disconnected(self) -> bool:
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except ConnectionError:
            return True


def _parsed(path: str, headers: Mapping[str, str], body: bytes) -> ModelRequest:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    return ModelRequest(path, {name.lower(): value for name, value in headers.items()}, document)
