"""What a run took, and on what it ran."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from terrazzo.train.report.markup import Child, Html, aside, facts, join, section, tag
from terrazzo.train.report.record import RunRecord
from terrazzo.train.units import duration, money, percent, short, with_unit


def cost(run: RunRecord) -> Html:
    """Time, FLOPs, share of peak, and money where the price of an hour is known."""
    seconds, in_steps = run.last.get("seconds", math.nan), run.total("step_seconds")
    processes = int(run.record.get("world_size", 1))
    pairs: list[tuple[str, Child]] = [
        ("time", join(duration(seconds), aside(f"{duration(in_steps)} in steps, the rest in evaluations"))),
        ("processes", str(processes)),
        ("computed", join(with_unit(run.total("flops"), "FLOP"), aside("matrix products, forward and backward"))),
    ]
    share = run.peak_share()
    if math.isfinite(share) and share > 0:
        peak = run.total("flops") / (in_steps * share * processes)
        pairs.append(
            ("share of peak", join(percent(share), aside(f"of {with_unit(peak, 'FLOP/s')} a process, measured")))
        )
    rate = short(run.trained_tokens / in_steps)
    pairs.append(("throughput", join(rate, " tokens/s", aside("mean over all steps"))))
    if run.price is None:
        how = "not known: put what an hour of this machine costs into run.json as price_per_hour; make the report again"
        pairs.append(("money", tag("span", how, class_="none")))
    else:
        amount = money(seconds / 3600 * run.price)
        pairs.append(("money", join(amount, aside(f"at {money(run.price)} an hour"))))
    return section("Cost", facts(pairs))


def machine(run: RunRecord) -> Html:
    """Hardware, versions and commit."""
    return machine_of(run.record.get("provenance", {}), run.record.get("data_fingerprint", "?"))


def machine_of(made: Mapping[str, Any], fingerprint: str) -> Html:
    """Hardware, versions and commit of a provenance, and the fingerprint of the data."""
    hardware = made.get("hardware", {})
    memory = hardware.get("memory_bytes")
    cores = f"{hardware.get('cores', '?')} cores; threads of PyTorch: {hardware.get('torch_threads', '?')}"
    pairs: list[tuple[str, Child]] = [
        ("CPU", join(hardware.get("cpu", "?"), aside(cores), aside(" ".join(hardware.get("cpu_flags", []))))),
        ("GPU", ", ".join(hardware.get("gpus", [])) or "none"),
        ("memory", f"{memory / 2**30:.1f} GiB" if memory else "?"),
        ("system", made.get("platform", "?")),
        ("Python", made.get("python", "?")),
        ("versions", ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())),
        ("commit", f"{made.get('commit') or 'none'}{', with changes' if made.get('dirty') else ''}"),
        ("last started", made.get("time", "?")),
        ("data fingerprint", fingerprint),
    ]
    return section("Machine and versions", facts(pairs))
