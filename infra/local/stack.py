"""The whole service in this process: embedded AWS, Gemini stand-in, gateway, schedules.

``template.yaml`` defines it: the table, the functions with their handlers, timeouts and variables,
the routes, the schedules, CORS. The handlers are the real ones; only the addresses in their
environment point to this machine.
"""

import contextlib
import gc
import importlib
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from handlers.dependencies import dependencies
from infra.lifetime import Runs
from infra.local.aws import EmbeddedAws
from infra.local.functions import LambdaContext, LocalFunction, Schedule
from infra.local.gateway import IMAGES_PATH, Gateway, ImageSource
from infra.local.gemini_stand_in import GeminiStandIn
from infra.local.http_server import HttpServer, Response
from infra.local.queue import EventSource
from infra.template import Function, Template
from lib.deadline import Deadline
from lib.keys.key_ring import KeyRing
from lib.ledger.accounts import Accounts
from lib.ledger.rows import Grant
from lib.ledger.table import Table

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["FIRST_CREDITS", "ORGANISATION", "Handler", "LocalStack", "StackError"]

ORGANISATION = "demo"
FIRST_CREDITS = 100
SETUP_S = 10.0
DRAIN_S = 0.5
# Keeps the user's own AWS account and Google key out.
_FOREIGN = ("AWS_", "GEMINI_", "GOOGLE_", "MOTO_", "POWERTOOLS_")
_OF_GOOGLE = ("GEMINI_MODEL", "GOOGLE_GEMINI_BASE_URL")
_IMAGE_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")

Handler = Callable[[dict[str, object], LambdaContext], object]
"""A Lambda handler: takes an event and a context, returns the result."""


class StackError(Exception):
    """The template asks for something that the local stack doesn't support."""


class LocalStack(Runs):
    """The service on ``http://127.0.0.1:<port>``, with one organisation that has 100 credits.

    All state is in memory. While it runs, ``os.environ`` points the handlers to it, so one process
    runs one stack at a time.
    """

    def __init__(  # noqa: PLR0913 - each has a name and a default
        self,
        port: int = 0,
        *,
        latency_s: float = 1.5,
        gemini_api_key: str | None = None,
        server: HttpServer | None = None,
        log: Callable[[str], None] = lambda _line: None,
        template: Template | None = None,
        aws: EmbeddedAws | None = None,
        handlers: Callable[[Function], Handler] | None = None,
        throttled: bool = True,
    ) -> None:
        """Listens on ``port`` (0: any), or on the port that ``server`` has taken already.

        The stand-in responds after ``latency_s``; with ``gemini_api_key`` Google is called instead.
        ``log`` gets one line per request. ``handlers`` runs the functions outside this process; it
        is called once ``os.environ`` holds their environment. ``throttled`` as the deployed API is.

        Raises:
            OSError: the port is taken or not allowed.
        """
        self._server = server or HttpServer(port)
        self._template = template or Template.from_file()
        self._gemini_api_key = gemini_api_key
        self._log = log
        self._handlers = handlers
        self._throttled = throttled
        self._schedules: list[Schedule] = []
        self._sources: list[EventSource] = []
        self._functions: dict[str, LocalFunction] = {}
        self._undo = contextlib.ExitStack()
        self.url = self._server.url
        self.organisation = ORGANISATION
        self.api_key = ""
        self.aws = aws or EmbeddedAws()
        self.table = "credits"
        # All stacks of a process share bucket names. The underscore is not allowed in a host name,
        # so boto3 puts the name into the path.
        self.bucket = f"images_{self.aws.account_id}"
        self.stand_in = None if gemini_api_key else GeminiStandIn(latency_s=latency_s)

    @property
    def ports(self) -> list[int]:
        """The ports of 127.0.0.1 that the functions call."""
        servers = [self.aws.url, self.stand_in.url if self.stand_in else ""]
        return [port for port in (urlsplit(url).port for url in servers) if port]

    def start(self) -> None:
        """Starts everything and opens the organisation's account.

        Raises:
            StackError: the template asks for something unsupported.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops everything within about two seconds and restores the environment."""
        for schedule in self._schedules:
            schedule.stop()
        for source in self._sources:
            source.stop()
        # The model stops first, so that requests that wait for it end with a refund.
        if self.stand_in is not None:
            self.stand_in.stop()
        self._server.stop()
        ends_at = time.monotonic() + DRAIN_S
        for function in self._functions.values():
            function.drain(ends_at)
        self._undo.close()
        self.aws.stop()

    def open_account(self, organisation: str, credits_: int) -> str:
        """Opens an account for ``organisation`` with ``credits_`` credits; returns an API key."""
        deadline = Deadline(SETUP_S)
        accounts = Accounts(Table(self.aws.client("dynamodb"), self.table))
        accounts.create(organisation, deadline)
        if credits_:
            grant = Grant("welcome", credits_, "Opening balance", "local stack", int(time.time()))
            accounts.grant(organisation, grant, deadline)
        keys = KeyRing(self.aws.client("secretsmanager"), os.environ["ORG_SECRET_PREFIX"])
        return keys.issue(organisation).key

    def invoke(self, function: str, event: dict[str, object]) -> object:
        """The result of a function for an event.

        Raises:
            FunctionCrashed, FunctionTimedOut
        """
        return self._functions[function].invoke(event)

    def _start(self) -> None:
        self.aws.start()
        if self.stand_in is not None:
            self.stand_in.start()
        # First: moto reads the user's AWS_PROFILE, too, once it is asked for a service.
        of_sdks = self._of_sdks()
        self._undo.enter_context(_environment(of_sdks))
        definitions = self._template.functions()
        queues = {
            name: self.aws.create_queue(name, self._template)
            for each in definitions
            for name in each.queues
        }
        os.environ.update(self._variables(definitions, queues) | of_sdks)
        self._fill_aws()
        handler_of = self._handlers or _handler
        self._functions = {each.name: _function(each, handler_of(each)) for each in definitions}
        if self._handlers is None:
            self._undo.enter_context(_warm(self._gemini_api_key))
        for definition in definitions:
            for period_s in definition.schedules_s:
                schedule = Schedule(self._functions[definition.name], period_s)
                schedule.start()
                self._schedules.append(schedule)
            for name in definition.queues:
                source = EventSource(
                    self.aws.client("sqs"), queues[name], self._functions[definition.name]
                )
                source.start()
                self._sources.append(source)
        gateway = Gateway(
            routes=[
                (route, self._functions[definition.name])
                for definition in definitions
                for route in definition.routes
            ],
            cors=self._template.cors(),
            images=_image_source(self.aws.client("s3"), self.bucket),
            throttles=self._template.throttles() if self._throttled else None,
            log=self._log,
        )
        self.api_key = self.open_account(self.organisation, FIRST_CREDITS)
        self._server.start(gateway.respond)

    def _fill_aws(self) -> None:
        self.aws.create_table(self.table, self._template)
        self.aws.create_bucket(self.bucket)
        # The user's own key goes to the functions past the secret, which other processes can read.
        self.aws.create_secret(os.environ["GEMINI_API_KEY_SECRET"], "any-key-for-the-stand-in")

    def _of_sdks(self) -> dict[str, str]:
        """What the SDKs read: the embedded AWS, and Google as the user set it."""
        own = {name: os.environ[name] for name in _OF_GOOGLE if name in os.environ}
        if self.stand_in is not None:
            own["GOOGLE_GEMINI_BASE_URL"] = self.stand_in.url
        return own | dict(self.aws.environment())

    def _variables(
        self, definitions: Iterable[Function], queues: Mapping[str, str]
    ) -> dict[str, str]:
        """The environment of the functions, by the names in the template."""
        here = {
            "CREDITS_TABLE": self.table,
            "IMAGE_BUCKET": self.bucket,
            "IMAGE_BASE_URL": self.url + IMAGES_PATH.rstrip("/"),
            "GEMINI_API_KEY_SECRET": "gemini-api-key",
            "JOBS_QUEUE_URL": queues.get("JobsQueue", ""),
            "PUBLIC_URL": self.url,
            "RECEIPT_KEY": self.aws.create_signing_key(),
            "POWERTOOLS_SERVICE_NAME": "gemini-generate",
        }
        variables: dict[str, str] = {}
        for definition in definitions:
            for name, written in definition.environment.items():
                value = here[name] if name in here else self._template.literal(written)
                if value is None:
                    raise StackError(f"the local stack has no value for the variable {name}")
                variables[name] = value
        return variables


