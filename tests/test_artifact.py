"""The built artifact, alone in Lambda's own runtime: what ``tests/test_contract.py`` leaves.

That file runs the whole contract of the paid route on it. Here are the other functions, and the
proof that nothing was cut which anything asks for.
"""

import io
import json
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from infra.build import wheels
from infra.build.cuts import is_cut
from infra.local.stack import LocalStack
from infra.template import PROJECT_ROOT, Template
from infra.verify import tools
from infra.verify.lambda_runtime import LambdaRuntime, Task
from infra.verify.sandboxes import environment_of
from lib.deadline import Deadline
from lib.ledger.ledger import Ledger
from lib.ledger.order import Order
from lib.ledger.rows import Generation
from lib.ledger.table import Table
from lib.picture.aspect_ratio import AspectRatio
from tests.customer import (
    CREDITS,
    MESSAGES,
    RATIOS,
    Customer,
    event_of,
    fetch,
    picture_at,
)
from tests.stacks import ARCHITECTURE, artifact_stack
from tests.test_gemini import self_signed_certificate

pytestmark = pytest.mark.real

REQUIREMENTS = PROJECT_ROOT / "infra" / "requirements" / "runtime.txt"
WHEELS = PROJECT_ROOT / ".build" / "wheels"
REACHED_OVER_TLS = (
    "AWS_ENDPOINT_URL_DYNAMODB",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_SECRETS_MANAGER",
    "GOOGLE_GEMINI_BASE_URL",
)
# Written into a directory that the sandboxes import from: Python runs it before anything else.
NOTES_WHAT_NOBODY_FINDS = """
import sys

class NoSecret:
    def find_spec(self, name, path=None, target=None):
        with open({notes!r}, "a") as notes:
            notes.write(name + chr(10))
        return None

sys.meta_path.append(NoSecret())
"""


