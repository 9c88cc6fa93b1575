"""Thousands of generated requests get only answers that the OpenAPI document describes.

schemathesis generates requests that the document allows or forbids, and checks each answer: its
status and body are described, as strictly as the service is today, it is no 5xx, and nothing
forbidden is accepted.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.dependencies import dependencies
from infra.local.stack import LocalStack
from infra.template import PROJECT_ROOT
from infra.verify import tools
from lib.deadline import Deadline
from lib.ledger.accounts import Accounts
from lib.ledger.table import Table
from lib.limits import OrganisationLimit, TokenBuckets
from tests.customer import fetch
from tests.reporting import Tried, tally
from tests.strict_openapi import strict

pytestmark = pytest.mark.real

AT_LEAST = 2_000
SEED = 20261123
ENOUGH_CREDITS = 1_000_000
CONFIGURATION = PROJECT_ROOT / "infra" / "verify" / "schemathesis.toml"


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(latency_s=0, throttled=False) as running:
        # It asks faster than any customer may, and is to get further than a 429.
        unlimited = OrganisationLimit("fuzzed", TokenBuckets(ENOUGH_CREDITS, ENOUGH_CREDITS))
        dependencies().read_limit = dependencies().unpaid_limit = unlimited
        yield running


def test_no_generated_request_gets_an_undescribed_answer(stack: LocalStack, tmp_path: Path) -> None:
    key = stack.open_account("fuzzed", ENOUGH_CREDITS)
    accounts = Accounts(Table(stack.aws.client("dynamodb"), stack.table))
    accounts.set_rate_limit("fuzzed", ENOUGH_CREDITS, "test", Deadline(10))
    document = strict(fetch(f"{stack.url}/openapi.json").json())
    (tmp_path / "openapi.json").write_text(json.dumps(document), encoding="utf-8")
    command = [
        *(str(tools.schemathesis()), "--config-file", str(CONFIGURATION)),
        *("run", "openapi.json", "--url", stack.url),
        *("--header", f"Authorization: Bearer {key}"),
        # API Gateway answers 404 to a method that has no route, where that check wants 405.
        *("--checks", "all", "--exclude-checks", "unsupported_method", "--continue-on-failure"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", "280"),
        *("--seed", str(SEED), "--suppress-health-check", "all"),
    ]

    done = subprocess.run(  # noqa: S603 - our own command
        command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )

    assert done.returncode == 0, done.stdout[-6000:]
    (cases,) = re.findall(r"(\d+) generated", done.stdout.replace(",", ""))
    assert int(cases) >= AT_LEAST
    tally(Tried.GENERATED_REQUESTS, int(cases))
