"""Handlers in Lambda's own runtime loop, killed or stopped at random moments.

DynamoDB Local keeps the ledger; the images, the secrets, the queue and the model are servers in
this process. The queue soon redelivers what a worker does not finish.
"""

import io
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from PIL import Image

from infra.local.aws import CREDENTIALS, REGION, EmbeddedAws
from infra.local.gemini_stand_in import GeminiStandIn
from infra.template import PROJECT_ROOT, Template
from infra.verify import tools
from infra.verify.lambda_runtime import Crashed, LambdaRuntime, Task, TimedOut
from lib.deadline import WORKER_TIMEOUT_S
from lib.jobs import Job
from lib.keys.key_ring import KeyRing
from lib.ledger.rows import Generation, Status
from tests.engines import Engine
from tests.reporting import Tried, report, tally
from tests.world import BASE_URL, World

if TYPE_CHECKING:
    from mypy_boto3_sqs.literals import QueueAttributeNameType
    from mypy_boto3_sqs.type_defs import MessageTypeDef

# One worker at a time: each of these tests keeps two cores busy by itself.
pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real death")]

HANDLER = "handlers.generate.handler"
WORKER = "handlers.worker.handler"
SANDBOXES = 2
KILLS_PER_SANDBOX = 100
SLOW_SANDBOXES = 4
STOPS_PER_SANDBOX = 4
STOPPED_TIMEOUT_S = 7
PAUSES = 30
RETRIES = 12
# A request may be answered before it is killed; then another one is sent.
MOST_REQUESTS_PER_KILL = 4
ANSWER_S = 60.0
AHEAD_S = 600.0
SECRETS = "orgs/"
REFUSED = "[fail:safety]"
NO_ANSWER = 0

ASYNC = "respond-async"
WORKERS_KILLED = 100
ACCEPTORS_KILLED = 30
# Seconds until the queue redelivers a job; the template's minutes are for real models.
VISIBILITY_TIMEOUT_S = 2
# The share of completed messages that is redelivered, as SQS does now and then.
DELIVERED_TWICE = 0.1
# The share of deliveries that is not killed, to measure how long one takes.
SPARED = 0.15
# The share of the others that is killed around the settle.
AFTER_STORING = 0.3
A_CALL_S = 0.02
JOBS_WAITING = 8
DRAINED_WITHIN_S = 120.0


Moment = Callable[["Future[int]"], object]
"""Returns at the moment to kill, or earlier if the request is answered."""


