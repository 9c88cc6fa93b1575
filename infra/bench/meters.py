"""Percentiles, and the memory and CPU of a process."""

import math
import os
from collections.abc import Sequence
from pathlib import Path


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: the p99 of 200 samples is the 198th. NaN without samples."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)] if ranked else math.nan


def peak_mib(pid: int) -> float:
    """The peak resident memory of a process (proc(5), VmHWM); OSError if it has ended.

    ``ru_maxrss`` is unusable: a child inherits its parent's peak.
    """
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def forget_peak() -> None:
    """Lets this process's peak begin again at what it uses now (proc(5), ``clear_refs``)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def cpu_s(pid: int) -> float:
    """The user and system time of a process (proc(5), ``stat``); OSError if it has ended."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
