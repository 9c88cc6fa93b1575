"""The two local stacks on which the contract is tested.

In the first the handlers run in this process. In the second only the built artifact runs, in
Lambda's runtime, with the ledger in Amazon's DynamoDB Local.
"""

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from infra.build import python313
from infra.build.artifact import build
from infra.local.aws import EmbeddedAws
from infra.local.stack import LocalStack
from infra.template import PROJECT_ROOT
from infra.verify.dynamodb_local import DynamoDbLocal
from infra.verify.sandboxes import Sandboxes

__all__ = [
    "ARCHITECTURE",
    "HERE",
    "SLOW_STACKS",
    "STACKS",
    "artifact",
    "artifact_stack",
    "new_stack",
]

# Its native code runs on this machine.
ARCHITECTURE = "x86_64" if platform.machine() == "x86_64" else "arm64"
IN_THIS_PROCESS = "handlers in this process"
ON_THE_ARTIFACT = pytest.param("artifact in Lambda's runtime", marks=pytest.mark.real)
STACKS = [IN_THIS_PROCESS, ON_THE_ARTIFACT]
# For slow tests that inspect this process.
HERE = [pytest.param(IN_THIS_PROCESS, marks=pytest.mark.real)]
# For slow tests: `make verify` runs them on the artifact; run them here to debug.
SLOW_STACKS = [pytest.param(IN_THIS_PROCESS, marks=pytest.mark.slow), ON_THE_ARTIFACT]


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact that ``make build`` makes of the working tree for this machine."""
    into = tmp_path_factory.mktemp("artifact")
    build(PROJECT_ROOT, ARCHITECTURE, into, python313.find())
    return into


def new_stack(request: pytest.FixtureRequest) -> AbstractContextManager[LocalStack]:
    """The stack for a fixture with the parameters ``STACKS``."""
    if request.param == IN_THIS_PROCESS:
        return LocalStack(latency_s=0)
    return artifact_stack(request.getfixturevalue("artifact"))


@contextmanager
def artifact_stack(root: Path, packages: tuple[Path, ...] = ()) -> Iterator[LocalStack]:
    """A stack whose functions run from ``root`` and may also import from ``packages``."""
    with (
        DynamoDbLocal() as dynamodb,
        Sandboxes(root, packages) as sandboxes,
        LocalStack(
            latency_s=0,
            aws=EmbeddedAws(dynamodb_url=dynamodb.url),
            handlers=sandboxes.handler,
        ) as stack,
    ):
        yield stack
