"""The built functions in Lambda's containers: ``sam local``, as CONTRIBUTING says."""

import http.client
import io
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infra.docs.markdown import Markdown
from infra.local.bridge import Forwarder, address_of, reachable_from_containers
from infra.local.http_server import HttpServer, Request, Response
from infra.local.samples import sam_template, sam_variables
from infra.local.stack import LocalStack
from infra.template import PROJECT_ROOT, Template
from infra.verify import tools
from infra.verify.child import free_ports
from tests.customer import CREDITS, GENERATE, fetch, until
from tests.stacks import ARCHITECTURE

GUIDE = Markdown.read(PROJECT_ROOT / "CONTRIBUTING.md")
BRIDGE = IPv4Interface("127.0.0.2/32")


# The forwarder


@pytest.fixture
def server() -> Iterator[HttpServer]:
    """A server on 127.0.0.1 that responds with what it gets."""

    def echo(request: Request) -> Response:
        return Response(200, (), request.body)

    with HttpServer() as running:
        running.start(echo)
        yield running


def send(from_: str, to: str, port: int, body: bytes) -> bytes:
    connection = http.client.HTTPConnection(to, port, timeout=5, source_address=(from_, 0))
    try:
        connection.request("POST", "/", body)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_a_server_of_this_machine_responds_on_the_bridge_and_on_no_other_address(
    server: HttpServer,
) -> None:
    body = os.urandom(3_000_000)
    with Forwarder(BRIDGE, server.port):
        assert send("127.0.0.2", "127.0.0.2", server.port, body) == body
        with pytest.raises(ConnectionRefusedError):
            send("127.0.0.2", "127.0.0.3", server.port, b"")
    with pytest.raises(ConnectionRefusedError):
        send("127.0.0.2", "127.0.0.2", server.port, b"")


def test_a_client_outside_the_bridges_network_is_disconnected(server: HttpServer) -> None:
    with Forwarder(BRIDGE, server.port), pytest.raises(ConnectionError):
        send("127.0.0.1", "127.0.0.2", server.port, b"from elsewhere")


def test_a_bridge_is_an_interface_of_this_machine() -> None:
    assert address_of("lo") == IPv4Interface("127.0.0.1/8")
    with pytest.raises(OSError), reachable_from_containers([80], "no-bridge"):  # noqa: PT011
        pytest.fail("there is no such interface")


def test_on_macos_docker_itself_leads_a_container_to_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")

    with reachable_from_containers([80], "no-bridge") as host:
        assert host == "host.docker.internal"


# The template


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(latency_s=0) as running:
        yield running


@pytest.mark.parametrize(("machine", "architecture"), [("aarch64", "arm64"), ("x86_64", "x86_64")])
def test_the_template_has_the_functions_as_make_build_builds_them_for_this_machine(
    stack: LocalStack, monkeypatch: pytest.MonkeyPatch, machine: str, architecture: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)

    functions = {
        name: each["Properties"]
        for name, each in json.loads(sam_template(stack))["Resources"].items()
    }

    assert set(functions) == {each.name for each in Template.from_file().functions()}
    for function in functions.values():
        assert function["Architectures"] == [architecture]
        assert function["CodeUri"] == str(PROJECT_ROOT / ".build" / "artifact" / architecture)


def test_the_variables_lead_from_the_container_to_the_stack_and_are_all_declared(
    stack: LocalStack,
) -> None:
    variables = json.loads(sam_variables(stack, "172.17.0.1"))["Parameters"]

    for function in json.loads(sam_template(stack))["Resources"].values():
        assert function["Properties"]["Environment"]["Variables"].keys() == variables.keys()
    for name in ("AWS_ENDPOINT_URL_DYNAMODB", "GOOGLE_GEMINI_BASE_URL"):
        assert variables[name] == os.environ[name].replace("127.0.0.1", "172.17.0.1")
    assert variables["IMAGE_BASE_URL"].startswith(stack.url)


ROUTES = """
import sys
from samcli.lib.providers.api_provider import ApiProvider
from samcli.lib.providers.sam_stack_provider import SamLocalStackProvider
stacks, _ = SamLocalStackProvider.get_stacks(sys.argv[1])
for route in ApiProvider(stacks).api.routes:
    print(route.function_name, route.path, *route.methods)
"""


