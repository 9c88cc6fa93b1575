"""An HTTP transport with one deadline for the whole exchange and a limit on the response's size.

HTTP clients usually apply timeouts per read and per connection attempt, so a server that drips its
response a byte at a time never times out. Here every socket operation gets the time that remains.
"""

import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore2
import httpx2

__all__ = ["MAX_RESPONSE_BYTES", "BoundedTransport", "ResponseTooLarge"]

# 24 MiB of picture in base64. A 1K JPEG takes 1 to 2 MB. The response is in memory several times.
MAX_RESPONSE_BYTES = 32 * 1024 * 1024
# For TCP, and again for TLS. Leaves time for the other addresses of a host if one does not respond,
# and for a second connection.
MODEL_CONNECT_S = 3.0
MAX_CONNECTIONS = 100


class ResponseTooLarge(Exception):
    """The response's body is larger than ``MAX_RESPONSE_BYTES``."""


class BoundedTransport(httpx2.BaseTransport):
    """HTTP/1.1 in which a request's timeout bounds the whole exchange, and the body has a limit.

    It runs in the caller's thread and closes the connection of an abandoned request, so no thread
    or socket outlives it, and a frozen or snapshotted process has nothing running. httpcore2 passes
    the numbers under ``timeout`` to its network backend unchanged; here they are not durations but
    the time on ``time.monotonic``'s clock at which the exchange must end.

    Every exchange has a connection of its own. One that was idle may be dead without a sign of it:
    a NAT forgets it, or Lambda freezes the process. It accepts the request and never responds,
    which cannot be told from a slow model. A new one costs 1 ms of CPU (measured, one certificate)
    and two round trips, beside the seconds of the model.

    Response headers are dropped, so that there are no redirects to follow, cookies to keep or
    encodings to undo.
    """

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._pool = httpcore2.ConnectionPool(
            ssl_context=tls,
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=0,
            network_backend=_Network(),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends ``request``; its read timeout, in seconds, bounds the whole exchange.

        Raises:
            httpcore2.TimeoutException: the time ran out.
            httpcore2.NetworkError, httpcore2.ProtocolError: the exchange failed.
            ResponseTooLarge: while the body is read.
        """
        timeout_s: float = request.extensions["timeout"]["read"]
        ends_at = time.monotonic() + timeout_s
        limits = {"connect": ends_at, "read": ends_at, "write": ends_at, "pool": timeout_s}
        url = request.url
        response = self._pool.handle_request(
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
        return httpx2.Response(response.status, stream=_BoundedBody(response))

    def close(self) -> None:
        """Closes the connections in use."""
        self._pool.close()


class _BoundedBody(httpx2.SyncByteStream):
    """The body of ``response``, up to ``MAX_RESPONSE_BYTES``."""

    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._response.iter_stream():
            size += len(chunk)
            if size > MAX_RESPONSE_BYTES:
                raise ResponseTooLarge
            yield chunk

    def close(self) -> None:
        self._response.close()


class _Network(httpcore2.NetworkBackend):
    """Sockets whose ``timeout`` is when, on the monotonic clock, the exchange must end."""

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
        """Connects to the first address of ``host`` that responds.

        The standard library would give each address the full timeout.

        Raises:
            httpcore2.ConnectError, httpcore2.ConnectTimeout: no address responded.
        """
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as fault:
            raise httpcore2.ConnectError from fault
        unreachable: Exception = httpcore2.ConnectError()
        for address in addresses:
            left_s = _left_s(timeout, httpcore2.ConnectTimeout)
            try:
                stream = self._sockets.connect_tcp(
                    str(address[4][0]),
                    port,
                    min(left_s, MODEL_CONNECT_S),
                    local_address,
                    socket_options,
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as fault:
                unreachable = fault
            else:
                return _Stream(stream)
        raise unreachable


class _Stream(httpcore2.NetworkStream):
    """A connected socket; ``timeout`` as in ``_Network``."""

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
        limit_s = min(left_s, MODEL_CONNECT_S)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, limit_s))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left_s(ends_at: float | None, timeout: type[httpcore2.TimeoutException]) -> float:
    """Seconds until ``ends_at`` on the monotonic clock.

    Raises:
        httpcore2.TimeoutException: of the type ``timeout``, if ``ends_at`` has passed or is None.
    """
    left_s = (ends_at or 0.0) - time.monotonic()
    if left_s <= 0:
        raise timeout
    return left_s
