"""A threaded HTTP/1.1 server on 127.0.0.1: one request in, one response out, keep-alive between.

h11 reads and writes the protocol, so chunked bodies, ``Expect: 100-continue`` and malformed
requests are dealt with as RFC 9112 says. What the service and the embedded AWS do with a request
is a function that is passed to ``start``.
"""

import contextlib
import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import h11

from infra.lifetime import Stops

__all__ = ["HttpServer", "Limits", "Request", "Respond", "Response", "json_response"]

_BACKLOG = 512
_RECEIVE_BYTES = 64 * 1024
_POLL_S = 0.05
_WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


@dataclass(frozen=True, slots=True)
class Request:
    """What came in. Header names are lower-case; the body is whole and no longer chunked."""

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
    """What goes out. ``Content-Length`` is added from the body."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


Respond = Callable[[Request], Response]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask of the server; past each of them it is told so, or cut off."""

    body_bytes: int = 10 * 1024 * 1024
    header_bytes: int = 10 * 1024
    connections: int = 1024
    idle_s: float = 60.0
    request_s: float = 30.0
    send_s: float = 30.0
    linger_s: float = 1.0


def json_response(status: int, message: str) -> Response:
    """``{"message": ...}``, the form of every answer that API Gateway gives by itself."""
    body = json.dumps({"message": message}, separators=(",", ":")).encode()
    return Response(status, (("content-type", "application/json"),), body)


