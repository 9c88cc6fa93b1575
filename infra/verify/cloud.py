"""An AWS account on this machine: MiniStack, an emulator independent of moto.

It deploys SAM templates, runs the functions' own code with their roles' permissions, and serves
their API and their distribution. What it lacks is added in ``cloud_process.py``.
"""

import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

from infra.lifetime import Runs
from infra.local.aws import REGION
from infra.verify import tools
from infra.verify.child import Child, NotReadyError, free_ports

__all__ = ["ACCOUNT", "Cloud"]

ACCOUNT = "123456789012"
_PROCESS = Path(__file__).with_name("cloud_process.py")
_START_TAKES_S = 60.0


class Cloud(Runs):
    """An empty account, from ``start`` (or ``with``) until ``stop``.

    ``certificate`` is a PEM file with a key and a certificate for 127.0.0.1, which the functions
    trust; ``model_url`` is where they find Gemini.
    """

    def __init__(self, certificate: Path, model_url: str) -> None:
        self._certificate = certificate
        self.model_url = model_url
        self._directory = TemporaryDirectory(prefix="cloud-")
        self._child: Child | None = None
        self.port, self._tls_port = 0, 0

    @property
    def url(self) -> str:
        """The value for ``AWS_ENDPOINT_URL``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        """The same over TLS, as a stack's ``StorageEndpointUrl`` has to be."""
        return f"https://127.0.0.1:{self._tls_port}"

    def environment(self, account: str = ACCOUNT) -> dict[str, str]:
        """The variables with which AWS's tools are the administrator of an account here."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": account,
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
        }

    def start(self) -> None:
        """Returns when it answers.

        Raises:
            ToolMissingError: it is not installed.
            NotReadyError: it does not come up.
        """
        directory = Path(self._directory.name)
        self.port, self._tls_port = free_ports(2)
        ports = [str(self.port), str(self._tls_port)]
        command = [str(tools.ministack()), "-I", str(_PROCESS), *ports, str(self._certificate)]
        child = Child(command, self._variables(directory), directory, directory / "log")
        self._child = child
        try:
            child.wait_until(self._listens, _START_TAKES_S)
        except NotReadyError:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends it and the functions; all that was deployed is gone."""
        if self._child is not None:
            self._child.stop()
        self._directory.cleanup()

    def last_words(self) -> str:
        """The end of what it wrote."""
        return self._child.last_words() if self._child else ""

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def _variables(self, directory: Path) -> dict[str, str]:
        """MiniStack's settings, and what its functions see beside their own variables."""
        return {
            "PATH": os.defpath,
            "TMPDIR": str(directory),
            "GATEWAY_PORT": str(self.port),
            "MINISTACK_ACCOUNT_ID": ACCOUNT,
            "MINISTACK_REGION": REGION,
            # Every call needs a permission, as on AWS.
            "AUTH": "true",
            "AWS_ACCESS_KEY_ID": ACCOUNT,
            "AWS_SECRET_ACCESS_KEY": "test",
            # No other port, and no containers.
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "DOCKER_HOST": "unix:///nowhere",
            # The template's policies deny unencrypted transport.
            "AWS_ENDPOINT_URL": self.tls_url,
            "AWS_CA_BUNDLE": str(self._certificate),
            # The names of APIs end so.
            "MINISTACK_HOST": f"{REGION}.amazonaws.com",
            "FUNCTIONS_PYTHON": str(tools.python313()),
            "GOOGLE_GEMINI_BASE_URL": self.model_url,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
