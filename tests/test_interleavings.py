"""Sandboxes that race for one generation, job or account: every order, a crash anywhere."""

import pytest

from tests.engines import Engine
from tests.scenes import SCENES, SWITCHES, explore


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_the_books_are_sound_in_every_order_on_moto(
    name: str, moto_engine: Engine, schedule: list[int] | None
) -> None:
    explore(SCENES[name], moto_engine, schedule, SWITCHES.get(name))


@pytest.mark.real
@pytest.mark.parametrize("name", SCENES)
def test_the_books_are_sound_in_every_order(
    name: str, real_engine: Engine, schedule: list[int] | None
) -> None:
    explore(SCENES[name], real_engine, schedule, SWITCHES.get(name))
