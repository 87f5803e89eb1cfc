"""What the kernel lends this process: cores and memory, by affinity and cgroup v1 and v2.

A cgroup's limits hold for all below it, so those of the ancestors count too. In a container the
path that /proc/self/cgroup states may be the host's, and only the mount's root is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

_MOUNT = "/sys/fs/cgroup"
# cgroup v1 says "no limit" with the largest number of whole pages.
_NO_LIMIT = 1 << 60


def effective_cores() -> int:
    """Cores this process may use: CPU affinity, and the tightest quota; at least 1."""
    cores = len(os.sched_getaffinity(0))
    quota = min(_quotas(), default=None)
    return max(1, min(cores, round(quota))) if quota else cores


def memory_limit() -> int | None:
    """Bytes of the tightest limit, None where there is none."""
    return min(_memory_limits(), default=None)


def _quotas() -> Iterator[float]:
    """CPUs."""
    for directory in _directories("cpu"):
        both = (_read(f"{directory}/cpu.max") or "max").split()
        if both[0] != "max":
            yield int(both[0]) / int(both[1])
        quota = int(_read(f"{directory}/cpu.cfs_quota_us") or -1)
        period = _read(f"{directory}/cpu.cfs_period_us")
        if quota > 0 and period is not None:
            yield quota / int(period)


def _memory_limits() -> Iterator[int]:
    for directory in _directories("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(f"{directory}/{name}") or "max"
            if text != "max" and int(text) < _NO_LIMIT:
                yield int(text)


def _directories(controller: str) -> Iterator[str]:
    """Of the cgroups this process is in, and of their ancestors up to the mount's root."""
    for line in (_read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Without controllers it is v2, below "unified" where v1 is mounted as well; v1 is mounted
        # by all its names ("cpu,cpuacct") or by links of one name each.
        mounts = ("", "/unified") if not controllers else (f"/{controllers}", f"/{controller}")
        for mount in dict.fromkeys(mounts):
            below = "" if ".." in path else path.rstrip("/")
            yield f"{_MOUNT}{mount}{below}"
            while below:
                below = below.rpartition("/")[0]
                yield f"{_MOUNT}{mount}{below}"


def _read(path: str) -> str | None:
    try:
        with open(path) as file:  # noqa: PTH123 - a kernel file, no path operations
            return file.read().strip()
    except OSError:
        return None
