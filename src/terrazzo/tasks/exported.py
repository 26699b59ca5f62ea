"""What an export made, and what it tells the person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from terrazzo.runtime.agreement import Agreement
from terrazzo.runtime.folder import GRAPHS, RuntimeName, RuntimeRecord, is_weights


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export made.

    Args:
        record: runtime.json: the runtime, rates, agreement, parts that stayed fp32.
        left_out: runtimes that were not candidates, and why.
        remembered: whether the rates come from an earlier export on this machine.
        load: the machine's load average when measuring began, where it had more to do than it has cores.
        seconds: that the export took.
    """

    folder: Path
    record: RuntimeRecord
    left_out: Mapping[str, str]
    remembered: bool
    seconds: float
    load: float | None = None

    @property
    def runtime(self) -> RuntimeName:
        return self.record.runtime

    @property
    def agreement(self) -> Agreement:
        assert self.record.agreement is not None
        return self.record.agreement

    @property
    def graph_bytes(self) -> int:
        """Bytes that the runtime opens: the graph's, or the weights' where PyTorch runs them."""
        names = GRAPHS[self.runtime] or tuple(name for name in self.record.files if is_weights(name))
        return sum(self.record.files[name].bytes for name in names)

    def lines(self, made_up: bool) -> list[str]:
        """A few lines for a person; `made_up` says that no texts were given to compare on."""
        record = self.record
        rates = sorted(record.rates.items(), key=lambda item: -item[1])
        measured = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates)
        busy = "" if self.load is None else f"; machine busy: load {self.load:.1f}"
        when = "remembered from an earlier export" if self.remembered else f"measured here{busy}"
        said = [
            f"runtime: {record.runtime}, {record.streams} streams, batches of {record.batch_tokens:,} tokens",
            f"tokens/s: {measured} ({when})",
            *(f"left out: {name}: {why}" for name, why in self.left_out.items()),
            f"precision: {record.precision}{_kept_in_fp32(record)}",
            f"agreement: {self.agreement}{' (made up: give --calibrate to compare on your own)' if made_up else ''}",
            *(f"note: {note}" for note in _notes(record)),
            f"wrote {self.folder}: {self.graph_bytes / 1e6:,.1f} MB to run, in {self.seconds:,.0f} s",
            f"next: terrazzo serve {self.folder}",
        ]
        return said


def _kept_in_fp32(record: RuntimeRecord) -> str:
    if not record.reverted:
        return ", all matrix products" if record.precision == "int8" else ""
    return f", but fp32 for {', '.join(record.reverted)}, which cost most agreement"


def _notes(record: RuntimeRecord) -> list[str]:
    machine = record.machine
    if record.precision == "int8" and record.half_range:
        return ["this CPU has no VNNI: weights keep to 7 bits so that sums stay exact, and int8 gains little speed"]
    if record.precision == "int8":
        return ["its int8 weights need a CPU with VNNI or AMX, as this one; others refuse the folder"]
    if record.precision == "bf16" and not machine.has_bf16:
        return ["this CPU has no bf16 products: they are computed in fp32, at no gain"]
    return []
