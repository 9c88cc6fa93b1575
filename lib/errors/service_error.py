"""What every error response has: a status, a code, a body and headers."""

from typing import ClassVar

__all__ = ["ServiceError"]


class ServiceError(Exception):
    """An error response: ``status``, ``code``, a JSON body and headers.

    ``retry_after_s`` is in whole seconds; ``message`` and ``hint`` are in the body where they are
    not None.
    """

    status: ClassVar[int] = 500
    code: str = "internal_error"
    error: str = "Internal error"
    message: ClassVar[str | None] = None
    hint: ClassVar[str | None] = None
    should_retry: ClassVar[bool] = False
    retry_after_s: int | None = None
    credits_charged: ClassVar[int] = 0

    @property
    def is_fault(self) -> bool:
        """Whether the service or one that it depends on failed; alarms watch the share of these."""
        return True

    def body(self) -> dict[str, object]:
        """The JSON body of the response."""
        fields = {"error": self.error, "message": self.message, "hint": self.hint}
        return {name: text for name, text in fields.items() if text is not None}

    def headers(self) -> dict[str, str]:
        """The headers that this error adds to the response."""
        headers = {
            "X-Error-Code": self.code,
            "X-Should-Retry": "true" if self.should_retry else "false",
        }
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        return headers
