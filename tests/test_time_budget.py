"""Whatever fails, the function refunds and answers before its timeout."""

import pytest

from lib.deadline import AFTER_MODEL_S, FUNCTION_TIMEOUT_S
from lib.errors import ServiceError
from tests.world import Fault, Network, NewWorld

# Calls of a request in an open minute.
PUT, SETTLE = 2, 3
LONGEST_MODEL_S = int(FUNCTION_TIMEOUT_S - AFTER_MODEL_S)


@pytest.mark.parametrize("fault", [Fault.RESPONSE_LOST, Fault.OUTAGE, Fault.LOST_THEN_OUTAGE])
@pytest.mark.parametrize("call", [PUT, SETTLE], ids=["put", "settle"])
def test_a_request_ends_in_time_however_long_the_model_takes(
    new_world: NewWorld, call: int, fault: Fault
) -> None:
    for model_takes_s in range(0, LONGEST_MODEL_S + 1, 2):
        world = new_world()
        answer = world.request(world.process(Network(call, fault), model_takes_s=model_takes_s))
        where = f"the model took {model_takes_s} s"
        assert world.last_request_took_s <= FUNCTION_TIMEOUT_S, where
        if (call, fault) == (PUT, Fault.OUTAGE):
            assert isinstance(answer, ServiceError), where
            assert world.balance() == 100, where
