"""What a sandbox does before its first request.

On Lambda the dependencies are built in INIT, before a customer waits. With SnapStart, INIT runs
when a version is published, and every sandbox is restored from that snapshot. So nothing here opens
a connection, reads a secret or keeps a time: a restored process starts like a fresh one. The state
of the shared random generator must differ between copies, because boto3 and the ledger draw their
backoff from it.
"""

import gc
import random
from collections.abc import Callable

from lib.settings import initialization_type

__all__ = ["initialize"]

SNAP_START = "snap-start"


def initialize(build: Callable[[], object], prime: Callable[[], object] | None = None) -> None:
    """On Lambda: calls ``build`` now, and ``prime`` before a snapshot is taken.

    What INIT has made stays, so garbage is collected from here on only, and not among that.
    Priming loads what the first request would load. It takes time that a cold start does not have
    and a snapshot does.
    """
    started_by = initialization_type()
    if started_by is None:
        return
    build()
    gc.freeze()
    gc.enable()
    if started_by == SNAP_START:
        # Lambda's runtime provides this package; it is absent elsewhere.
        import snapshot_restore_py  # noqa: PLC0415

        if prime is not None:
            snapshot_restore_py.register_before_snapshot(prime)
        snapshot_restore_py.register_after_restore(random.seed)
