"""The reservation: one transaction that debits, opens a generation and claims an idempotency key.

It also counts the price against the budget of the API key that is used (``usage.py``).

What can race, and which condition decides:

    request A  |--reserve--|                         has_credits, below_limit  (account)
    request A  |--reserve--|                         within_budget             (usage)
    operator    |-suspend-|                          not_suspended             (account)
    request B      |--reserve--|                     never_used                (generation)
    same key C        |--reserve--|                  key_is_free               (idempotency)
    reconciler                         |--refund--|  frees C's key: ``generation = :released``

DynamoDB answers a failed transaction with a reason for each item, in order, and the item as it was.
``resolve_cancellation`` reads them: either the customer gets an answer, or a better attempt
follows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lib.deadline import IDEMPOTENCY_TTL_S, MAX_CLOCK_SKEW_S, RATE_WINDOW_S
from lib.errors import (
    IdempotencyKeyReused,
    ImageDeleted,
    InsufficientCredits,
    KeyBudgetExhausted,
    OrganisationSuspended,
    RateLimited,
)
from lib.ledger.rows import (
    DEFAULT_RATE_LIMIT,
    Account,
    Generation,
    Item,
    Status,
    account_key,
    idempotency_key,
    number,
    string,
)
from lib.ledger.table import Reason
from lib.ledger.usage import Usage, count, month_of

__all__ = ["Attempt", "KeyInFlight", "failed", "rate_window", "resolve_cancellation"]


class KeyInFlight(Exception):
    """The idempotency key stands for ``generation``, which is reserved."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation.id)
        self.generation = generation


@dataclass(frozen=True, slots=True)
class Attempt:
    """One transaction to try. Its successor starts from what refused it.

    ``opens_window`` starts a new rate window; ``released_ms`` names the refunded generation that
    the idempotency key still points to. ``monthly_budget`` is the key's, in credits.
    """

    generation: Generation
    now_s: int
    monthly_budget: int | None = None
    opens_window: bool = False
    released_ms: int | None = None

    @property
    def window(self) -> int:
        """The epoch second at which the current minute begins."""
        return rate_window(self.now_s)

    def writes(self) -> list[dict[str, Any]]:
        """The transaction's items: account, generation, and idempotency and usage row if any."""
        writes = [self._debit(), self._open()]
        if self.generation.idempotency_key is not None:
            writes.append(self._claim(self.generation.idempotency_key))
        return [*writes, *count(self.generation, self.monthly_budget)]

    def _debit(self) -> dict[str, Any]:
        # Race: two requests for the last credits. Without it, the balance goes below 0.
        has_credits = "credits >= :price"
        # Race: an operator suspends the organisation while its requests are on their way. Without
        # it, those that have been authenticated would still be charged.
        not_suspended = "attribute_not_exists(suspendedAt)"
        values = {
            ":price": number(self.generation.credits),
            ":window": number(self.window),
            # A sandbox whose clock is ahead may have opened a later window. A window never goes
            # back, or each of two sandboxes would open its own again and again; one that lies
            # further ahead than any clock can be is an error, and is replaced.
            ":latest": number(self.window + MAX_CLOCK_SKEW_S),
            ":one": number(1),
        }
        # Race: requests in one minute, of which the limit admits some. Without it, all pass, or
        # two requests both open the minute's window and reset its count.
        if self.opens_window:
            stale = "rateWindow < :window OR rateWindow > :latest"
            not_closed = "(attribute_not_exists(rateLimit) OR rateLimit > :zero)"
            rate_allows = f"(attribute_not_exists(rateWindow) OR {stale}) AND {not_closed}"
            values[":zero"] = number(0)
            count = "rateWindow = :window, rateUsed = :one"
        else:
            below_limit = "rateUsed < rateLimit"
            below_default = "attribute_not_exists(rateLimit) AND rateUsed < :default"
            rate_allows = (
                f"rateWindow BETWEEN :window AND :latest AND ({below_limit} OR ({below_default}))"
            )
            count = "rateUsed = rateUsed + :one"
            values[":default"] = number(DEFAULT_RATE_LIMIT)
        return {
            "Update": {
                "Key": account_key(self.generation.organisation),
                "ConditionExpression": f"{has_credits} AND {not_suspended} AND {rate_allows}",
                "UpdateExpression": f"ADD taken :price SET credits = credits - :price, {count}",
                "ExpressionAttributeValues": values,
            }
        }

    def _open(self) -> dict[str, Any]:
        # Race: two requests in one millisecond. Without it, one generation overwrites the other.
        never_used = "attribute_not_exists(pk)"
        return {
            "Put": {
                "Item": self.generation.to_item(),
                "ConditionExpression": never_used,
            }
        }

    def _claim(self, key: str) -> dict[str, Any]:
        # Race: two requests with one key. Without it, both would be charged. DynamoDB deletes an
        # expired row some time after ``expiresAt``; until then it counts as free.
        key_is_free = "attribute_not_exists(pk) OR expiresAt <= :now"
        values = {":now": number(self.now_s)}
        if self.released_ms is not None:
            # Race: two retries after a refund. Only the one that still finds the refunded
            # generation under the key may claim it.
            key_is_free += " OR generation = :released"
            values[":released"] = number(self.released_ms)
        row = idempotency_key(self.generation.organisation, key) | {
            "generation": number(self.generation.created_ms),
            "requestHash": string(self.generation.request_hash),
            "expiresAt": number(self.now_s + IDEMPOTENCY_TTL_S),
        }
        return {
            "Put": {
                "Item": row,
                "ConditionExpression": key_is_free,
                "ExpressionAttributeValues": values,
            }
        }


