"""Three sandboxes that race, and two crashes: every order with one preemption."""

import pytest

from tests.engines import Engine
from tests.scenes import SCENES, TWO_CRASHES, WITH_THREE, explore

pytestmark = pytest.mark.real


@pytest.mark.parametrize("name", WITH_THREE)
def test_the_books_are_sound_with_three_actors_and_one_preemption(
    name: str, real_engine: Engine, schedule: list[int] | None
) -> None:
    explore(WITH_THREE[name], real_engine, schedule, switches=1)


@pytest.mark.parametrize("name", TWO_CRASHES)
def test_the_books_are_sound_after_two_crashes_and_one_preemption(
    name: str, real_engine: Engine, schedule: list[int] | None
) -> None:
    explore(SCENES[name], real_engine, schedule, switches=1, crashes=2)
