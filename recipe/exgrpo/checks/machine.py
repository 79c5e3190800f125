"""What the machine itself is: the facts that decide whether a GPU run can start on it at all."""

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from verl_ext.platform import accelerator_visible

DRIVER_FILE = Path("/proc/driver/nvidia/version")
CGROUP_FILE = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Machine:
    """`python` and `glibc` as (major, minor), `driver` NVIDIA's major release, None where there is none; `accelerator`: one
    can be used by this process; `cores`: that this process may use."""

    python: tuple[int, int]
    glibc: tuple[int, int] | None
    driver: int | None
    accelerator: bool
    cores: int

    @classmethod
    def here(cls) -> "Machine":
        return cls(sys.version_info[:2], _glibc(), driver_release(), accelerator_visible(), usable_cores())


def driver_release(file: Path = DRIVER_FILE) -> int | None:
    """The major release of NVIDIA's kernel module that is loaded, 580 of "580.65.06"; None without one."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"\b(\d{3,})\.\d+", text)
    return int(found[1]) if found else None


def usable_cores(quota: Path = CGROUP_FILE) -> int:
    """Cores of this process: its affinity, and a container's quota, which Ray respects as well."""
    cores = len(os.sched_getaffinity(0))
    try:
        limit, period = quota.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return cores
    return cores if limit == "max" else max(1, min(cores, int(limit) // int(period)))


def _glibc() -> tuple[int, int] | None:
    name, version = platform.libc_ver()
    parts = version.split(".")
    return (int(parts[0]), int(parts[1])) if name == "glibc" and len(parts) >= 2 else None