class HttpServer(Stops):
    """Listens from the moment it is made; answers from ``start`` to ``stop``."""

    def __init__(self, port: int = 0, limits: Limits | None = None) -> None:
        """Takes ``port``, or any free one if it is 0.

        Raises:
            OSError: the port is taken or not allowed.
        """
        self._limits = limits or Limits()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        self._listener.settimeout(_POLL_S)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._stopping = threading.Event()
        self._acceptor: threading.Thread | None = None
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}

    def start(self, respond: Respond) -> None:
        """Answers every request with ``respond``, each connection on a thread of its own."""
        self._acceptor = threading.Thread(
            target=self._accept, args=(respond,), name=f"http-{self.port}", daemon=True
        )
        self._acceptor.start()

    def stop(self, grace_s: float = 1.0) -> None:
        """Closes the port and every connection; waits ``grace_s`` for their threads to end."""
        self._stopping.set()
        if self._acceptor is not None:
            self._acceptor.join()
        self._listener.close()
        with self._lock:
            connections = dict(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        ends_at = time.monotonic() + grace_s
        for thread in connections.values():
            thread.join(max(0.0, ends_at - time.monotonic()))

    def _accept(self, respond: Respond) -> None:
        while not self._stopping.is_set():
            try:
                connection, (source_ip, _) = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                # No file descriptor is free just now; the backlog keeps the client waiting.
                self._stopping.wait(_POLL_S)
                continue
            thread = threading.Thread(
                target=self._serve, args=(connection, source_ip, respond), daemon=True
            )
            with self._lock:
                full = len(self._open) >= self._limits.connections
                if not full:
                    self._open[connection] = thread
            if full:
                connection.close()
            else:
                thread.start()

    def _serve(self, connection: socket.socket, source_ip: str, respond: Respond) -> None:
        try:
            # Without it the kernel may hold a small answer back for 40 ms.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _Conversation(connection, source_ip, self._limits).hold(respond)
        except OSError:
            # The client is gone or too slow; there is nobody left to tell.
            pass
        finally:
            with self._lock:
                del self._open[connection]
            connection.close()


class _Refused(Exception):
    """The request is not taken; the client gets ``response`` and the connection ends."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class _Conversation:
    """The requests and responses of one connection, one after the other."""

    def __init__(self, connection: socket.socket, source_ip: str, limits: Limits) -> None:
        self._socket = connection
        self._source_ip = source_ip
        self._limits = limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_RECEIVE_BYTES)

    def hold(self, respond: Respond) -> None:
        """Answers requests until the client leaves, breaks the protocol or asks for the end."""
        while True:
            try:
                request = self._read()
            except _Refused as refusal:
                self._write(refusal.response, method="", last=True)
                self._linger()
                return
            if request is None:
                return
            try:
                response = respond(request)
            except Exception:  # noqa: BLE001 - a fault in one answer must not end the server
                traceback.print_exc(file=sys.stderr)
                response = json_response(500, "Internal Server Error")
            self._write(response, method=request.method, last=False)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    def _read(self) -> Request | None:
        try:
            return self._read_request()
        except h11.RemoteProtocolError as fault:
            if fault.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
                response = json_response(431, "Request Header Fields Too Large")
            else:
                response = json_response(400, "Bad Request")
            raise _Refused(response) from fault

    def _read_request(self) -> Request | None:
        head = self._next_event(time.monotonic() + self._limits.idle_s)
        if not isinstance(head, h11.Request):
            return None
        self._refuse_if_too_large(head)
        if self._http.they_are_waiting_for_100_continue:
            self._send(h11.InformationalResponse(status_code=100, headers=[]))
        body = bytearray()
        ends_at = time.monotonic() + self._limits.request_s
        while isinstance(event := self._next_event(ends_at), h11.Data):
            body += event.data
            if len(body) > self._limits.body_bytes:
                raise _Refused(json_response(413, "Request Entity Too Large"))
        return Request(
            method=head.method.decode("ascii"),
            target=head.target.decode("ascii"),
            headers=tuple((n.decode("ascii"), v.decode("latin-1")) for n, v in head.headers),
            body=bytes(body),
            source_ip=self._source_ip,
        )

    def _refuse_if_too_large(self, head: h11.Request) -> None:
        size = len(head.target) + sum(len(name) + len(value) for name, value in head.headers)
        if size > self._limits.header_bytes:
            raise _Refused(json_response(431, "Request Header Fields Too Large"))
        announced = next((value for name, value in head.headers if name == b"content-length"), b"0")
        if int(announced) > self._limits.body_bytes:
            raise _Refused(json_response(413, "Request Entity Too Large"))

    def _next_event(self, ends_at: float) -> object:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._socket.settimeout(left_s)
            self._http.receive_data(self._socket.recv(_RECEIVE_BYTES))

    def _write(self, response: Response, *, method: str, last: bool) -> None:
        try:
            head = _head(response, method=method, last=last)
        except h11.LocalProtocolError:
            traceback.print_exc(file=sys.stderr)
            response = json_response(500, "Internal Server Error")
            head = _head(response, method=method, last=last)
        if method == "HEAD" or response.status in _WITHOUT_BODY:
            self._send(head, h11.EndOfMessage())
        else:
            self._send(head, h11.Data(data=response.body), h11.EndOfMessage())

    def _send(self, *events: h11.Event) -> None:
        parts = [self._http.send(event) or b"" for event in events]
        self._socket.settimeout(self._limits.send_s)
        self._socket.sendall(b"".join(parts))

    def _linger(self) -> None:
        """Lets a client that is still sending read the refusal: closing at once would reset it."""
        ends_at = time.monotonic() + self._limits.linger_s
        self._socket.shutdown(socket.SHUT_WR)
        while (left_s := ends_at - time.monotonic()) > 0:
            self._socket.settimeout(left_s)
            if not self._socket.recv(_RECEIVE_BYTES):
                return


def _head(response: Response, *, method: str, last: bool) -> h11.Response:
    framing = {b"connection", b"transfer-encoding"}
    if method != "HEAD":
        framing.add(b"content-length")
    headers = [(name.lower().encode(), value.encode()) for name, value in response.headers]
    headers = [(name, value) for name, value in headers if name not in framing]
    if response.status != HTTPStatus.NO_CONTENT and b"content-length" not in dict(headers):
        headers.append((b"content-length", b"%d" % len(response.body)))
    if last:
        headers.append((b"connection", b"close"))
    return h11.Response(status_code=response.status, headers=headers)