@pytest.mark.real
def test_sam_finds_every_route_in_the_template(stack: LocalStack, tmp_path: Path) -> None:
    """As ``sam local start-api`` does, which needs Docker before it says so."""
    path = tmp_path / "template.json"
    path.write_text(sam_template(stack), encoding="utf-8")
    printed = subprocess.run(  # noqa: S603 - our own command
        [tools.sam().with_name("python"), "-c", ROUTES, str(path)],
        env={**os.environ, "SAM_CLI_TELEMETRY": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout

    found = {tuple(line.split()[:3]) for line in printed.splitlines()}
    assert len(found) > 5
    for function in Template.from_file().functions():
        for route in function.routes:
            named = {each for each in found if each[:2] == (function.name, route.path)}
            assert named, route


# The guide


def reason_to_skip() -> str:
    """Why ``sam local`` can't run here, or nothing."""
    docker = shutil.which("docker")
    if docker is None:
        return "Docker is not installed"
    image = f"public.ecr.aws/lambda/python:3.13-{ARCHITECTURE}"
    for command, reason in {
        "info": "no Docker engine runs",
        f"image inspect {image}": f"run `docker pull {image}` first",
    }.items():
        asked = [docker, *command.split()]
        done = subprocess.run(asked, capture_output=True, timeout=60, check=False)  # noqa: S603
        if done.returncode:
            return reason
    return ""


@dataclass(frozen=True)
class Contributor:
    """Runs the guide's commands in a checkout."""

    directory: Path
    environment: Mapping[str, str]

    def run(self, command: str) -> str:
        return subprocess.run(  # noqa: S603 - the guide's own line
            shlex.split(command),
            cwd=self.directory,
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            text=True,
            timeout=120,
            check=True,
        ).stdout

    @contextmanager
    def running(self, command: str, until_: str) -> Iterator[None]:
        """The command runs in the block, which begins when it has printed ``until_``."""
        with subprocess.Popen(  # noqa: S603 - the guide's own line
            shlex.split(command),
            cwd=self.directory,
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            printed = ""
            try:
                while until_ not in printed:
                    line = process.stdout.readline()
                    assert line, printed
                    printed += line
                yield
            finally:
                os.killpg(process.pid, signal.SIGINT)

    def local_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['PORT']}"

    def key(self) -> str:
        return (self.directory / ".local" / "api-key").read_text(encoding="utf-8").strip()


@pytest.fixture
def contributor(tmp_path: Path) -> Contributor:
    """A checkout that shares everything with this one but what the local stack writes."""
    reason = reason_to_skip()
    if reason:
        pytest.skip(reason)
    for path in PROJECT_ROOT.iterdir():
        if path.name not in {".local", ".git"}:
            (tmp_path / path.name).symlink_to(path)
    foreign = ("AWS_", "GEMINI_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return Contributor(
        tmp_path,
        {
            **own,
            "PATH": os.pathsep.join([str(tools.sam().parent), os.environ["PATH"]]),
            "PORT": str(free_ports(1)[0]),
            "PYTHONUNBUFFERED": "1",
            "SAM_CLI_TELEMETRY": "0",
            "SAM_SKIP_PULL_IMAGE": "1",
            # SAM gives functions the shell's variables too.
            "AWS_REGION": "eu-central-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        },
    )


@pytest.mark.real
def test_the_guide_runs_as_written_and_one_key_charges_once(contributor: Contributor) -> None:
    """``sam local start-api`` sends the names of headers in Title-Case."""
    title = "Run the built functions in Lambda's container"
    (start,), (invoke, serve) = (each.commands() for each in GUIDE.section(title).fences)
    port = free_ports(1)[0]

    with contributor.running(start, "Requests:"):
        assert_is_paid(json.loads(contributor.run(invoke).splitlines()[-1]))
        with contributor.running(f"{serve} --port {port}", "Press CTRL+C to quit"):
            api = f"http://127.0.0.1:{port}"
            own = {"Authorization": f"Bearer {contributor.key()}"}
            order = {**own, "Content-Type": "application/json", "Idempotency-Key": "order-1042"}
            answers = [fetch(api + GENERATE, "POST", b'{"prompt": "A fox"}', order) for _ in "12"]

            assert_is_paid({"statusCode": answers[0].status, "body": answers[0].body})
            assert answers[1].headers["idempotent-replayed"] == "true"
            assert answers[0].body == answers[1].body
            assert fetch(api + CREDITS, headers=own).json()["credits"] == 95
            later = order | {"Idempotency-Key": "order-1043", "Prefer": "respond-async"}
            accepted = fetch(api + GENERATE, "POST", b'{"prompt": "A fox"}', later)
            assert accepted.status == 202, accepted
            worked_on = contributor.local_url() + accepted.headers["location"]
            ended = until(
                lambda: fetch(worked_on, headers=own).json(),
                lambda generation: generation["status"] != "reserved",
            )
            assert ended["status"] == "settled"
            assert fetch(f"{api}/no/route").headers["x-error-code"] == "not_found"


def assert_is_paid(answer: Mapping[str, Any]) -> None:
    """It is a 200, and the picture can be fetched from this machine."""
    assert answer["statusCode"] == 200, answer
    stored = fetch(json.loads(answer["body"])["imageUrl"])
    Image.open(io.BytesIO(stored.body), formats=["PNG"]).load()
