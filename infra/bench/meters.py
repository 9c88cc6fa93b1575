"""Percentiles, and the memory and CPU of another process."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["MeterError", "cpu_s", "peak_mib", "percentile"]

_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


class MeterError(Exception):
    """The process has ended, or the system is not Linux."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: the p99 of 200 samples is the 198th. NaN without samples."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)] if ranked else math.nan


def peak_mib(pid: int) -> float:
    """The peak resident memory of a process (proc(5), VmHWM).

    ``ru_maxrss`` is unusable: a child inherits its parent's peak.

    Raises:
        MeterError
    """
    found = _PEAK.search(_read(pid, "status"))
    if found is None:
        raise MeterError(f"/proc/{pid}/status has no VmHWM")
    return int(found[1]) / 1024


def cpu_s(pid: int) -> float:
    """The user and system time of a process so far (proc(5), ``stat``).

    Raises:
        MeterError
    """
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="ascii", errors="replace")
    except OSError as fault:
        raise MeterError(f"/proc/{pid}/{name} can't be read") from fault
