"""Fixtures of all tests, and the summary at the end of a run."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests import reporting
from tests.customer import customer
from tests.engines import Engine, engine, moto_engine, real_engine
from tests.stacks import artifact
from tests.world import World

__all__ = [
    "artifact",
    "customer",
    "engine",
    "moto_engine",
    "pytest_terminal_summary",
    "real_engine",
]

# The files that keep a worker of `make verify` for minutes, longest first. One that began late
# would run on alone. What shows it: `--durations=0`.
LONGEST = (
    *("test_interleavings", "test_deployed", "test_installation", "test_crashes"),
    *("test_more_interleavings", "test_real_death", "test_browser", "test_bench", "test_fuzz"),
    *("test_cli_process", "test_real_concurrency", "test_state_machine", "test_build"),
    *("test_openai_clients", "test_generated_clients", "test_deployment", "test_history"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--schedule", help="one schedule of a scene in tests/scenes.py, as 0.1.2")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Whole files: a fixture with parameters has spread the tests of some.
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    first = {item.path: number for number, item in reversed([*enumerate(items)])}
    items.sort(key=lambda item: (ranks.get(item.path.stem, len(ranks)), first[item.path]))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tried"] = reporting.to_send()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    reporting.receive(getattr(node, "workeroutput", {}).get("tried"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if reporting.lines():
        terminalreporter.section("what was tried")
        for line in reporting.lines():
            terminalreporter.line(line)
        reporting.save()


@pytest.fixture
def new_world(engine: Engine) -> Iterator[Callable[..., World]]:
    """Makes worlds on the engine; they are closed after the test."""
    with ExitStack() as worlds:

        def new(credits_: int = 100, rate_limit: int = 60, budget: int | None = 1_000) -> World:
            return worlds.enter_context(World(engine, credits_, rate_limit, budget))

        yield new


@pytest.fixture
def seed() -> int:
    """The seed of all randomness in a test; ``SEED=`` in the environment replays a run."""
    chosen = int(os.environ.get("SEED", secrets.randbelow(10**9)))
    print(f"SEED={chosen}")  # noqa: T201 - pytest shows it when the test fails
    return chosen


@pytest.fixture
def schedule(request: pytest.FixtureRequest) -> list[int] | None:
    """The schedule of ``--schedule``, if given."""
    asked: str | None = request.config.getoption("--schedule")
    return None if asked is None else [int(choice) for choice in asked.split(".") if choice]