@dataclass
class Caller:
    """An organisation, the sandboxes that it calls, and the answer to each of its prompts.

    ``told_free`` holds the prompts whose answer said that nothing is charged.
    """

    world: World
    api_key: str
    environment: dict[str, str]
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    told_free: set[str] = field(default_factory=set)

    def event(self, prompt: str, api_key: str, prefer: str = "") -> dict[str, Any]:
        """The event of API Gateway's HTTP API (payload 2.0)."""
        return {
            "version": "2.0",
            "routeKey": "POST /api/v1/models/gemini/generate",
            "headers": {
                "authorization": f"Bearer {api_key}",
                "idempotency-key": prompt,
                "prefer": prefer,
            },
            "requestContext": {"requestId": "a-request"},
            "body": json.dumps({"prompt": prompt}),
            "isBase64Encoded": False,
        }

    def sandbox(self, timeout_s: int = 29, handler: str = HANDLER) -> LambdaRuntime:
        """A sandbox with the code under test."""
        task = Task(PROJECT_ROOT, (tools.packages(),), handler, timeout_s)
        return LambdaRuntime(task, self.environment)

    def warm_up(self, sandbox: LambdaRuntime) -> int:
        """Waits until the runtime is idle; returns its process id."""
        return _idle(sandbox, self.event("hello", "not-a-key"), ("statusCode", 401))

    def ask(self, sandbox: LambdaRuntime, prompt: str, prefer: str = "") -> int:
        """Sends a request whose idempotency key is its prompt; returns the status."""
        try:
            answer = sandbox.invoke(self.event(prompt, self.api_key, prefer), ANSWER_S)
        except (Crashed, TimedOut):
            self.answers[prompt] = (NO_ANSWER, "")
            return NO_ANSWER
        self.answers[prompt] = (answer["statusCode"], answer["body"])
        # A replay says 0 too: of itself, not of the generation.
        if answer["statusCode"] >= 400 and answer["headers"]["X-Credits-Charged"] == "0":
            self.told_free.add(prompt)
        return int(answer["statusCode"])

    def unanswered(self) -> list[str]:
        """The prompts whose requests ended with the process."""
        return [prompt for prompt, (status, _) in self.answers.items() if status == NO_ANSWER]

    def fates(self) -> str:
        """How far the unanswered requests came, for the report."""
        status = {each.prompt: each.status for each in self.world.generations()}
        found = Counter(status.get(prompt) for prompt in self.unanswered())
        return (
            f"{found[None]} before the debit, {found[Status.RESERVED]} while reserved,"
            f" {found[Status.SETTLED]} settled, {found[Status.REFUNDED]} refunded"
        )

    def violations(self) -> list[str]:
        """Contradictions in the ledger, in the store, and with the answers."""
        wrong = self.world.violations()
        by_prompt = {each.prompt: each for each in self.world.generations()}
        for prompt, (status, body) in self.answers.items():
            generation = by_prompt.get(prompt)
            charged = generation is not None and generation.status is Status.SETTLED
            if status == 200:
                url = json.loads(body)["imageUrl"]
                if generation is None or url != f"{BASE_URL}/{generation.image_key}" or not charged:
                    wrong.append(f"{prompt!r} was answered with {url}, which is not charged")
            elif status == 202:
                url = json.loads(body)["imageUrl"]
                if generation is None or url != f"{BASE_URL}/{generation.image_key}":
                    wrong.append(f"{prompt!r} was accepted as {url}, which does not exist")
            if prompt in self.told_free and charged:
                wrong.append(f"{prompt!r} was told 0 with a {status} and is charged")
        for key in self.world.stored_keys():
            stored = self.world.engine.s3.get_object(Bucket=self.world.engine.bucket, Key=key)
            with Image.open(io.BytesIO(stored["Body"].read())) as image:
                image.load()
        return wrong


class LocalQueue:
    """The template's queue on its own server, with a short visibility timeout."""

    def __init__(self, aws: EmbeddedAws) -> None:
        self._client = aws.client("sqs")
        self._url = aws.create_queue("JobsQueue")
        self._dead_url = self._client.get_queue_url(QueueName="DeadJobs")["QueueUrl"]
        self._client.set_queue_attributes(
            QueueUrl=self._url, Attributes={"VisibilityTimeout": str(VISIBILITY_TIMEOUT_S)}
        )
        self.environment = {"JOBS_QUEUE_URL": self._url, "AWS_ENDPOINT_URL_SQS": aws.url}

    def receive(self) -> "MessageTypeDef | None":
        """A visible message, if there is one."""
        answer = self._client.receive_message(
            QueueUrl=self._url, MaxNumberOfMessages=1, MessageSystemAttributeNames=["All"]
        )
        return next(iter(answer.get("Messages", [])), None)

    def delete(self, message: "MessageTypeDef") -> None:
        """Removes a message that was processed."""
        self._client.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])

    def waiting(self) -> int:
        """The number of messages, in flight ones included."""
        return self._count(self._url)

    def dead(self) -> int:
        """The number of dead letters."""
        return self._count(self._dead_url)

    def _count(self, url: str) -> int:
        names: list[QueueAttributeNameType] = [
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesNotVisible",
        ]
        answer = self._client.get_queue_attributes(QueueUrl=url, AttributeNames=names)
        return sum(int(answer["Attributes"][name]) for name in names)


