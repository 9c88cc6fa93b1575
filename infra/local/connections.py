"""Socket servers that count their connections and can close them, which ``socketserver`` can't."""

import contextlib
import socket
import socketserver
import threading
import time
from typing import Any

__all__ = ["ConnectionTracking"]

_POLL_S = 0.05


class ConnectionTracking(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """A mix-in: serves each connection on a daemon thread, and closes all of them on request."""

    daemon_threads = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stopping = threading.Event()
        self.connections_made = 0
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        self._serving = threading.Thread(target=self.serve_forever, args=(_POLL_S,), daemon=True)

    @property
    def open_connections(self) -> int:
        """How many connections clients hold open now."""
        with self._changed:
            return len(self._open)

    def start(self) -> None:
        """Accepts connections from now on."""
        self._serving.start()

    def hang_up(self, within_s: float = 1.0) -> None:
        """Closes every connection; waits up to ``within_s`` for the threads that serve them."""
        ends_at = time.monotonic() + within_s
        with self._changed:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._open, ends_at - time.monotonic())

    def stop(self) -> None:
        """Closes the port and every connection."""
        self.stopping.set()
        if self._serving.is_alive():
            self.shutdown()
            self._serving.join()
        self.server_close()
        self.hang_up()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Called by ``socketserver`` for each new connection."""
        with self._changed:
            self._open.add(request)
            self.connections_made += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Called by ``socketserver`` at the end of each connection."""
        super().shutdown_request(request)
        with self._changed:
            self._open.discard(request)
            self._changed.notify_all()
