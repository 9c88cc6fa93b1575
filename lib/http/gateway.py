"""The answers that API Gateway gives by itself, without the service, and what they cost.

Their source: "Quotas for HTTP APIs" and "Troubleshooting HTTP API Lambda integrations" (Amazon API
Gateway Developer Guide). Their bodies are ``{"message": ...}``, and they have none of the service's
headers: the service never sees them, or does not see that its own answer was dropped.
"""

from dataclasses import dataclass

__all__ = ["GATEWAY_ANSWERS", "GATEWAY_EXAMPLE", "REPEAT_WITH_KEY", "GatewayAnswer"]

GATEWAY_EXAMPLE = "api_gateway"
"""The name of the example of such an answer in the OpenAPI document, where others are codes."""

REPEAT_WITH_KEY = (
    "Repeat the request with the same `Idempotency-Key`: if the first one was charged, the "
    "repetition returns its image. Without a key, look into the history first."
)


@dataclass(frozen=True, slots=True)
class GatewayAnswer:
    """One of the answers. ``is_free`` says that the service never saw the request.

    Where it is not, the cost is unknown at that moment, and ``advice`` is ``REPEAT_WITH_KEY``.
    """

    status: int
    message: str
    when: str
    is_free: bool
    should_retry: bool
    advice: str
    wait: str = ""

    @property
    def costs(self) -> str:
        """What the answer says about credits, as a sentence."""
        if self.is_free:
            return "It costs nothing: the service never saw the request."
        return f"Whether it was charged is unknown. {REPEAT_WITH_KEY}"


GATEWAY_ANSWERS: tuple[GatewayAnswer, ...] = (
    GatewayAnswer(
        413,
        "Request Entity Too Large",
        "The body is over 10 MB.",
        is_free=True,
        should_retry=False,
        advice="Shorten the body.",
    ),
    GatewayAnswer(
        429,
        "Too Many Requests",
        "All customers together exceed the throttle of the deployment.",
        is_free=True,
        should_retry=True,
        advice="Repeat the request.",
        wait="after a second, then twice as long each time",
    ),
    GatewayAnswer(
        500,
        "Internal Server Error",
        "The function crashed, timed out, or could not be started.",
        is_free=False,
        should_retry=True,
        advice=REPEAT_WITH_KEY,
        wait="after a second, then twice as long each time",
    ),
    GatewayAnswer(
        503,
        "Service Unavailable",
        "The function did not answer within 30 seconds, or was throttled.",
        is_free=False,
        should_retry=True,
        advice=REPEAT_WITH_KEY,
        wait="after a second, then twice as long each time",
    ),
)
"""Every answer that API Gateway gives by itself to a request that reaches a route."""