class Workers:
    """Sandboxes of the worker, and what became of their deliveries."""

    def __init__(self, caller: Caller, queue: LocalQueue) -> None:
        self.killed = 0
        self.deliveries: Counter[int] = Counter()
        self.fates: Counter[str] = Counter()
        self.dying = threading.Event()
        self.dying.set()
        self.over = threading.Event()
        self._customer = caller
        self._queue = queue
        # Seconds of a delivery, by whether the runtime is fresh and the model refuses.
        self._usual = Durations()
        self._lock = threading.Lock()

    def run(self, chance: random.Random) -> None:
        """Works in one sandbox until ``over``, and is killed while ``dying`` is set."""
        fresh = True
        with self._customer.sandbox(WORKER_TIMEOUT_S, WORKER) as sandbox:
            while not self.over.is_set():
                pid = _idle(sandbox, {"Records": []}, ("batchItemFailures", []))
                message = self._queue.receive()
                if message is None:
                    time.sleep(0.05)
                    continue
                fresh = self._deliver(sandbox, pid, message, chance, fresh=fresh)

    def _deliver(
        self,
        sandbox: LambdaRuntime,
        pid: int,
        message: "MessageTypeDef",
        chance: random.Random,
        *,
        fresh: bool,
    ) -> bool:
        """One delivery; returns whether the runtime was killed."""
        before = self._generation(message)
        kind = (fresh, REFUSED in before.prompt)
        spared = kind not in self._usual or chance.random() < SPARED or not self.dying.is_set()
        if spared:
            comes = _after(ANSWER_S)
        elif chance.random() < AFTER_STORING:
            comes = self._once_stored(before, chance.uniform(0, 2 * A_CALL_S))
        else:
            comes = _after(_moment(chance) * self._usual.of(kind))
        took_s = _kill(partial(self._work, sandbox, message), pid, comes)
        with self._lock:
            self.deliveries[int(message["Attributes"]["ApproximateReceiveCount"])] += 1
            if took_s is None:
                self.killed += 1
                self.fates[self._fate(message)] += 1
            elif spared and before.status is Status.RESERVED:
                # Of the others, the slow ones are killed, which would bias the average.
                self._usual.add(kind, took_s)
        if took_s is not None and chance.random() > DELIVERED_TWICE:
            self._queue.delete(message)
        return took_s is None

    def _once_stored(self, generation: Generation, delay_s: float) -> Moment:
        """The moment ``delay_s`` after the image is stored: around the settle."""
        images = self._customer.world.process().images

        def comes(asked: "Future[int]") -> None:
            while not asked.done() and images.read(generation.image_key) is None:
                wait([asked], timeout=A_CALL_S / 10)
            wait([asked], timeout=delay_s)

        return comes

    def _work(self, sandbox: LambdaRuntime, message: "MessageTypeDef") -> int:
        record = {
            "messageId": message["MessageId"],
            "body": message["Body"],
            "attributes": message["Attributes"],
            "eventSource": "aws:sqs",
        }
        try:
            answer = sandbox.invoke({"Records": [record]}, ANSWER_S)
        except (Crashed, TimedOut):
            return NO_ANSWER
        assert answer == {"batchItemFailures": []}, sandbox.last_words()
        return 200

    def _generation(self, message: "MessageTypeDef") -> Generation:
        job = Job.from_message(message["Body"])
        world = self._customer.world
        found = world.process().ledger.generation(
            job.organisation, job.created_ms, world.deadline()
        )
        assert found is not None
        return found

    def _fate(self, message: "MessageTypeDef") -> str:
        """How far a killed delivery came, or an earlier one of the same job."""
        generation = self._generation(message)
        if generation.status is not Status.RESERVED:
            return str(generation.status)
        stored = self._customer.world.process().images.read(generation.image_key)
        return "reserved" if stored is None else "stored"


class Durations:
    """The running average of the seconds that each kind of call takes."""

    def __init__(self) -> None:
        self._average_s: dict[object, float] = {}

    def __contains__(self, kind: object) -> bool:
        return kind in self._average_s

    def of(self, kind: object) -> float:
        """The average; ``ANSWER_S`` before the first call."""
        return self._average_s.get(kind, ANSWER_S)

    def add(self, kind: object, took_s: float) -> None:
        self._average_s[kind] = (took_s + self._average_s.get(kind, took_s)) / 2


