"""Where a number came from (commit, versions, hardware), and files that are either whole or absent."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton", "numpy", "tokenizers", "safetensors", "pydantic", "transformers", "scikit-learn")
_X86_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_CPU_FLAGS = (*_X86_FLAGS, "asimd", "asimddp", "i8mm", "bf16", "sve")
_CODE = ("src", "recipes", "benchmarks", "pyproject.toml", ":(exclude)*/results/*")


def provenance() -> dict[str, Any]:
    """Commit, dirty flag, versions and hardware of this process, ready for JSON."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "hardware": hardware(),
    }


def commit() -> dict[str, Any]:
    """`{"commit": hash, "dirty": bool}` of the checkout that terrazzo runs from; both None outside a checkout.

    Dirty means that code differs from the commit; written results do not count.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    head = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", *_CODE)
    return {"commit": head, "dirty": None if changes is None else bool(changes)}


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of terrazzo and of those `packages` that are installed."""
    from terrazzo import __version__

    found = {"terrazzo": __version__}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """CPU model, its flags that decide speed, cores this process may use, torch threads, memory in bytes, GPUs."""
    import torch

    model, flags = _cpu()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": model,
        "cpu_flags": [flag for flag in _CPU_FLAGS if flag in flags],
        "cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
    }


def usable_cores() -> int:
    """Cores that this process may keep busy: its affinity, and its container's quota, rounded up."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    cores, quota = len(os.sched_getaffinity(0)), cpu_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))


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


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far, on Linux without what it inherits from its parent."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts the parent's peak across fork and exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_text_atomic(path: str | Path, text: str) -> None:
    """`write_bytes_atomic` of text in UTF-8, lines ended as they are."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` under a temporary name beside `path`, flush it to disk and rename it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json_atomic(path: str | Path, value: Any) -> None:
    """`write_text_atomic` of indented JSON.

    Raises:
        ValueError: `value` holds NaN or infinity, which JSON cannot.
    """
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Plain data with None for numbers that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> tuple[str, set[str]]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine(), set()
    fields: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields.get("model name", platform.machine()), set(fields.get("flags", fields.get("Features", "")).split())
