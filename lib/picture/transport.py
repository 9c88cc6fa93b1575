"""An HTTP exchange that ends: by one deadline for all of it, and with a largest size.

The usual timeouts are per read and per connection attempt, so a server that drips its answer a byte
at a time is never timed out. Here every operation on the socket is given what is left of the time.
"""

import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore2
import httpx2

__all__ = ["MAX_ANSWER_BYTES", "AnswerTooLarge", "BoundedTransport"]

# 24 MiB of picture in base64. A 1K JPEG is 1 to 2 MB; the whole answer is held several times over.
MAX_ANSWER_BYTES = 32 * 1024 * 1024
# One address of several that does not answer must not use up the time of the others.
CONNECT_S = 3.0
# Saves the TLS handshake between calls. A connection that the server closed is not reused.
KEEP_IDLE_S = 60.0
MAX_CONNECTIONS = 100


class AnswerTooLarge(Exception):
    """The body is over ``MAX_ANSWER_BYTES``."""


class BoundedTransport(httpx2.BaseTransport):
    """HTTP/1.1 that ends: a request's timeout limits all of it, and a body has a largest size.

    It runs in the caller's thread and closes the connection of a request that it gives up, so
    neither a thread nor a socket is left behind, and a frozen or snapshotted process has nothing
    running. Every operation on the socket is given what is left of the time: httpcore2 hands the
    numbers under ``timeout`` to its network backend untouched, and here they are not durations but
    the moment, on ``time.monotonic``'s clock, by which the whole exchange must have ended.

    Of the answer's header nothing passes: no redirect to follow, no cookie to keep, no encoding
    to undo.
    """

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._pool = httpcore2.ConnectionPool(
            ssl_context=tls,
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_CONNECTIONS,
            keepalive_expiry=KEEP_IDLE_S,
            network_backend=_Network(),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends ``request``; its read timeout, in seconds, limits the whole exchange."""
        timeout_s: float = request.extensions["timeout"]["read"]
        ends_at = time.monotonic() + timeout_s
        limits = {"connect": ends_at, "read": ends_at, "write": ends_at, "pool": timeout_s}
        url = request.url
        answer = self._pool.handle_request(
            httpcore2.Request(
                method=request.method,
                url=httpcore2.URL(
                    scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                ),
                headers=request.headers.raw,
                content=request.read(),
                extensions={"timeout": limits},
            )
        )
        return httpx2.Response(answer.status, stream=_BoundedBody(answer))

    def close(self) -> None:
        """Closes the idle connections."""
        self._pool.close()


class _BoundedBody(httpx2.SyncByteStream):
    def __init__(self, answer: httpcore2.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._answer.iter_stream():
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                raise AnswerTooLarge
            yield chunk

    def close(self) -> None:
        self._answer.close()


class _Network(httpcore2.NetworkBackend):
    """Sockets whose ``timeout`` is the moment by which all must have ended."""

    def __init__(self) -> None:
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connects to the first address of ``host`` that answers.

        The standard library would give each of them the whole time.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as fault:
            raise httpcore2.ConnectError from fault
        unreachable: Exception = httpcore2.ConnectError()
        for address in found:
            left_s = _left_s(timeout, httpcore2.ConnectTimeout)
            try:
                stream = self._sockets.connect_tcp(
                    str(address[4][0]), port, min(left_s, CONNECT_S), local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as fault:
                unreachable = fault
            else:
                return _Stream(stream)
        raise unreachable


class _Stream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left_s(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left_s(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        left_s = _left_s(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left_s))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left_s(ends_at: float | None, passed: type[httpcore2.TimeoutException]) -> float:
    """Seconds until ``ends_at``; the lack of a moment counts as one that has passed."""
    left_s = (ends_at or 0.0) - time.monotonic()
    if left_s <= 0:
        raise passed
    return left_s
