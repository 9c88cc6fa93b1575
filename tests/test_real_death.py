"""The handler in Lambda's own runtime loop, killed and stopped at random moments of a request.

DynamoDB Local keeps the ledger; the images, the secrets and the model are servers of this process.
"""

import io
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
from PIL import Image

from infra.local.aws import REGION
from infra.local.gemini_stand_in import GeminiStandIn
from infra.template import PROJECT_ROOT, Template
from infra.verify import tools
from infra.verify.lambda_runtime import Crashed, LambdaRuntime, Task, TimedOut
from lib.api_keys import KeyRing
from lib.ledger_rows import Status
from tests.engines import Engine
from tests.reporting import report
from tests.world import BASE_URL, World

# One worker at a time: each of these tests keeps two cores busy by itself.
pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real death")]

HANDLER = "handlers.generate.handler"
SANDBOXES = 2
KILLS_PER_SANDBOX = 100
SLOW_SANDBOXES = 4
STOPS_PER_SANDBOX = 4
STOPPED_TIMEOUT_S = 7
PAUSES = 30
RETRIES = 12
# A request may be answered before its moment comes; then another one is sent.
MOST_REQUESTS_PER_KILL = 4
ANSWER_S = 60.0
AHEAD_S = 600.0
SECRETS = "orgs/"
REFUSED = "[fail:safety]"
NO_ANSWER = 0


@dataclass
class Customer:
    """An organisation, the service that it calls, and the answer to each of its prompts."""

    world: World
    api_key: str
    environment: dict[str, str]
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)

    def event(self, prompt: str, api_key: str) -> dict[str, Any]:
        """The request as API Gateway's HTTP API hands it to a function (payload 2.0)."""
        return {
            "version": "2.0",
            "routeKey": "POST /api/v1/models/gemini/generate",
            "headers": {"authorization": f"Bearer {api_key}", "idempotency-key": prompt},
            "requestContext": {"requestId": "a-request"},
            "body": json.dumps({"prompt": prompt}),
            "isBase64Encoded": False,
        }

    def sandbox(self, timeout_s: int = 29) -> LambdaRuntime:
        """A sandbox with the code under test."""
        task = Task(PROJECT_ROOT, (tools.packages(),), HANDLER, timeout_s)
        return LambdaRuntime(task, self.environment)

    def warm_up(self, sandbox: LambdaRuntime) -> int:
        """Waits until a runtime is there and has nothing to do; returns its process id."""
        for _ in range(5):
            try:
                answer = sandbox.invoke(self.event("hello", "not-a-key"), ANSWER_S)
            except (Crashed, TimedOut):
                continue
            assert answer["statusCode"] == 401
            return _pid(sandbox)
        pytest.fail(f"the runtime does not come up: {sandbox.last_words()}")

    def ask(self, sandbox: LambdaRuntime, prompt: str) -> int:
        """Sends one request, its prompt being its idempotency key; returns the answer's status."""
        try:
            answer = sandbox.invoke(self.event(prompt, self.api_key), ANSWER_S)
        except (Crashed, TimedOut):
            self.answers[prompt] = (NO_ANSWER, "")
            return NO_ANSWER
        self.answers[prompt] = (answer["statusCode"], answer["body"])
        return int(answer["statusCode"])

    def unanswered(self) -> list[str]:
        """The prompts whose requests ended with the process."""
        return [prompt for prompt, (status, _) in self.answers.items() if status == NO_ANSWER]

    def fates(self) -> str:
        """How far the unanswered requests came, in words."""
        status = {each.prompt: each.status for each in self.world.generations()}
        found = Counter(status.get(prompt) for prompt in self.unanswered())
        return (
            f"{found[None]} before the debit, {found[Status.RESERVED]} while reserved,"
            f" {found[Status.SETTLED]} settled, {found[Status.REFUNDED]} refunded"
        )

    def violations(self) -> list[str]:
        """What does not fit: in the ledger, in the store, and with what the customer was told."""
        wrong = self.world.violations()
        by_prompt = {each.prompt: each for each in self.world.generations()}
        for prompt, (status, body) in self.answers.items():
            generation = by_prompt.get(prompt)
            charged = generation is not None and generation.status is Status.SETTLED
            if status == 200:
                url = json.loads(body)["imageUrl"]
                if generation is None or url != f"{BASE_URL}/{generation.image_key}" or not charged:
                    wrong.append(f"{prompt!r} was answered with {url}, which is not charged")
            elif status != NO_ANSWER and charged:
                wrong.append(f"{prompt!r} was answered with {status} and is charged")
        for key in self.world.stored_keys():
            stored = self.world.engine.s3.get_object(Bucket=self.world.engine.bucket, Key=key)
            with Image.open(io.BytesIO(stored["Body"].read())) as image:
                image.load()
        return wrong