@pytest.fixture(scope="module")
def not_found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The names of the modules that a sandbox asked for and did not find, one a line."""
    directory = tmp_path_factory.mktemp("notes")
    notes = directory / "not-found"
    script = NOTES_WHAT_NOBODY_FINDS.format(notes=str(notes))
    (directory / "sitecustomize.py").write_text(script, "utf-8")
    return notes


@pytest.fixture(scope="module")
def stack(artifact: Path, not_found: Path) -> Iterator[LocalStack]:
    with artifact_stack(artifact, (not_found.parent,)) as running:
        yield running


@pytest.fixture
def customer(stack: LocalStack) -> Customer:
    return Customer(stack)


def reserve_an_hour_ago(customer: Customer) -> Generation:
    """A generation that a worker began an hour ago and never ended."""
    stack = customer.stack
    table = Table(stack.aws.client("dynamodb"), stack.table)
    return Ledger(table, clock=lambda: time.time() - 3600).reserve(
        Order(customer.organisation, "A fox", AspectRatio.SQUARE),
        lambda ms: f"generated/gemini/{customer.organisation}/{ms}.png",
        Deadline(10),
    )


def reconcile(stack: LocalStack) -> Any:
    return stack.invoke("ReconcileFunction", {"source": "aws.events"})


def test_the_interpreter_has_nothing_that_the_artifact_should_bring() -> None:
    command = [str(tools.python313()), "-c", "import boto3"]

    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - our own

    assert b"ModuleNotFoundError" in done.stderr


def test_a_real_picture_of_any_ratio_passes_through_the_artifact(customer: Customer) -> None:
    for ratio in RATIOS:
        answer = customer.generate("A lighthouse in a storm", aspectRatio=ratio)

        assert answer.status == 200, answer
        assert picture_at(answer.json()["imageUrl"]).size > (600, 600)

    assert customer.balance() == 100 - 5 * len(RATIOS)


def test_the_account_function_answers_with_the_balance_and_says_that_it_is_well(
    stack: LocalStack, customer: Customer
) -> None:
    health = fetch(stack.url + "/healthz")

    assert (health.status, health.json()) == (200, {"status": "ok"})
    assert fetch(stack.url + CREDITS).status == 401
    assert customer.balance() == 100


def test_an_abandoned_reservation_without_a_picture_is_refunded(
    stack: LocalStack, customer: Customer
) -> None:
    reserve_an_hour_ago(customer)
    assert customer.balance() == 95

    assert reconcile(stack)["refunded"] >= 1

    assert customer.balance() == 100


def test_an_abandoned_reservation_with_a_whole_picture_is_settled(
    stack: LocalStack, customer: Customer
) -> None:
    generation = reserve_an_hour_ago(customer)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(buffer, "PNG")
    stack.aws.client("s3").put_object(
        Bucket=stack.bucket,
        Key=generation.image_key,
        Body=buffer.getvalue(),
        Metadata={"attempt": generation.attempt_id},
    )

    assert reconcile(stack)["settled"] >= 1

    assert reconcile(stack)["settled"] == 0
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_a_request_goes_through_over_tls_as_it_does_on_aws(
    customer: Customer, artifact: Path, not_found: Path, tmp_path: Path
) -> None:
    certificate = self_signed_certificate(tmp_path / "certificate.pem")
    functions = {each.name: each for each in Template.from_file().functions()}
    generate = functions["GenerateFunction"]
    task = Task(artifact, (not_found.parent,), generate.handler, generate.timeout_s)
    environment = environment_of(generate)
    environment |= {"AWS_CA_BUNDLE": str(certificate), "SSL_CERT_FILE": str(certificate)}
    body = json.dumps({"prompt": "A fox"})
    headers = {"authorization": f"Bearer {customer.key}", "content-type": "application/json"}
    with ExitStack() as fronts:
        for name in REACHED_OVER_TLS:
            front = tls_front(environment[name], certificate)
            environment[name] = fronts.enter_context(front)
            customer.stack.aws.accept(url=environment[name])
        with LambdaRuntime(task, environment) as sandbox:
            answer = sandbox.invoke(event_of(body, is_base64=False, headers=headers), 40)

    assert answer["statusCode"] == 200, answer
    assert customer.balance() == 95


@contextmanager
def tls_front(url: str, certificate: Path) -> Iterator[str]:
    """An address that begins with ``https`` and leads to ``url``, which begins with ``http``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    target = urlsplit(url)

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=pass_on, args=(connection,), daemon=True).start()

    def pass_on(connection: socket.socket) -> None:
        with (
            suppress(OSError),
            context.wrap_socket(connection, server_side=True) as outside,
            socket.create_connection((str(target.hostname), target.port or 80)) as inside,
        ):
            while True:
                waiting = outside.pending() > 0
                ready = [outside] if waiting else select.select([outside, inside], [], [], 40)[0]
                for side in ready:
                    received = side.recv(65536)
                    if not received:
                        return
                    (inside if side is outside else outside).sendall(received)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_nothing_that_was_cut_is_asked_for_not_even_by_who_can_do_without(
    stack: LocalStack, not_found: Path
) -> None:
    customer = Customer(stack)
    for failure in MESSAGES:
        assert customer.generate(f"A fox [fail:{failure}]").status == 500
    for body in (b"", b"{", b'{"prompt": 5}', b"\xff"):
        assert customer.post(body).status == 400
    customer.generate(idempotency_key="again")
    assert customer.generate(idempotency_key="again").status == 200
    reconcile(stack)
    audited: Any = stack.invoke("AuditFunction", {"source": "aws.events"})
    assert audited["organisations"] > 0
    customer.balance()

    asked_for = set(not_found.read_text("utf-8").split())
    assert asked_for, "sandboxes note what they don't find"
    assert asked_for & modules_cut() == set()


def modules_cut() -> set[str]:
    """The names of all modules that are in the wheels and not in the artifact."""
    found = wheels.fetch(REQUIREMENTS, ARCHITECTURE, WHEELS)
    names = [name for wheel in found for name, _ in wheels.contents(wheel) if is_cut(name)]
    modules = {module_of(name) for name in names if name.endswith((".py", ".so"))}
    assert {"cryptography", "requests", "distro", "PIL._avif"} <= modules
    return modules


def module_of(name: str) -> str:
    """``package/module.py`` is ``package.module``."""
    path, _, file = name.rpartition("/")
    stem = file.split(".", 1)[0]
    return (path if stem == "__init__" else f"{path}/{stem}").strip("/").replace("/", ".")
