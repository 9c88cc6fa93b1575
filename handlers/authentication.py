"""Authenticates a request: the first thing that every route with a key does."""

from handlers.dependencies import Dependencies
from handlers.http import Event, header
from lib.keys.verification import DeadKey, VerifiedKey
from lib.observability import Observation

__all__ = ["authenticate"]


def authenticate(service: Dependencies, event: Event, observation: Observation) -> VerifiedKey:
    """The key of the request; its id is on every later line of the request's log.

    Raises:
        Unauthorized: the key is missing, malformed, unknown, revoked or expired.
        ServiceUnavailable: the keys could not be read.
    """
    try:
        key = service.key_verifier.verify(header(event, "authorization"))
    except DeadKey as dead:
        observation.identify(organisation=dead.organisation, key=dead.key_id)
        observation.count("RevokedKeyUsed")
        raise
    observation.identify(organisation=key.organisation, key=key.id)
    return key