class Pace:
    """How many seconds requests take in a sandbox, learnt from each that was answered.

    It starts with three: the first request of a runtime, a later one, and one that is refused.
    """

    def __init__(self, customer: Customer, sandbox: LambdaRuntime, name: str) -> None:
        customer.warm_up(sandbox)
        took_s = []
        for prompt, status in ((name, 200), (f"{name} again", 200), (f"{name} {REFUSED}", 500)):
            began = time.monotonic()
            assert customer.ask(sandbox, prompt) == status, sandbox.last_words()
            took_s.append(time.monotonic() - began)
        fresh_s, warm_s, refused_s = took_s
        self._expected_s = {
            (False, False): warm_s,
            (False, True): refused_s,
            (True, False): fresh_s,
            (True, True): max(refused_s, fresh_s - warm_s + refused_s),
        }

    def of(self, prompt: str, *, fresh: bool) -> float:
        """What a request will take; a runtime that is ``fresh`` has answered none yet."""
        return self._expected_s[fresh, REFUSED in prompt]

    def learn(self, prompt: str, took_s: float, *, fresh: bool) -> None:
        """The machine may have got slower or faster."""
        self._expected_s[fresh, REFUSED in prompt] = (self.of(prompt, fresh=fresh) + took_s) / 2


@pytest.fixture
def customer(real_engine: Engine) -> Iterator[Customer]:
    """A new organisation with 5,000 credits, and the settings that the template gives."""
    with (
        World(real_engine, credits_=5_000, rate_limit=100_000) as world,
        GeminiStandIn(latency_s=0.05, fixed_picture=True) as model,
    ):
        # The reconciler of this world comes when every lease of the real clock has run out.
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
        yield Customer(world, _secrets(environment, world.organisation), environment)


def test_a_runtime_killed_at_any_moment_leaves_an_image_paid_or_credits_back(
    customer: Customer, seed: int
) -> None:
    def kill_many(number: int) -> None:
        chance = _chance(f"{seed}-{number}")
        with customer.sandbox() as sandbox:
            pace = Pace(customer, sandbox, f"pace {number}")
            killed, fresh = 0, False
            for request in range(KILLS_PER_SANDBOX * MOST_REQUESTS_PER_KILL):
                prompt = _prompt(f"fox {number}.{request}", chance)
                moment_s = _moment(chance) * pace.of(prompt, fresh=fresh)
                answered_s = _kill(customer, sandbox, prompt, moment_s)
                if answered_s is not None:
                    pace.learn(prompt, answered_s, fresh=fresh)
                fresh = answered_s is None
                killed += fresh
                if killed == KILLS_PER_SANDBOX:
                    return
        pytest.fail(f"only {killed} requests were killed in flight")

    _at_once(SANDBOXES, kill_many)
    kills = customer.unanswered()
    fates = customer.fates()
    customer.world.settle_down()

    assert customer.violations() == []
    _retries_are_charged_once(customer, _chance(seed).sample(kills, RETRIES))
    report(f"real death: {len(kills)} kills ({fates}), 0 violations; SEED={seed}")


