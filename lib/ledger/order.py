"""What a customer asks for, and what it costs."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from lib.picture.aspect_ratio import AspectRatio

__all__ = ["CREDITS_PER_IMAGE", "Order", "Spender"]

CREDITS_PER_IMAGE: Literal[5] = 5


@dataclass(frozen=True, slots=True)
class Spender:
    """The API key that was used: its id, the meter that counts what it spends, and its budget.

    ``monthly_budget`` is in credits; None sets no limit.
    """

    key_id: str
    meter: str
    monthly_budget: int | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """A customer's request for one image; ``model`` is the name of the model that is to draw.

    ``wants_png``: the response holds the PNG itself, so a replay has to read it.
    """

    organisation: str
    prompt: str
    aspect_ratio: AspectRatio
    idempotency_key: str | None = None
    asynchronous: bool = False
    spender: Spender | None = None
    model: str | None = None
    wants_png: bool = False

    @property
    def request_hash(self) -> str:
        """SHA-256 of what makes two requests the same: the ratio and the prompt. 64 hex digits."""
        return hashlib.sha256(f"{self.aspect_ratio}\n{self.prompt}".encode()).hexdigest()
