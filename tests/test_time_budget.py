"""The function answers before its timeout, and refunds before it answers, whatever breaks when."""

import pytest

from lib.deadline import AFTER_MODEL_S, FUNCTION_TIMEOUT_S
from lib.errors import ServiceError
from tests.world import Fault, Network, NewWorld

# The calls of a request in a minute that has begun.
PUT, SETTLE = 2, 3
LONGEST_MODEL_S = int(FUNCTION_TIMEOUT_S - AFTER_MODEL_S)


@pytest.mark.parametrize("fault", [Fault.RESPONSE_LOST, Fault.OUTAGE, Fault.LOST_THEN_OUTAGE])
@pytest.mark.parametrize("call", [PUT, SETTLE], ids=["put", "settle"])
def test_a_request_ends_in_time_however_long_the_model_took(
    new_world: NewWorld, call: int, fault: Fault
) -> None:
    for model_takes_s in range(0, LONGEST_MODEL_S + 1, 2):
        world = new_world()
        world.request(world.process(Network(call, fault), model_takes_s=model_takes_s))
        where = f"the model took {model_takes_s} s"
        assert world.last_request_took_s <= FUNCTION_TIMEOUT_S, where


def test_when_the_store_is_down_there_is_time_left_for_the_refund(new_world: NewWorld) -> None:
    for model_takes_s in range(0, LONGEST_MODEL_S + 1, 2):
        world = new_world()
        broken = world.process(Network(PUT, Fault.OUTAGE), model_takes_s=model_takes_s)
        answer = world.request(broken)
        assert isinstance(answer, ServiceError)
        assert world.balance() == 100, f"the model took {model_takes_s} s"