def test_a_runtime_that_hangs_until_its_timeout_leaves_an_image_paid_or_credits_back(
    customer: Customer, seed: int
) -> None:
    def stop_some(number: int) -> None:
        chance = _chance(f"{seed}-{number}")
        with customer.sandbox(STOPPED_TIMEOUT_S) as sandbox:
            for request in range(STOPS_PER_SANDBOX):
                pid = customer.warm_up(sandbox)
                with ThreadPoolExecutor(1) as pool:
                    asked = pool.submit(customer.ask, sandbox, f"owl {number}.{request}")
                    time.sleep(chance.uniform(0, 0.6))
                    os.kill(pid, signal.SIGSTOP)
                    asked.result()

    _at_once(SLOW_SANDBOXES, stop_some)
    stops = customer.unanswered()
    fates = customer.fates()
    customer.world.settle_down()

    assert stops
    assert customer.violations() == []
    report(f"real timeouts: {len(stops)} ({fates}), 0 violations; SEED={seed}")


def test_a_runtime_that_wakes_up_after_the_reconciler_came_by_gives_no_image_away(
    customer: Customer, seed: int
) -> None:
    chance = _chance(seed)
    with customer.sandbox() as sandbox:
        pace = Pace(customer, sandbox, "pace")
        answers: Counter[int] = Counter()
        pid = customer.warm_up(sandbox)
        for number in range(PAUSES):
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(customer.ask, sandbox, f"hare {number}")
                time.sleep(chance.uniform(0, pace.of("hare", fresh=False)))
                os.kill(pid, signal.SIGSTOP)
                customer.world.reconcile(customer.world.process())
                os.kill(pid, signal.SIGCONT)
                answers[asked.result()] += 1
    customer.world.settle_down()

    assert customer.violations() == []
    assert set(answers) == {200, 500}
    report(
        f"real pauses: {PAUSES} past the lease ({answers[200]} paid and delivered,"
        f" {answers[500]} refunded), 0 violations; SEED={seed}"
    )


def _secrets(environment: Mapping[str, str], organisation: str) -> str:
    """Stores a key for the model and makes one for the organisation, which it returns."""
    client = boto3.client(
        "secretsmanager",
        endpoint_url=environment["AWS_ENDPOINT_URL_SECRETS_MANAGER"],
        region_name=REGION,
        aws_access_key_id="local",
        aws_secret_access_key="local",
    )
    client.create_secret(Name=environment["GEMINI_API_KEY_SECRET"], SecretString="any-key-will-do")
    api_key = KeyRing(client, SECRETS).issue(organisation).key
    client.close()
    return api_key


def _from_template() -> dict[str, str]:
    """The handler's variables, as far as the template says them without a deployment."""
    template = Template.from_file()
    (function,) = (each for each in template.functions() if each.handler == HANDLER)
    values = {name: template.literal(written) for name, written in function.environment.items()}
    return {name: value for name, value in values.items() if value is not None}


def _chance(seed: int | str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - moments, not secrets


def _pid(sandbox: LambdaRuntime) -> int:
    pid = sandbox.runtime_pid()
    assert pid is not None
    return pid


def _prompt(name: str, chance: random.Random) -> str:
    """One in five is refused by the model, so that refunds are interrupted too."""
    return f"{name} {REFUSED}" if chance.random() < 0.2 else name


def _moment(chance: random.Random) -> float:
    """When to kill, 1 being the usual end: around the debit, anywhere, or around the end."""
    return chance.uniform(*chance.choice([(0.0, 0.15), (0.0, 1.0), (0.85, 1.1)]))


def _kill(customer: Customer, sandbox: LambdaRuntime, prompt: str, moment_s: float) -> float | None:
    """Kills the runtime ``moment_s`` into a request; the time of the answer, if one came before."""
    pid = customer.warm_up(sandbox)
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        asked = pool.submit(customer.ask, sandbox, prompt)
        wait([asked], timeout=moment_s)
        took_s = time.monotonic() - began
        if not asked.done():
            os.kill(pid, signal.SIGKILL)
        return None if asked.result() == NO_ANSWER else took_s


def _at_once(number: int, work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(number) as pool:
        for done in [pool.submit(work, each) for each in range(number)]:
            done.result()


def _retries_are_charged_once(customer: Customer, prompts: list[str]) -> None:
    """The customers of killed requests come again, with the same keys; the audit counts."""
    with customer.sandbox() as sandbox:
        customer.warm_up(sandbox)
        for prompt in prompts:
            assert customer.ask(sandbox, prompt) == (500 if REFUSED in prompt else 200)
    assert customer.violations() == []
