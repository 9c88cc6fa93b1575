"""The route that deletes the image and the prompt of a generation.

It is a function of its own, with a role of its own, so that the account function needs no
permission to write or delete.
"""

from typing import TYPE_CHECKING

from handlers.authentication import answer, named_generation
from handlers.dependencies import Dependencies, dependencies
from handlers.http import Event, Response, request_id, text
from handlers.initialization import initialize
from lib.deadline import Deadline

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

__all__ = ["handler"]


def handler(event: Event, context: "LambdaContext") -> Response:
    """The Lambda entry point."""
    return answer(dependencies(), event, context, _delete)


def _delete(service: Dependencies, organisation: str, event: Event, deadline: Deadline) -> Response:
    service.deletions.delete(organisation, named_generation(event), deadline)
    return text(204, "", request_id(event), {})


initialize(build=lambda: (dependencies().key_verifier, dependencies().deletions))
