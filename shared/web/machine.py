"""What this process may use of its machine."""

from __future__ import annotations

import os
from pathlib import Path

from shared.errors import BadSetting

_CGROUP = Path("/sys/fs/cgroup")


def check_working_directory() -> None:
    """Libraries may end the process where the working directory is gone (torch's MKL does).

    Raises:
        BadSetting: the working directory was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise BadSetting("the working directory was deleted: change to one that exists") from error


def cpus(cgroup: Path = _CGROUP) -> float:
    """Processors that this process may keep busy: those it may run on, or fewer where its control group has a quota."""
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return min([allowed, *_quotas(cgroup)])


def _quotas(cgroup: Path) -> list[float]:
    """The quota in processors: one file in version 2, two in version 1; none where there is no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        return [int(quota) / int(period)] if quota not in ("max", "-1") else []
    return []
