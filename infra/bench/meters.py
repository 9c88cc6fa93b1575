"""What is read off many samples, and off a process."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["MeterError", "peak_mib", "percentile"]

_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


class MeterError(Exception):
    """What is asked of the machine is not to be had."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: of 200 samples the 198th is the p99. Not a number if there is none."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)] if ranked else math.nan


def peak_mib(pid: int) -> float:
    """The most resident memory that a process ever had (proc(5), VmHWM).

    ``ru_maxrss`` won't do: a child's begins with its parent's.

    Raises:
        MeterError: it ended, or the system is not Linux.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError as fault:
        raise MeterError("the process whose memory is asked for is gone") from fault
    found = _PEAK.search(status)
    if found is None:
        raise MeterError("the system does not tell the peak of a process's memory")
    return int(found[1]) / 1024