def resolve_cancellation(
    attempt: Attempt,
    reasons: list[Reason],
    stored_generation: Callable[[int], Generation | None],
    image_key: Callable[[int], str],
    now_ms: int,
) -> Attempt | Generation:
    """What follows from a transaction that DynamoDB cancelled because conditions failed.

    Returns:
        The next attempt; or a generation: the caller's own, if an earlier try of the same attempt
        committed and its response was lost, or the settled one that the idempotency key stands for.

    Raises:
        InsufficientCredits, OrganisationSuspended, RateLimited, KeyBudgetExhausted,
        IdempotencyKeyReused, ImageDeleted
        KeyInFlight: the idempotency key stands for a reservation.
    """
    account, generation, *others = reasons
    mine = attempt.generation
    usage: Reason = {} if mine.meter is None else others.pop()
    if _failed(generation) and _attempt_id(generation) == mine.attempt_id:
        return mine

    following = replace(attempt, now_s=now_ms // 1000)
    if others and _failed(others[0]):
        earlier_ms = int(others[0]["Item"]["generation"]["N"])
        earlier = stored_generation(earlier_ms)
        if earlier is not None and earlier.status is not Status.REFUNDED:
            return _replay(earlier, mine)
        following = replace(following, released_ms=earlier_ms)
    if _failed(account):
        opens_window = _account_allows(account.get("Item"), following, mine.credits)
        following = replace(following, opens_window=opens_window)
    if _failed(generation):
        created_ms = max(mine.created_ms + 1, now_ms)
        moved = replace(mine, created_ms=created_ms, image_key=image_key(created_ms))
        following = replace(following, generation=moved)
    if _failed(usage) and _month(following.generation) == _month(mine):
        raise _budget_exhausted(usage.get("Item"), attempt)
    return following


def rate_window(now_s: int) -> int:
    """The epoch second at which the minute of ``now_s`` begins."""
    return now_s - now_s % RATE_WINDOW_S


def failed(reasons: list[Reason], index: int) -> bool:
    """Whether the condition of the write at ``index`` cancelled the transaction."""
    return bool(reasons) and _failed(reasons[index])


def _failed(reason: Reason) -> bool:
    return reason.get("Code") == "ConditionalCheckFailed"


def _month(generation: Generation) -> str:
    return month_of(generation.created_ms // 1000)


def _budget_exhausted(item: Item | None, attempt: Attempt) -> KeyBudgetExhausted:
    used = Usage.from_item(item).credits if item else 0
    left = max(0, (attempt.monthly_budget or 0) - used)
    return KeyBudgetExhausted(attempt.generation.credits, left)


def _attempt_id(reason: Reason) -> str | None:
    attempt_id: str | None = reason.get("Item", {}).get("attemptId", {}).get("S")
    return attempt_id


def _replay(earlier: Generation, mine: Generation) -> Generation:
    if earlier.request_hash != mine.request_hash:
        raise IdempotencyKeyReused
    if earlier.status is Status.RESERVED:
        raise KeyInFlight(earlier)
    if earlier.deleted_at is not None:
        raise ImageDeleted
    return earlier


def _account_allows(item: Item | None, attempt: Attempt, price: int) -> bool:
    """Whether the next attempt must open the minute's window; raises if the account refuses."""
    if item is None:
        raise InsufficientCredits(price, 0)
    account = Account.from_item(item)
    if account.suspended_at is not None:
        raise OrganisationSuspended
    if account.credits < price:
        raise InsufficientCredits(price, account.credits)
    window = attempt.window
    is_current = window <= account.rate_window <= window + MAX_CLOCK_SKEW_S
    if (account.rate_used if is_current else 0) >= account.rate_limit:
        window_ends = (account.rate_window if is_current else window) + RATE_WINDOW_S
        retry_after_s = min(RATE_WINDOW_S, max(1, window_ends - attempt.now_s))
        raise RateLimited(account.rate_limit, retry_after_s)
    return not is_current
