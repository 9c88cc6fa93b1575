"""One measured, or simulated, point of many clients that reserve and settle at the same time."""

from dataclasses import dataclass

__all__ = ["Point"]


@dataclass(frozen=True, slots=True)
class Point:
    """``clients`` threads, each of which reserves and then settles, again and again.

    They take turns at ``organisations`` accounts. With ``conflicts_injected`` a transaction whose
    account another one holds is refused at once with ``TransactionConflict``, as DynamoDB would;
    DynamoDB Local lets it wait instead.

    ``throughput_per_s`` counts pairs of a reserve and a settle; ``p50_ms`` and ``p99_ms`` are what
    a pair takes, its waits included. ``conflicts`` counts refusals, ``retries`` the tries that
    followed one, ``errors`` the pairs that were given up, which are
    in no percentile.
    """

    clients: int
    organisations: int
    conflicts_injected: bool
    throughput_per_s: float
    p50_ms: float
    p99_ms: float
    conflicts: int
    retries: int
    errors: int
