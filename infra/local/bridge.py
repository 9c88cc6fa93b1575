"""Lets Lambda's containers reach servers that listen on 127.0.0.1 only.

On Linux a container reaches this machine at the address of Docker's bridge, where a forwarder
listens: at that address alone, and for the bridge's network alone. Docker Desktop on macOS brings a
container to this machine's 127.0.0.1 by itself.
"""

import contextlib
import fcntl
import platform
import socket
import socketserver
import struct
import threading
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Interface, ip_address
from typing import Any

from infra.lifetime import Runs
from infra.local.connections import ConnectionTracking

__all__ = ["DOCKER", "Forwarder", "address_of", "reachable_from_containers"]

DOCKER = "docker0"
# https://docs.docker.com/desktop/features/networking/#i-want-to-connect-from-a-container-to-a-service-on-the-host
_ON_MACOS = "host.docker.internal"
# Linux's netdevice(7).
_GET_ADDRESS, _GET_NETMASK = 0x8915, 0x891B
_IDLE_S = 120.0
_RECEIVE_BYTES = 64 * 1024


@contextlib.contextmanager
def reachable_from_containers(ports: Iterable[int], interface: str = DOCKER) -> Iterator[str]:
    """Until it exits, containers reach these ports of 127.0.0.1 at the host that it yields.

    Raises:
        OSError: there is no such interface, or one of the ports is taken there.
    """
    if platform.system() == "Darwin":
        yield _ON_MACOS
        return
    bridge = address_of(interface)
    with contextlib.ExitStack() as forwarders:
        for port in ports:
            forwarders.enter_context(Forwarder(bridge, port))
        yield str(bridge.ip)


def address_of(interface: str) -> IPv4Interface:
    """The IPv4 address of a network interface and its network, such as 172.17.0.1/16.

    Raises:
        OSError: there is no such interface, or it has no address.
    """
    request = struct.pack("256s", interface.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        address, netmask = (
            socket.inet_ntoa(fcntl.ioctl(any_socket, code, request)[20:24])
            for code in (_GET_ADDRESS, _GET_NETMASK)
        )
    return IPv4Interface(f"{address}/{netmask}")


class Forwarder(Runs):
    """Passes connections to a port of ``bridge`` on to the same port of 127.0.0.1.

    Clients outside the bridge's network are disconnected.
    """

    def __init__(self, bridge: IPv4Interface, port: int) -> None:
        """Listens.

        Raises:
            OSError: the port is taken there.
        """
        self._server = _Server(bridge, port)

    def start(self) -> None:
        """Forwards from now on."""
        self._server.start()

    def stop(self) -> None:
        """Closes the port and every connection."""
        self._server.stop()


class _Server(ConnectionTracking, socketserver.TCPServer):
    allow_reuse_address = True

    def __init__(self, bridge: IPv4Interface, port: int) -> None:
        self.port = port
        self._network = bridge.network
        super().__init__((str(bridge.ip), port), _Connection)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Called by ``socketserver`` for each new connection."""
        del request
        return ip_address(client_address[0]) in self._network


class _Connection(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        """Called by ``socketserver`` for each connection that was accepted."""
        target = ("127.0.0.1", self.server.port)
        with contextlib.suppress(OSError), socket.create_connection(target, _IDLE_S) as server:
            self.request.settimeout(_IDLE_S)
            answers = threading.Thread(target=_pass_on, args=(server, self.request), daemon=True)
            answers.start()
            _pass_on(self.request, server)
            answers.join()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    """Copies until the source ends, breaks or is idle, then ends the sink."""
    with contextlib.suppress(OSError):
        while data := source.recv(_RECEIVE_BYTES):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
