"""The audit of one organisation, recomputed from its rows alone.

grants = credits + the price of every reserved and settled generation, at every instant
credits never go below 0
a generation ends settled or refunded, two minutes after its lease at the latest
an idempotency key has at most one settled generation in its 24 hours
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from lib.deadline import IDEMPOTENCY_TTL_S, LEASE_S, REFUNDED_WITHIN_S
from lib.ledger.rows import Account, Generation, Grant, Item, Status

__all__ = ["AuditReport", "audit_of"]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The figures and findings. ``drift`` is in credits; above 0, credits came from nowhere."""

    organisation: str
    credits: int
    granted: int
    reserved: int
    settled: int
    refunded: int
    drift: int
    findings: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is no drift and no finding."""
        return self.drift == 0 and not self.findings


def audit_of(
    organisation: str, account: Account | None, items: Iterable[Item], now_s: int
) -> AuditReport:
    """The report on an organisation, from all items under its partition key."""
    generations: list[Generation] = []
    granted = 0
    claims: dict[str, int] = {}
    for item in items:
        kind, _, name = str(item["sk"]["S"]).partition("#")
        if kind == "GEN":
            generations.append(Generation.from_item(item))
        elif kind == "GRANT":
            granted += Grant.from_item(item).credits
        elif kind == "IDEM":
            claims[name] = int(item["generation"]["N"])
    balance = account.credits if account else 0
    by_status = {
        status: [each for each in generations if each.status is status] for status in Status
    }
    held = by_status[Status.RESERVED] + by_status[Status.SETTLED]
    findings = [
        *_balance_findings(balance, account, generations),
        *_lease_findings(generations, now_s),
        *_idempotency_findings(by_status[Status.SETTLED], claims, generations),
    ]
    return AuditReport(
        organisation=organisation,
        credits=balance,
        granted=granted,
        reserved=len(by_status[Status.RESERVED]),
        settled=len(by_status[Status.SETTLED]),
        refunded=len(by_status[Status.REFUNDED]),
        drift=balance + sum(each.credits for each in held) - granted,
        findings=tuple(findings),
    )


def _balance_findings(
    balance: int, account: Account | None, generations: list[Generation]
) -> Iterable[str]:
    if balance < 0:
        yield f"the balance is {balance}"
    if account is None and generations:
        yield "generations exist without an account"


def _lease_findings(generations: list[Generation], now_s: int) -> Iterable[str]:
    for each in generations:
        expired_at = each.due_at
        if each.status is Status.RESERVED and expired_at is None:
            yield f"generation {each.id} is reserved without a lease"
        elif expired_at is not None and now_s - expired_at > REFUNDED_WITHIN_S - LEASE_S:
            yield f"generation {each.id} ({each.status}) was due {now_s - expired_at} s ago"


def _idempotency_findings(
    settled: list[Generation], claims: dict[str, int], generations: list[Generation]
) -> Iterable[str]:
    by_key: dict[str, list[int]] = defaultdict(list)
    for each in settled:
        if each.idempotency_key is not None:
            by_key[each.idempotency_key].append(each.created_ms)
    for times in by_key.values():
        times.sort()
        for earlier, later in pairwise(times):
            if later - earlier < IDEMPOTENCY_TTL_S * 1000:
                yield f"generations {earlier} and {later} were charged for one idempotency key"
    known = {each.created_ms for each in generations}
    for created_ms in claims.values():
        if created_ms not in known:
            yield f"an idempotency row names generation {created_ms}, which does not exist"
