"""The start of a sandbox: what is done before its first request, and only once.

On Lambda the rooms are built in INIT, while no customer waits. With SnapStart, INIT happens when a
version is published, and every sandbox is a copy of the one that was snapshotted then. So nothing
here opens a connection, reads a secret or keeps a time: a copy, hours later, begins as a fresh
process does. What copies must not share is the state of the common random generator, from which
boto3 and the ledger draw how long they wait before another try.
"""

import random
from collections.abc import Callable

from lib.settings import initialization_type

__all__ = ["prepare"]

SNAP_START = "snap-start"


def prepare(build: Callable[[], object], rehearse: Callable[[], object] | None = None) -> None:
    """On Lambda: calls ``build`` now, and ``rehearse`` before a snapshot is taken.

    A rehearsal brings in what is otherwise loaded by the first request. It costs time, which a
    sandbox that starts for a customer doesn't have, and a snapshot does.
    """
    started_by = initialization_type()
    if started_by is None:
        return
    build()
    if started_by == SNAP_START:
        # Lambda's own Python has it; elsewhere nobody takes snapshots.
        import snapshot_restore_py  # noqa: PLC0415

        if rehearse is not None:
            snapshot_restore_py.register_before_snapshot(rehearse)
        snapshot_restore_py.register_after_restore(random.seed)
