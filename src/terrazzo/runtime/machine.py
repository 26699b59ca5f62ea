"""What this machine is, as far as it decides which runtime is fastest and whether int8 is exact."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from terrazzo.provenance import hardware

#: Instructions that add products of 8-bit numbers in 32 bits, without saturating in between.
_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A CPU and what a process may use of it.

    Args:
        cpu: model name.
        instructions: instruction sets that decide speed, those of `/proc/cpuinfo`.
        cores: that this process may keep busy: its affinity, and its container's quota, rounded up.
    """

    cpu: str
    instructions: tuple[str, ...]
    cores: int

    @property
    def key(self) -> str:
        """What measured choices are remembered under."""
        return f"{self.cpu}, {' '.join(self.instructions) or 'no vector instructions known'}, {self.cores} cores"

    @property
    def has_int8(self) -> bool:
        """Whether products of int8 are native; without, they are slower than fp32 and older CPUs saturate."""
        return any(name in self.instructions for name in _INT8)

    @property
    def has_bf16(self) -> bool:
        """Whether products of bf16 are native; without, they are computed in fp32 at no gain."""
        return any(name in self.instructions for name in _BF16)


def this_machine() -> Machine:
    """The machine that runs this process."""
    found = hardware()
    cores = found["cores"] or 1
    quota = cpu_quota(Path("/proc/self/cgroup"), _CGROUPS) if sys.platform == "linux" else None
    limited = cores if quota is None else min(cores, max(1, math.ceil(quota)))
    return Machine(cpu=found["cpu"], instructions=tuple(found["cpu_flags"]), cores=limited)


def cpu_quota(membership: Path, root: Path) -> float | None:
    """CPUs' worth of time that control groups grant a process, the least along its path; None without a limit.

    Args:
        membership: lines `id:controllers:path`, as in /proc/self/cgroup.
        root: where the control groups are mounted, of either version.
    """
    if not membership.is_file():
        return None
    found = []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        base = root if not controllers else root / "cpu" if "cpu" in controllers.split(",") else None
        if base is not None:
            inner = base / path.lstrip("/")
            found += [_limit(folder) for folder in (inner, *inner.parents) if folder.is_relative_to(base)]
    return min((limit for limit in found if limit is not None), default=None)


def _limit(folder: Path) -> float | None:
    """The quota of one control group: `cpu.max` of version 2, `cpu.cfs_*_us` of version 1."""
    second, first = folder / "cpu.max", folder / "cpu.cfs_quota_us"
    if second.is_file():
        quota, period = second.read_text().split()
    elif first.is_file():
        quota, period = first.read_text().strip(), (folder / "cpu.cfs_period_us").read_text().strip()
    else:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
