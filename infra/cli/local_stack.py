"""The local stack that ``make run`` started here, as ``--local`` finds it.

A checkout may come from anyone, and ``.local/environment.json`` with it. So only known variables
are read, those with addresses only if they name this machine, and none that makes the SDK run a
program or read another file.
"""

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from infra.cli.errors import CommandFailed

__all__ = ["LOCAL_DIRECTORY", "local_environment", "local_variables"]

LOCAL_DIRECTORY = Path(".local")
MAX_FILE_BYTES = 64 * 1024
CONNECT_S = 2
_NAMES = re.compile(
    "AWS_ACCESS_KEY_ID|AWS_SECRET_ACCESS_KEY|AWS_REGION|AWS_DEFAULT_REGION|CREDITS_TABLE"
    "|ORG_SECRET_PREFIX|IMAGE_BUCKET|STORAGE_CREDENTIALS_SECRET"
    "|GEMINI_API_KEY_SECRET|GEMINI_MODEL|POWERTOOLS_SERVICE_NAME|POWERTOOLS_METRICS_NAMESPACE"
    "|RECEIPT_KEY|RETIRED_RECEIPT_KEYS|REFUSED_PROMPTS_PER_DAY"
)
_ADDRESSES = re.compile(
    "AWS_ENDPOINT_URL(_[A-Z0-9_]+)?|GOOGLE_GEMINI_BASE_URL|IMAGE_BASE_URL|JOBS_QUEUE_URL"
    "|STORAGE_ENDPOINT_URL"
)
# The operator's own account at AWS or Google.
_FOREIGN = ("AWS_", "GOOGLE_", "GEMINI_")
_NOTHING_ELSE = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


def local_variables() -> Mapping[str, str]:
    """The variables of the running local stack.

    Raises:
        CommandFailed: there is none, it has ended, or its file names another machine.
    """
    path = LOCAL_DIRECTORY / "environment.json"
    try:
        with path.open("rb") as stream:
            content = json.loads(stream.read(MAX_FILE_BYTES))
        variables = {str(name): str(value) for name, value in content.items()}
    except FileNotFoundError as fault:
        raise CommandFailed(
            f"there is no {path} here; start the local stack with `make run`, or change to "
            "the directory where it was started"
        ) from fault
    except (OSError, ValueError, AttributeError) as fault:
        raise CommandFailed(f"{path} is unreadable; restart `make run`") from fault
    addresses = {name: value for name, value in variables.items() if _ADDRESSES.fullmatch(name)}
    for name, value in addresses.items():
        if value and not _is_loopback(value):
            raise CommandFailed(
                f"{name} in {path} is not an address of this machine; delete the file, and restart "
                "`make run`"
            )
    _check_alive(addresses.get("AWS_ENDPOINT_URL_DYNAMODB", ""))
    names = {name: value for name, value in variables.items() if _NAMES.fullmatch(name)}
    return names | addresses


@contextmanager
def local_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Replaces the operator's own accounts in ``os.environ``, and restores them at the end."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(_FOREIGN):
            del os.environ[name]
    os.environ.update({**variables, **_NOTHING_ELSE})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _is_loopback(url: str) -> bool:
    try:
        address = urlsplit(url)
        return address.scheme == "http" and ip_address(address.hostname or "").is_loopback
    except ValueError:
        return False


def _check_alive(url: str) -> None:
    """A local stack that was killed leaves its file behind, but does not listen on its port."""
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=CONNECT_S).close()
    except (OSError, TypeError, ValueError) as fault:
        raise CommandFailed("the local stack has ended; start it again with `make run`") from fault