@pytest.fixture
def caller(real_engine: Engine) -> Iterator[Caller]:
    """A new organisation with 5,000 credits, and the settings that the template gives."""
    with (
        World(real_engine, credits_=5_000, rate_limit=100_000) as world,
        GeminiStandIn(latency_s=0.05, fixed_picture=True) as model,
    ):
        # For the reconciler of this world every lease of the real clock has expired.
        world.clock.sleep(AHEAD_S)
        gemini_key = f"gemini-key-of-{world.organisation}"
        here = {
            "CREDITS_TABLE": world.table,
            "IMAGE_BUCKET": real_engine.bucket,
            "IMAGE_BASE_URL": BASE_URL,
            "ORG_SECRET_PREFIX": SECRETS,
            "GEMINI_API_KEY_SECRET": gemini_key,
            "GOOGLE_GEMINI_BASE_URL": model.url,
        }
        environment = _from_template() | here | dict(real_engine.environment)
        yield Caller(world, _secrets(environment, world.organisation), environment)


@pytest.fixture
def queue(caller: Caller) -> Iterator[LocalQueue]:
    """The queue of the caller's jobs."""
    with EmbeddedAws() as aws:
        made = LocalQueue(aws)
        caller.environment.update(made.environment)
        yield made


def test_a_runtime_killed_at_any_moment_leaves_a_paid_image_or_a_refund(
    caller: Caller, seed: int
) -> None:
    def kill_many(number: int) -> None:
        _kill_requests(caller, KILLS_PER_SANDBOX, _chance(f"{seed}-{number}"), f"fox {number}")

    _at_once(SANDBOXES, kill_many)
    kills = caller.unanswered()
    fates = caller.fates()
    caller.world.settle_down()

    assert caller.violations() == []
    _retries_are_charged_once(caller, _chance(seed).sample(kills, RETRIES))
    tally(Tried.REQUEST_KILLS, len(kills))
    report(f"real death: {len(kills)} kills ({fates}), 0 violations; SEED={seed}")


def test_a_runtime_stopped_until_its_timeout_leaves_a_paid_image_or_a_refund(
    caller: Caller, seed: int
) -> None:
    def stop_some(number: int) -> None:
        chance = _chance(f"{seed}-{number}")
        with caller.sandbox(STOPPED_TIMEOUT_S) as sandbox:
            for request in range(STOPS_PER_SANDBOX):
                pid = caller.warm_up(sandbox)
                with ThreadPoolExecutor(1) as pool:
                    asked = pool.submit(caller.ask, sandbox, f"owl {number}.{request}")
                    time.sleep(chance.uniform(0, 0.6))
                    os.kill(pid, signal.SIGSTOP)
                    asked.result()

    _at_once(SLOW_SANDBOXES, stop_some)
    stops = caller.unanswered()
    fates = caller.fates()
    caller.world.settle_down()

    assert stops
    assert caller.violations() == []
    tally(Tried.REQUEST_STOPS, len(stops))
    report(f"real timeouts: {len(stops)} ({fates}), 0 violations; SEED={seed}")


def test_a_runtime_that_resumes_after_the_reconciler_delivers_no_unpaid_image(
    caller: Caller, seed: int
) -> None:
    chance = _chance(seed)
    with caller.sandbox() as sandbox:
        answers: Counter[int] = Counter()
        pid = caller.warm_up(sandbox)
        takes_s = 0.0
        for number in range(2):
            began = time.monotonic()
            assert caller.ask(sandbox, f"warm {number}") == 200
            takes_s = time.monotonic() - began
        for number in range(PAUSES):
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(caller.ask, sandbox, f"hare {number}")
                time.sleep(chance.uniform(0, takes_s))
                os.kill(pid, signal.SIGSTOP)
                caller.world.reconcile(caller.world.process())
                os.kill(pid, signal.SIGCONT)
                answers[asked.result()] += 1
    caller.world.settle_down()

    assert caller.violations() == []
    assert set(answers) == {200, 500}
    tally(Tried.REQUEST_STOPS, PAUSES)
    report(
        f"real pauses: {PAUSES} past the lease ({answers[200]} paid and delivered,"
        f" {answers[500]} refunded), 0 violations; SEED={seed}"
    )