def _module(definition: Function) -> ModuleType:
    return importlib.import_module(definition.handler.rpartition(".")[0])


def _handler(definition: Function) -> Handler:
    handler: Handler = getattr(_module(definition), definition.handler.rpartition(".")[2])
    return handler


def _function(definition: Function, handler: Handler) -> LocalFunction:
    return LocalFunction(definition.name, handler, definition.timeout_s, definition.memory_mb)


def _image_source(s3: "S3Client", bucket: str) -> ImageSource:
    def image(key: str) -> Response | None:
        # Only keys that the service can have stored: never "../".
        if not _IMAGE_KEY.fullmatch(key):
            return None
        try:
            stored = s3.get_object(Bucket=bucket, Key=key)
        except s3.exceptions.NoSuchKey:
            return None
        headers = {
            "content-type": stored.get("ContentType"),
            "cache-control": stored.get("CacheControl"),
            "etag": stored.get("ETag"),
        }
        known = tuple((name, value) for name, value in headers.items() if value)
        return Response(200, known, stored["Body"].read())

    return image


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Gives ``os.environ`` the functions' variables, and restores it afterwards."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(_FOREIGN):
            del os.environ[name]
    os.environ.update(variables)
    for name in ("NO_PROXY", "no_proxy"):
        own = [before[name]] if before.get(name) else []
        os.environ[name] = ",".join([*own, "127.0.0.1"])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _warm(gemini_api_key: str | None) -> Iterator[None]:
    """Builds the handlers' dependencies for this environment, and drops them afterwards.

    In a Lambda sandbox the first request comes alone and builds them; here a hundred may come at
    once.
    """
    drop_dependencies()
    if gemini_api_key:
        from lib.picture.gemini import Gemini  # noqa: PLC0415 - it takes most of a start

        model = dependencies().settings.gemini_model
        dependencies().model = Gemini(lambda: gemini_api_key, model)
    for name in ("telemetry", "key_verifier", "jobs", "deletions", "reconciler", "signer"):
        getattr(dependencies(), name)
    try:
        yield
    finally:
        drop_dependencies()


def drop_dependencies() -> None:
    """Makes the handlers rebuild their dependencies from the current environment."""
    if not dependencies.cache_info().currsize:
        return
    # On Lambda the idle connections end with the process.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        dependencies.cache_clear()
        gc.collect()