def test_a_worker_killed_at_any_moment_leaves_a_paid_image_or_a_refund(
    caller: Caller, queue: LocalQueue, seed: int
) -> None:
    workers = Workers(caller, queue)
    chance = _chance(seed)
    with ThreadPoolExecutor(SANDBOXES) as pool, caller.sandbox() as acceptor:
        running = [
            pool.submit(workers.run, _chance(f"{seed}-{number}")) for number in range(SANDBOXES)
        ]
        try:
            caller.warm_up(acceptor)
            # Twice, all leases expire while jobs are in progress: messages outlive their jobs.
            for killed in (WORKERS_KILLED // 2, WORKERS_KILLED):
                while workers.killed < killed and not any(each.done() for each in running):
                    if queue.waiting() < JOBS_WAITING:
                        prompt = _prompt(f"fox {len(caller.answers)}", chance)
                        assert caller.ask(acceptor, prompt, ASYNC) == 202
                    time.sleep(0.02)
                caller.world.let_leases_pass()
                caller.world.reconcile(caller.world.process())
            workers.dying.clear()
            _wait_until(lambda: queue.waiting() == 0, DRAINED_WITHIN_S)
        finally:
            workers.over.set()
        for each in running:
            each.result()
    caller.world.settle_down()

    assert caller.violations() == []
    assert workers.killed >= WORKERS_KILLED
    ended = Counter(each.status for each in caller.world.generations())
    assert ended[Status.SETTLED] > 0 < ended[Status.REFUNDED]
    assert workers.deliveries[2] > 0
    fates = ", ".join(f"{number} {name}" for name, number in sorted(workers.fates.items()))
    tally(Tried.WORKER_KILLS, workers.killed)
    report(
        f"real worker death: {workers.killed} kills ({fates}) in"
        f" {sum(workers.deliveries.values())} deliveries of {len(caller.answers)} jobs"
        f" ({queue.dead()} dead letters); {ended[Status.SETTLED]} settled,"
        f" {ended[Status.REFUNDED]} refunded, 0 violations; SEED={seed}"
    )


def test_an_acceptor_killed_at_any_moment_leaves_a_paid_image_or_a_refund(
    caller: Caller, queue: LocalQueue, seed: int
) -> None:
    chance = _chance(seed)
    _kill_requests(caller, ACCEPTORS_KILLED, chance, "fox", ASYNC)
    kills, fates, sent = caller.unanswered(), caller.fates(), queue.waiting()
    _work_off(caller, queue, chance)
    caller.world.settle_down()

    assert caller.violations() == []
    accepted = {prompt for prompt, (status, _) in caller.answers.items() if status == 202}
    settled = {each.prompt for each in caller.world.generations() if each.settled_at}
    assert {prompt for prompt in accepted if REFUSED not in prompt} <= settled
    _retries_are_charged_once(caller, chance.sample(kills, RETRIES))
    tally(Tried.ACCEPTOR_KILLS, len(kills))
    report(
        f"real acceptor death: {len(kills)} kills ({fates}; {sent} messages for"
        f" {len(accepted)} answers), 0 violations; SEED={seed}"
    )


def _kill_requests(
    caller: Caller, kills: int, chance: random.Random, name: str, prefer: str = ""
) -> None:
    """Sends requests to one sandbox until so many of them were killed in flight."""
    usual = Durations()
    killed, fresh = 0, False
    with caller.sandbox() as sandbox:
        for request in range(kills * MOST_REQUESTS_PER_KILL):
            prompt = _prompt(f"{name}.{request}", chance)
            kind = (fresh, REFUSED in prompt)
            pid = caller.warm_up(sandbox)
            comes = _after(_moment(chance) * usual.of(kind))
            answered_s = _kill(partial(caller.ask, sandbox, prompt, prefer), pid, comes)
            if answered_s is not None:
                usual.add(kind, answered_s)
            fresh = answered_s is None
            killed += fresh
            if killed == kills:
                return
    pytest.fail(f"only {killed} requests were killed in flight")


def _work_off(caller: Caller, queue: LocalQueue, chance: random.Random) -> None:
    """Drains the queue with a worker that is not killed."""
    workers = Workers(caller, queue)
    workers.dying.clear()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(workers.run, chance)
        try:
            _wait_until(lambda: queue.waiting() == 0, DRAINED_WITHIN_S)
        finally:
            workers.over.set()
        running.result()


def _wait_until(condition: Callable[[], bool], within_s: float) -> None:
    ends_at = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends_at, f"it did not happen within {within_s} s"
        time.sleep(0.1)


def _secrets(environment: Mapping[str, str], organisation: str) -> str:
    """Stores a key for the model; issues one for the organisation, and returns it."""
    client = boto3.client(
        "secretsmanager",
        endpoint_url=environment["AWS_ENDPOINT_URL_SECRETS_MANAGER"],
        region_name=REGION,
        **CREDENTIALS,
    )
    client.create_secret(Name=environment["GEMINI_API_KEY_SECRET"], SecretString="any-key-will-do")
    api_key = KeyRing(client, SECRETS).issue(organisation).key
    client.close()
    return api_key


def _from_template() -> dict[str, str]:
    """The handler's variables that the template sets to literals."""
    template = Template.from_file()
    (function,) = (each for each in template.functions() if each.handler == HANDLER)
    values = {name: template.literal(written) for name, written in function.environment.items()}
    return {name: value for name, value in values.items() if value is not None}


def _chance(seed: int | str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - moments, not secrets


def _idle(sandbox: LambdaRuntime, event: dict[str, Any], answer: tuple[str, object]) -> int:
    """Invokes until the runtime answers as expected; returns its process id."""
    for _ in range(5):
        try:
            assert answer in sandbox.invoke(event, ANSWER_S).items()
        except (Crashed, TimedOut):
            continue
        pid = sandbox.runtime_pid()
        assert pid is not None
        return pid
    pytest.fail(f"the runtime does not start: {sandbox.last_words()}")


def _prompt(name: str, chance: random.Random) -> str:
    """A prompt; the model refuses one in five, so that refunds are interrupted too."""
    return f"{name} {REFUSED}" if chance.random() < 0.2 else name


def _moment(chance: random.Random) -> float:
    """When to kill, as a share of the usual duration: at the start, anywhere, or near the end."""
    return chance.uniform(*chance.choice([(0.0, 0.15), (0.0, 1.0), (0.85, 1.1)]))


def _after(seconds: float) -> Moment:
    return lambda asked: wait([asked], timeout=seconds)


def _kill(ask: Callable[[], int], pid: int, comes: Moment) -> float | None:
    """Kills the runtime at the moment; returns the seconds to the answer if it came earlier."""
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        asked = pool.submit(ask)
        comes(asked)
        took_s = time.monotonic() - began
        if not asked.done():
            os.kill(pid, signal.SIGKILL)
        return None if asked.result() == NO_ANSWER else took_s


def _at_once(number: int, work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(number) as pool:
        for done in [pool.submit(work, each) for each in range(number)]:
            done.result()


def _retries_are_charged_once(caller: Caller, prompts: list[str]) -> None:
    """The customers of killed requests retry with the same idempotency keys."""
    with caller.sandbox() as sandbox:
        caller.warm_up(sandbox)
        for prompt in prompts:
            assert caller.ask(sandbox, prompt) == (500 if REFUSED in prompt else 200)
    assert caller.violations() == []
